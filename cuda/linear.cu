// Products with weight matrices: a row of the weights passes by once for up to kTogether rows of activations.
#include "cuda/product.h"

namespace lite::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kRows = 2;  // of the weights, of one warp

__global__ void round_kernel(Rounding rounding, Values<float> x, Values<float> to, Live live) {
  const int64_t t = block_x(), first = (int64_t(block_y()) * kWarps + warp()) * kRoundGroup;
  if (t < live.rows() && first < x.n) round_group(rounding, x.row(t), to.row(t), first, x.n);
}

// For head block_z() of x and y; a linear map has one.
__global__ void linear_kernel(Matrix w, Head head, Values<float> x, Vector bias, Values<float> y, Live live) {
  const int64_t first = int64_t(block_y()) * kTogether, h = block_z();
  const int n = int(min(int64_t(kTogether), live.rows() - first));
  const int64_t out = (int64_t(block_x()) * kWarps + warp()) * kRows;
  if (n <= 0 || out >= head.out) return;
  const float* from[kTogether];
#pragma unroll
  for (int t = 0; t < kTogether; ++t) from[t] = x.row(first + min(t, n - 1), h);
  int64_t row[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) row[r] = h * head.rows + head.row0 + min(out + r, head.out - 1);
  float sum[kRows * kTogether];
  products(w, row, from, n, sum);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int t = 0; t < kTogether; ++t)
      if (lane() == r * kTogether + t && t < n && out + r < head.out)
        y.row(first + t, h)[out + r] = sum[r * kTogether + t] + (bias.data ? bias.at(out + r) : 0.0f);
}

// y_h = W_h^T x_h: each thread has kColumns columns, and adds up the rows in order.
constexpr int kColumns = 4, kTransposedThreads = 128;
__global__ void transposed_kernel(Matrix w, Head head, Values<float> x, Values<float> y, Live live) {
  const int64_t first = int64_t(block_y()) * kTogether, h = block_z();
  const int n = int(min(int64_t(kTogether), live.rows() - first));
  const int64_t column = (int64_t(block_x()) * threads() + thread()) * kColumns;
  if (n <= 0 || column >= w.cols) return;
  float sum[kTogether][kColumns] = {};
  for (int64_t i = 0; i < head.out; ++i) {
    const int64_t row = h * head.rows + head.row0 + i;
    const uint8_t* data = w.data + row * w.stride;
    float value[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t j = min(column + c, w.cols - 1);
      value[c] = decode(w.dtype, data, j) * (w.scale ? w.scale_at(row, j) : 1.0f);
    }
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      if (t >= n) continue;
      const float factor = x.row(first + t, h)[i];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sum[t][c] += factor * value[c];
    }
  }
#pragma unroll
  for (int t = 0; t < kTogether; ++t)
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (t < n && column + c < w.cols) y.row(first + t, h)[column + c] = sum[t][c];
}

bool rounds(const Graph& g, const Node& n) {
  return std::get<LinearParams>(n.params).rounding != Rounding::None &&
         g.tensor(n.in[1]).dtype == DType::F8_E4M3;
}

Grid product_grid(int64_t rows, int64_t out, int64_t heads) {
  return {ceil_div(out, kWarps * kRows), ceil_div(rows, kTogether), heads};
}

}  // namespace

// Workspace: the rounded activations, of the one way or the other.
int64_t linear_workspace(const Graph& g, const Node& n, bool exact) {
  const int64_t rounded = rounds(g, n) ? g.tensor(n.in[0]).elements() * int64_t(sizeof(float)) : 0;
  return std::max(rounded, tiled_linear_workspace(g, n, exact));
}

void linear(const Graph& g, const Node& n, const Step& step) {
  if (takes_tiles(g, n, step)) return tiled_linear(g, n, step);
  const Tensor &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const Live live = live_rows(g, n, n.in[0], step);
  auto x = values_of<float>(g.tensor(n.in[0]));
  if (rounds(g, n)) {
    Values<float> rounded = x;
    rounded.data = g.tensor(n.workspace).row<float>(0);
    rounded.row_stride = x.n;
    launch(round_kernel, {live.most, ceil_div(x.n, kWarps * kRoundGroup)}, kThreads, 0, step.stream,
           std::get<LinearParams>(n.params).rounding, x, rounded, live);
    x = rounded;
  }
  const Vector bias = n.in[2] ? vector_of(g.tensor(n.in[2])) : Vector{};
  launch(linear_kernel, product_grid(live.most, w.shape[0], 1), kThreads, 0, step.stream, matrix_of(w),
         Head{w.shape[0], 0, w.shape[0]}, x, bias, values_of<float>(y), live);
}

void per_head(const Step& step, const Matrix& w, const Head& head, bool transposed, const Values<float>& x,
              const Values<float>& y, const Live& live) {
  if (transposed)
    launch(transposed_kernel,
           {ceil_div(w.cols, kTransposedThreads * kColumns), ceil_div(live.most, kTogether), x.heads},
           kTransposedThreads, 0, step.stream, w, head, x, y, live);
  else
    launch(linear_kernel, product_grid(live.most, head.out, x.heads), kThreads, 0, step.stream, w, head, x,
           Vector{}, y, live);
}

void linear_per_head(const Graph& g, const Node& n, const Step& step) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const auto p = std::get<LinearPerHeadParams>(n.params);
  const Live live = live_rows(g, n, n.in[0], step);
  per_head(step, matrix_of(w), {p.head_rows, p.row0, p.rows}, p.transposed, values_of<float>(x),
           values_of<float>(y), live);
}

}  // namespace lite::cuda
