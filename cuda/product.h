// Products of prompts by the matrix unit, where activations need not stay f32: what linear and moe_ffn take instead of their
// other kernels (linear.cu, moe.cu). Which of the two it is, the phase decides and the weights, never the number of rows.
#pragma once

#include "cuda/moe.h"

namespace lite::cuda {

// ---- linear (product.cu)

bool takes_tiles(const Graph& g, const Node& n, const Step& step);
void tiled_linear(const Graph& g, const Node& n, const Step& step);

// ---- moe_ffn (moe_prompt.cu); what is theirs of the workspace lies behind MoeWorkspace

bool takes_tiles(const ExpertSet& set, const Step& step);

constexpr int kTaskPairs = 64;  // most of a task of tiled_experts()
// Sorts the pairs of a prompt, in exact mode too, into tasks of up to so many.
void sort_pairs(const Graph& g, const Node& n, const Step& step, const MoeLayer& l, int pairs_per_task);
// From the sorted pairs to every pair's result.
void tiled_experts(const Graph& g, const Node& n, const Step& step, const MoeLayer& l);

}  // namespace lite::cuda
