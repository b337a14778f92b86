// Ops that treat each row for itself.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>

#include "ggml-lite/ref/ref.h"

namespace lite::ref {

float dot(const float* a, const float* b, int64_t n) {
  float sum[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) sum[j] += a[i + j] * b[i + j];
  for (int j = 0; i < n; ++i, ++j) sum[j] += a[i] * b[i];
  for (int half = 8; half >= 1; half /= 2)
    for (int j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

float silu(float x) {
  return x / (1.0f + std::exp(-x));
}

float gelu(float x) {
  return 0.5f * x * (1.0f + std::erf(x * std::numbers::sqrt2_v<float> / 2));
}

void round_row(Rounding rounding, const float* from, float* to, int64_t n) {
  for (int64_t first = 0; first < n; first += 128) {
    const int64_t end = std::min(n, first + 128);  // the last group of a row may be short
    float largest = 1e-4f;                         // so that a group of zeros has a scale
    for (int64_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(from[i]));
    float scale = largest / 448.0f;
    if (rounding == Rounding::F8PowerOfTwo) {
      // The next power of two at or above, from the bits: a logarithm may land one too high.
      const uint32_t bits = std::bit_cast<uint32_t>(scale);
      const uint32_t exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0);
      scale = std::bit_cast<float>(std::clamp(exponent, 1u, 254u) << 23);
    }
    for (int64_t i = first; i < end; ++i) to[i] = f32_from_f8(f8_from_f32(from[i] / scale)) * scale;
  }
}

void embed(const Graph& g, const Node& n, const Team& team) {
  const Tensor& table = g.tensor(n.in[0]);
  const int32_t* ids = g.tensor(n.in[1]).row<int32_t>(0);
  const Tensor& y = g.tensor(n.out[0]);
  const auto [first, end] = team.share(g.live_rows(n, n.out[0]));
  for (int64_t t = first; t < end; ++t) decode_row(table, ids[t], y.row<float>(t));
}

void rms_norm(const Graph& g, const Node& n, const Team& team) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const float eps = std::get<NormParams>(n.params).eps;
  const int64_t size = w.shape[0];
  const auto [first, end] = team.share(g.live_rows(n, n.in[0]));
  for (int64_t t = first; t < end; ++t)
    for (int64_t h = 0; h < (x.rank == 3 ? x.shape[1] : 1); ++h) {
      const float* from = x.row<float>(t, x.rank == 3 ? h : 0);
      float* to = y.row<float>(t, y.rank == 3 ? h : 0);
      const float factor = 1.0f / std::sqrt(dot(from, from, size) / float(size) + eps);
      decode(w.dtype, w.data, to, size);
      for (int64_t i = 0; i < size; ++i) to[i] *= from[i] * factor;
    }
}

void layer_norm(const Graph& g, const Node& n, const Team& team) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]), &b = g.tensor(n.in[2]),
               &y = g.tensor(n.out[0]);
  const float eps = std::get<NormParams>(n.params).eps;
  const int64_t size = w.shape[0];
  const auto [first, end] = team.share(g.live_rows(n, n.in[0]));
  for (int64_t t = first; t < end; ++t) {
    const float* from = x.row<float>(t);
    float* to = y.row<float>(t);
    float mean = 0;
    for (int64_t i = 0; i < size; ++i) mean += from[i];
    mean /= float(size);
    for (int64_t i = 0; i < size; ++i) to[i] = from[i] - mean;
    const float factor = 1.0f / std::sqrt(dot(to, to, size) / float(size) + eps);
    for (int64_t i = 0; i < size; ++i) to[i] = to[i] * factor * element(w, i) + element(b, i);
  }
}

void rope(const Graph& g, const Node& n, const Team& team) {
  const Tensor &x = g.tensor(n.in[0]), &y = g.tensor(n.out[0]);
  const int32_t* positions = g.tensor(n.in[1]).row<int32_t>(0);
  const float* inv_freq = g.tensor(n.in[2]).row<float>(0);
  const auto [scale, interleaved] = std::get<RopeParams>(n.params);
  const int64_t half = g.tensor(n.in[2]).shape[0], heads = x.rank == 3 ? x.shape[1] : 1;
  const auto [first, end] = team.share(g.live_rows(n, n.in[0]));
  for (int64_t t = first; t < end; ++t)
    for (int64_t i = 0; i < half; ++i) {
      // The angle is rounded to f32, as every released implementation does; its cosine and sine are exact.
      const double angle = float(positions[t]) * inv_freq[i];
      const float c = float(std::cos(angle)) * scale, s = float(std::sin(angle)) * scale;
      const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
      for (int64_t h = 0; h < heads; ++h) {
        const float* from = x.rank == 3 ? x.row<float>(t, h) : x.row<float>(t);
        float* to = y.rank == 3 ? y.row<float>(t, h) : y.row<float>(t);
        const float xa = from[a], xb = from[b];
        to[a] = xa * c - xb * s;
        to[b] = xa * s + xb * c;
      }
    }
}

void stream_write(const Graph& g, const Node& n, const Team& team) {
  const Tensor& stream = g.tensor(n.in[0]);
  const int32_t* rows = g.tensor(n.in[1]).row<int32_t>(0);
  const auto [first, end] = team.share(g.live_rows(n, n.in[1]));
  for (int64_t t = first; t < end; ++t) {
    std::byte* to = stream.data + int64_t(rows[t]) * stream.stride[0];
    for (const Var part : {n.in[2], n.in[3]}) {
      if (!part) continue;
      const Tensor& x = g.tensor(part);
      encode(stream.dtype, x.row<float>(t), to, x.shape[1]);
      to += x.shape[1] * size_of(stream.dtype);
    }
  }
}

void stream_read(const Graph& g, const Node& n, const Team& team) {
  const Tensor &stream = g.tensor(n.in[0]), &y = g.tensor(n.out[0]);
  const int32_t* rows = g.tensor(n.in[1]).row<int32_t>(0);
  const auto [first, end] = team.share(g.live_rows(n, n.in[1]));
  for (int64_t t = first; t < end; ++t)
    decode(stream.dtype, stream.data + int64_t(rows[t]) * stream.stride[0], y.row<float>(t), y.shape[1]);
}

void silu_mul(const Graph& g, const Node& n, const Team& team) {
  const Tensor &gate = g.tensor(n.in[0]), &up = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const auto [first, end] = team.share(g.live_rows(n, n.in[0]));
  for (int64_t t = first; t < end; ++t)
    for (int64_t i = 0; i < y.shape[1]; ++i)
      y.row<float>(t)[i] = silu(gate.row<float>(t)[i]) * up.row<float>(t)[i];
}

void add(const Graph& g, const Node& n, const Team& team) {
  const Tensor &a = g.tensor(n.in[0]), &b = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const auto [first, end] = team.share(g.live_rows(n, n.in[0]));
  for (int64_t t = first; t < end; ++t)
    for (int64_t i = 0; i < y.shape[1]; ++i) y.row<float>(t)[i] = a.row<float>(t)[i] + b.row<float>(t)[i];
}

void concat(const Graph& g, const Node& n, const Team& team) {
  const Tensor &a = g.tensor(n.in[0]), &b = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const auto [first, end] = team.share(g.live_rows(n, n.in[0]));
  for (int64_t t = first; t < end; ++t) {
    std::memcpy(y.row<float>(t), a.row<float>(t), size_t(a.row_bytes()));
    std::memcpy(y.row<float>(t) + a.shape[1], b.row<float>(t), size_t(b.row_bytes()));
  }
}

void select_rows(const Graph& g, const Node& n, const Team& team) {
  const Tensor &x = g.tensor(n.in[0]), &y = g.tensor(n.out[0]);
  const int32_t* rows = g.tensor(n.in[1]).row<int32_t>(0);
  const auto [first, end] = team.share(g.live_rows(n, n.out[0]));
  for (int64_t r = first; r < end; ++r)
    std::memcpy(y.row<float>(r), x.row<float>(rows[r]), size_t(x.row_bytes()));
}

void copy(const Graph& g, const Node& n, const Team& team) {
  const Tensor &x = g.tensor(n.in[0]), &y = g.tensor(n.out[0]);
  const size_t bytes = size_t(x.elements() / x.shape[0] * size_of(x.dtype));
  const auto [first, end] = team.share(g.live_rows(n, n.in[0]));
  for (int64_t i = first; i < end; ++i) std::memcpy(y.row<std::byte>(i), x.row<std::byte>(i), bytes);
}

}  // namespace lite::ref
