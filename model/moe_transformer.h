// The single MoE Transformer layer: x + attention(layer_norm(x)), then + GELU experts(layer_norm(.)). It has no
// vocabulary and no positions: hidden states in, hidden states out.
#pragma once

#include "model/device.h"
#include "model/model.h"

namespace dsv3 {

struct LayerBatch {
  int64_t batch, length;  // sequences, tokens of each
  const float* x;         // [batch, length, hidden_size]
  const float* mask;  // [length, length] added to the scores, -infinity: not seen; null: everything is seen
};

struct LayerCompute {
  Device device;
  int n_threads;
  bool exact;
};

struct LayerResult {
  float* y;               // [batch, length, hidden_size]
  int32_t* router_ids;    // [batch * length, num_experts_per_tok], highest weight first; or null
  float* router_weights;  // the same shape; or null
};

Status eval_moe_transformer(Model& model, const LayerBatch& batch, const LayerCompute& compute,
                            const LayerResult& result);

}  // namespace dsv3
