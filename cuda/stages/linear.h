// Stages of products with weight matrices.
#pragma once

#include "cuda/gemv.h"

namespace lite::cuda {

// For head block z of x and y; a linear map has one. Block y: kTogether rows of x. A block's warps come in groups of `split`,
// which share kWarpRows rows of the weights.
struct Linear {
  static constexpr StageKind kKind = StageKind::Linear;
  Matrix w;
  Head head;
  Values<float> x;
  Vector bias;
  Values<float> y;
  Live live;
  Added added;

  __host__ __device__ int64_t rows_of_block() const { return kStageWarps / split_of(w.cols) * kWarpRows; }

  template <int kMost>
  __device__ void run(BlockOf<kMost> at) const {
    const int64_t n = min(int64_t(kTogether), live.rows() - int64_t(at.y) * kTogether);
    if (n > 0) with_tokens<kMost>(n, *this, at, n);
  }

  template <int kTokens>
  __device__ void run_tokens(Block at, int64_t n) const {
    constexpr int sums = kTokens * kWarpRows;
    const int split = split_of(w.cols);
    const int64_t first = int64_t(at.y) * kTogether, h = at.z, out = at.x * rows_of_block();
    float* part = behind_rings<float>();  // [kStageWarps][sums]
    const int64_t mine = out + warp() / split * kWarpRows;
    if (mine < head.out) {
      const int64_t row0 = h * head.rows + head.row0;
      const Gathered from = {x.row(first, h), x.row_stride, nullptr, int(n)};
      const Columns columns = columns_of(w.cols, split, warp() % split);
#pragma unroll 1
      for (int r = 0; r < kWarpRows; r += rows_at_once(kTokens)) {
        const float sum = products<kTokens>(w, row0 + mine, r, row0 + head.out - 1, from, columns);
        if (stores_sum<kTokens>()) part[warp() * sums + r + place_of_sum<kTokens>()] = sum;
      }
    }
    sync_block();
    const int group = thread() / sums, t = thread() % sums / kWarpRows;
    const int64_t i = out + group * kWarpRows + thread() % kWarpRows;
    if (group >= kStageWarps / split || t >= n || i >= head.out) return;
    float sum = 0;
    for (int k = 0; k < split; ++k) sum += part[(group * split + k) * sums + thread() % sums];
    sum += bias.data ? bias.at(i) : 0.0f;
    y.row(first + t, h)[i] = sum;
    added.put(first + t, i, sum);
  }
};

// y_h = W_h^T x_h for head block z, rows of x as in Linear. A block has kSpan columns, and its warps take turns at the rows.
struct Transposed {
  static constexpr StageKind kKind = StageKind::Transposed;
  Matrix w;
  Head head;
  Values<float> x, y;
  Live live;

  __host__ int64_t shared_bytes() const {
    return kStageWarps * kSpan * tokens_of_block(live.most) * int64_t(sizeof(float));
  }

  template <int kMost>
  __device__ void run(BlockOf<kMost> at) const {
    const int64_t n = min(int64_t(kTogether), live.rows() - int64_t(at.y) * kTogether);
    if (n > 0) with_tokens<kMost>(n, *this, at, n);
  }

  template <int kTokens>
  __device__ void run_tokens(Block at, int64_t n) const {
    const int64_t first = int64_t(at.y) * kTogether, h = at.z,
                  column = int64_t(at.x) * kSpan + lane() * kQuad;
    float sum[kTokens][kQuad] = {};
    if (column < w.cols) {
      const int64_t row0 = h * head.rows + head.row0;
      switch (quad_words(w, row0, row0)) {
        case 1: add_rows<1>(row0, first, n, h, column, sum); break;
        case 2: add_rows<2>(row0, first, n, h, column, sum); break;
        default: add_rows<0>(row0, first, n, h, column, sum); break;
      }
    }
    float* part = shared_memory<float>();  // [kStageWarps][kTokens][kSpan]
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
#pragma unroll
      for (int c = 0; c < kQuad; ++c) part[(warp() * kTokens + t) * kSpan + lane() * kQuad + c] = sum[t][c];
    sync_block();
    for (int i = thread(); i < n * kSpan; i += kStageThreads) {
      const int64_t j = int64_t(at.x) * kSpan + i % kSpan;
      if (j >= w.cols) continue;
      float all = 0;
      for (int k = 0; k < kStageWarps; ++k) all += part[k * kTokens * kSpan + i];
      y.row(first + i / kSpan, h)[j] = all;
    }
  }

  template <int kWords, int kTokens>
  __device__ void add_rows(int64_t row0, int64_t first, int64_t n, int64_t h, int64_t column,
                           float (&sum)[kTokens][kQuad]) const {
    const float* from[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) from[t] = x.row(first + min(int64_t(t), n - 1), h);
#pragma unroll 2
    for (int64_t i = warp(); i < head.out; i += kStageWarps) {
      float v[kQuad];
      unpack<kWords>(w.dtype, fetch<kWords>(w, row0 + i, column), v);
      const float scale = quad_scale<kWords>(w, row0 + i, column);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float factor = from[t][i] * scale;
#pragma unroll
        for (int c = 0; c < kQuad; ++c) sum[t][c] += factor * v[c];
      }
    }
  }
};

}  // namespace lite::cuda
