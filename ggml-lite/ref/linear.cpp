// Products with weight matrices: a weight row is decoded once and meets all activation rows.
#include <algorithm>

#include "ggml-lite/ref/ref.h"

namespace lite::ref {

// Workspace: one decoded weight row per thread, then the rounded activations.
int64_t linear_workspace(const Graph& g, const Node& n, int threads) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]);
  const bool rounded =
      std::get<LinearParams>(n.params).rounding != Rounding::None && w.dtype == DType::F8_E4M3;
  return (threads + (rounded ? x.shape[0] : 0)) * x.shape[1] * int64_t(sizeof(float));
}

void linear(const Graph& g, const Node& n, const Team& team) {
  const Tensor &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  Tensor x = g.tensor(n.in[0]);
  const int64_t rows = g.live_rows(n, n.in[0]), in = w.shape[1], out = w.shape[0];
  float* scratch = g.tensor(n.workspace).row<float>(0);
  float* weight_row = scratch + team.index * in;
  if (rows == 0) return;  // a pass without logits does not read the head

  const Rounding rounding = std::get<LinearParams>(n.params).rounding;
  if (rounding != Rounding::None && w.dtype == DType::F8_E4M3) {
    Tensor rounded = Tensor::of(DType::F32, {x.shape[0], in});
    rounded.data = reinterpret_cast<std::byte*>(scratch + team.size * in);
    const auto [first, end] = team.share(rows);
    for (int64_t t = first; t < end; ++t) round_row(rounding, x.row<float>(t), rounded.row<float>(t), in);
    team.barrier();
    x = rounded;
  }

  const auto [first, end] = team.share(out);
  for (int64_t o = first; o < end; ++o) {
    decode_row(w, o, weight_row);
    const float bias = n.in[2] ? element(g.tensor(n.in[2]), o) : 0.0f;
    for (int64_t t = 0; t < rows; ++t) y.row<float>(t)[o] = dot(x.row<float>(t), weight_row, in) + bias;
  }
}

// Workspace: one decoded weight row per thread.
int64_t linear_per_head_workspace(const Graph& g, const Node& n, int threads) {
  return threads * g.tensor(n.in[1]).shape[1] * int64_t(sizeof(float));
}

void linear_per_head(const Graph& g, const Node& n, const Team& team) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const auto p = std::get<LinearPerHeadParams>(n.params);
  const int64_t rows = g.live_rows(n, n.in[0]), cols = w.shape[1];
  float* weight_row = g.tensor(n.workspace).row<float>(0) + team.index * cols;
  const auto [first, end] = team.share(x.shape[1]);
  for (int64_t h = first; h < end; ++h) {
    if (p.transposed)
      for (int64_t t = 0; t < rows; ++t) std::fill_n(y.row<float>(t, h), cols, 0.0f);
    for (int64_t i = 0; i < p.rows; ++i) {
      decode_row(w, h * p.head_rows + p.row0 + i, weight_row);
      for (int64_t t = 0; t < rows; ++t) {
        const float* from = x.row<float>(t, h);
        float* to = y.row<float>(t, h);
        if (!p.transposed)
          to[i] = dot(from, weight_row, cols);
        else
          for (int64_t j = 0; j < cols; ++j) to[j] += from[i] * weight_row[j];
      }
    }
  }
}

}  // namespace lite::ref
