// Attention of prompts by the matrix unit, outside of exact mode. The f32 kernels of attention.cu do all else.
#pragma once

#include "cuda/kernels.h"

namespace lite::cuda {

// attention_expanded and attention_grouped (attention_prompt.cu), if has_prompt_attention().
void prompt_attention(const Graph& g, const Node& n, const Step& step);

// attention_latent (attention_absorbed.cu), with latents of up to 512 values and rows of up to 576.
bool has_absorbed_attention(const Graph& g, const Node& n);
void absorbed_attention(const Graph& g, const Node& n, const Step& step);

}  // namespace lite::cuda
