// Attention of prompts by the matrix unit: attention_expanded and attention_grouped outside of exact mode.
#pragma once

#include "cuda/kernels.h"

namespace lite::cuda {

// Whether there is a kernel for the node's sizes: with each of a key's parts rounded up to 16 values, keys of up to 192 and
// values of up to 128. The f32 kernels of attention.cu do the others.
bool has_prompt_attention(const Graph& g, const Node& n);
int64_t prompt_attention_workspace(const Graph& g, const Node& n);
void prompt_attention(const Graph& g, const Node& n, const Step& step);

}  // namespace lite::cuda
