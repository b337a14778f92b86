// Stages that treat each row for itself.
#pragma once

#include "cuda/matrix.h"
#include "cuda/stage.h"

namespace lite::cuda {

// Most stages have a thread for each element of a row: block x is the row, block y its part of kStageThreads elements.
struct Place {
  int64_t row, i;
};
__device__ inline Place place(Block at) {
  return {at.x, int64_t(at.y) * kStageThreads + thread()};
}

// The sum of a value over the block's threads, in a fixed order; every thread gets it. Takes a float of shared memory per warp.
constexpr int64_t kSumBytes = kStageWarps * int64_t(sizeof(float));
__device__ inline float block_sum(float value) {
  float* part = shared_memory<float>();
  float one[1] = {value};
  warp_sum(one);
  if (lane() == 0) part[warp()] = one[0];
  sync_block();
  float sum = 0;
  for (int w = 0; w < kStageWarps; ++w) sum += part[w];
  sync_block();
  return sum;
}

// A thread has kPiece elements.
struct Embed {
  static constexpr StageKind kKind = StageKind::Embed;
  Matrix table;
  const int32_t* ids;
  Values<float> y;
  Live live;

  __device__ void run(Block at) const {
    const auto [t, i] = place(at);
    const int64_t j = i * kPiece;
    if (t >= live.rows() || j >= table.cols) return;
    float value[kPiece];
    table.piece(ids[t], j, value);
#pragma unroll
    for (int k = 0; k < kPiece; ++k)
      if (j + k < table.cols) y.row(t)[j + k] = value[k];
  }
};

// Block x: a head of a row.
struct RmsNorm {
  static constexpr StageKind kKind = StageKind::RmsNorm;
  Values<float> x;
  Vector w;
  Values<float> y;
  float eps;
  Live live;

  __device__ void run(Block at) const {
    const int64_t t = at.x / x.heads, h = at.x % x.heads, n = x.n;
    if (t >= live.rows()) return;
    const float* from = x.row(t, h);
    float* to = y.row(t, h);
    float squares = 0;
#pragma unroll 8
    for (int64_t i = thread(); i < n; i += kStageThreads) squares += from[i] * from[i];
    const float factor = 1.0f / sqrtf(block_sum(squares) / float(n) + eps);
#pragma unroll 4
    for (int64_t i = thread(); i < n; i += kStageThreads) to[i] = from[i] * factor * w.at(i);
  }
};

struct LayerNorm {
  static constexpr StageKind kKind = StageKind::LayerNorm;
  Values<float> x;
  Vector w, bias;
  Values<float> y;
  float eps;
  Live live;

  __device__ void run(Block at) const {
    const int64_t t = at.x;
    if (t >= live.rows()) return;
    const float* from = x.row(t);
    float sum = 0;
    for (int64_t i = thread(); i < x.n; i += kStageThreads) sum += from[i];
    const float mean = block_sum(sum) / float(x.n);
    float squares = 0;
    for (int64_t i = thread(); i < x.n; i += kStageThreads) squares += (from[i] - mean) * (from[i] - mean);
    const float factor = 1.0f / sqrtf(block_sum(squares) / float(x.n) + eps);
    for (int64_t i = thread(); i < x.n; i += kStageThreads)
      y.row(t)[i] = (from[i] - mean) * factor * w.at(i) + bias.at(i);
  }
};

// Element i is pair i % (n / 2) of head i / (n / 2).
struct Rope {
  static constexpr StageKind kKind = StageKind::Rope;
  Values<float> x;
  const int32_t* positions;
  const float* inv_freq;
  Values<float> y;
  RopeParams p;
  Live live;

  __device__ void run(Block at) const {
    const auto [t, i] = place(at);
    const int64_t half = x.n / 2, h = i / half, j = i % half;
    if (t >= live.rows() || h >= x.heads) return;
    // The angle is rounded to f32, as every released implementation does; its cosine and sine are exact.
    const double angle = float(positions[t]) * inv_freq[j];
    const float c = float(cos(angle)) * p.scale, s = float(sin(angle)) * p.scale;
    const int64_t a = p.interleaved ? 2 * j : j, b = p.interleaved ? 2 * j + 1 : j + half;
    const float xa = x.row(t, h)[a], xb = x.row(t, h)[b];
    y.row(t, h)[a] = xa * c - xb * s;
    y.row(t, h)[b] = xa * s + xb * c;
  }
};

// Rows of a stream, of any float type.
struct StreamRows {
  uint8_t* data;
  int64_t stride;
  DType dtype;
};

struct StreamWrite {
  static constexpr StageKind kKind = StageKind::StreamWrite;
  StreamRows stream;
  const int32_t* rows;
  Values<float> a, b;
  Live live;

  __device__ void run(Block at) const {
    const auto [t, i] = place(at);
    if (t >= live.rows() || i >= a.n + b.n) return;
    const float value = i < a.n ? a.row(t)[i] : b.row(t)[i - a.n];
    encode(stream.dtype, value, stream.data + rows[t] * stream.stride, i);
  }
};

struct StreamRead {
  static constexpr StageKind kKind = StageKind::StreamRead;
  StreamRows stream;
  const int32_t* rows;
  Values<float> y;
  Live live;

  __device__ void run(Block at) const {
    const auto [t, i] = place(at);
    if (t < live.rows() && i < y.n)
      y.row(t)[i] = decode(stream.dtype, stream.data + rows[t] * stream.stride, i);
  }
};

struct SiluMul {
  static constexpr StageKind kKind = StageKind::SiluMul;
  Values<float> gate, up, y;
  Live live;

  __device__ void run(Block at) const {
    const auto [t, i] = place(at);
    if (t >= live.rows() || i >= y.n) return;
    const float z = gate.row(t)[i];
    y.row(t)[i] = z / (1.0f + expf(-z)) * up.row(t)[i];
  }
};

struct Add {
  static constexpr StageKind kKind = StageKind::Add;
  Values<float> a, b, y;
  Live live;

  __device__ void run(Block at) const {
    const auto [t, i] = place(at);
    if (t < live.rows() && i < y.n) y.row(t)[i] = a.row(t)[i] + b.row(t)[i];
  }
};

struct Concat {
  static constexpr StageKind kKind = StageKind::Concat;
  Values<float> a, b, y;
  Live live;

  __device__ void run(Block at) const {
    const auto [t, i] = place(at);
    if (t < live.rows() && i < y.n) y.row(t)[i] = i < a.n ? a.row(t)[i] : b.row(t)[i - a.n];
  }
};

// Row t of y is row rows[t] of x; rows null: row t.
struct CopyRows {
  static constexpr StageKind kKind = StageKind::CopyRows;
  Values<uint32_t> x;
  const int32_t* rows;
  Values<uint32_t> y;
  Live live;

  __device__ void run(Block at) const {
    const auto [t, i] = place(at);
    if (t < live.rows() && i < y.n) y.row(t)[i] = x.row(rows ? rows[t] : t)[i];
  }
};

// Rounds activations: a warp has a group.
struct Round {
  static constexpr StageKind kKind = StageKind::Round;
  Rounding rounding;
  Values<float> x, to;
  Live live;

  __device__ void run(Block at) const {
    const int64_t t = at.x, first = (int64_t(at.y) * kStageWarps + warp()) * kRoundGroup;
    if (t < live.rows() && first < x.n) round_group(rounding, x.row(t), to.row(t), first, x.n);
  }
};

}  // namespace lite::cuda
