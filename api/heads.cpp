// The C API of what is not the next token: classification, single layers, expert load.
#include <cmath>

#include "api/handles.h"
#include "ggml-lite/machine.h"
#include "model/moe_transformer.h"
#include "model/routing.h"

using namespace dsv3::api;
using dsv3::Result;
using dsv3::Status;

int32_t dsv3_classified_position(const dsv3_model* model, const int32_t* ids, int32_t n) {
  if (!model || !ids || n < 1) return -1;
  const int64_t pad = model->model->config().pad_token_id;
  if (pad < 0) return n - 1;
  for (int32_t i = n - 1; i > 0; --i)
    if (ids[i] != pad) return i;
  return 0;
}

dsv3_status dsv3_layer_eval(const dsv3_model* model, const dsv3_layer_batch* batch, float* y) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_layer_eval", "model");
    if (!batch) return null_argument("dsv3_layer_eval", "batch");
    if (!y) return null_argument("dsv3_layer_eval", "y");
    dsv3_layer_batch b;
    LITE_TRY(read_options("dsv3_layer_batch", batch, &b));
    if (!b.x) return null_argument("dsv3_layer_eval", "batch.x");
    if (b.float_mask && b.bool_mask)
      return lite::invalid_argument("dsv3_layer_eval: both masks are given, expected one");
    if (b.n_threads == 0) b.n_threads = int32_t(lite::core_processors().size());
    LITE_TRY(in_range("dsv3_layer_eval", "n_threads", b.n_threads, 1, 1024));
    LITE_TRY(in_range("dsv3_layer_eval", "length", b.length, 1, 1 << 15));
    std::vector<float> blocked;
    if (b.bool_mask) {
      blocked.resize(size_t(b.length) * size_t(b.length));
      for (size_t i = 0; i < blocked.size(); ++i) blocked[i] = b.bool_mask[i] ? -INFINITY : 0.0f;
    }
    const float* mask = b.bool_mask ? blocked.data() : b.float_mask;
    return dsv3::eval_moe_transformer(*model->model, {b.batch, b.length, b.x, mask},
                                      {model->device, b.n_threads, b.exact != 0},
                                      {y, b.router_ids, b.router_weights});
  });
}

dsv3_status dsv3_load_balancing_loss(const float* const* logits, int32_t n_layers, int32_t n_rows,
                                     int32_t n_experts, int32_t n_experts_per_token, const uint8_t* mask,
                                     double* loss) {
  return call([&]() -> Status {
    if (!logits) return null_argument("dsv3_load_balancing_loss", "logits");
    if (!loss) return null_argument("dsv3_load_balancing_loss", "loss");
    if (n_layers < 1 || n_rows < 1 || n_experts < 1 || n_experts_per_token < 1 ||
        n_experts_per_token > n_experts)
      return lite::invalid_argument("dsv3_load_balancing_loss: got ", n_layers, " layers, ", n_rows,
                                    " rows, ", n_experts_per_token, " of ", n_experts,
                                    " experts, expected at least 1 of each");
    for (int32_t i = 0; i < n_layers; ++i)
      if (!logits[i]) return null_argument("dsv3_load_balancing_loss", "logits[i]");
    *loss =
        dsv3::load_balancing_loss({logits, size_t(n_layers)}, n_rows, n_experts, n_experts_per_token, mask);
    return {};
  });
}
