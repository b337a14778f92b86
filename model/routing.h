// What router logits say about how evenly experts are used.
#pragma once

#include <span>

#include "ggml-lite/status.h"

namespace dsv3 {

// The auxiliary load-balancing loss of Switch Transformers (arXiv:2101.03961, equations 4 to 6), as
// transformers computes it for Mixtral and Qwen3-MoE: over all rows of all layers together, with p the
// softmax of the logits,
//   loss = n_experts * sum over experts e of (share of rows that choose e) * (mean of p_e)
// where a row chooses its `chosen` largest p; perfect balance gives `chosen`. logits: per layer [n_rows,
// n_experts]; mask [n_rows] or null: rows with 0 do not count. Without a row that counts, or
// with a logit that is not finite, the loss is NaN.
double load_balancing_loss(std::span<const float* const> logits, int64_t n_rows, int64_t n_experts,
                           int64_t chosen, const uint8_t* mask);

}  // namespace dsv3
