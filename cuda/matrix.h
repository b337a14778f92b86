// What kernels read: rows of activations, and weights of every type, decoded exactly.
#pragma once

#include <algorithm>
#include <bit>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "ggml-lite/graph.h"

namespace lite::cuda {

// ---- rows of activations

// How many leading rows are live: a count of the step's in the device's memory, or always the same.
struct Live {
  const int32_t* count;
  int64_t most;

  __device__ int64_t rows() const { return count ? *count : most; }
};

inline Live live_rows(const Graph& g, const Node& n, Var v, const Step& step) {
  const Value& x = g.value(v);
  if (x.rows == Rows::Fixed) return {nullptr, x.tensor.shape[0]};
  return {g.tensor(n.counts).row<int32_t>(0) + (x.rows == Rows::Tokens ? kTokens : kOutputs),
          std::min(x.tensor.shape[0], step.rows)};
}

// A value [rows, heads, n] of 4-byte elements; strides count elements.
template <class T>
struct Values {
  T* data;
  int64_t row_stride, head_stride;
  int64_t heads, n;

  __device__ T* row(int64_t t, int64_t h = 0) const { return data + t * row_stride + h * head_stride; }
};

template <class T>
Values<T> values_of(const Tensor& t) {
  const bool by_head = t.rank == 3;
  return {t.row<T>(0), t.stride[0] / 4, by_head ? t.stride[1] / 4 : 0, by_head ? t.shape[1] : 1,
          t.rank == 1 ? 1 : t.shape[t.rank - 1]};
}

// To what a node makes something is added at once: y = x + it. Without y: nothing is.
struct Added {
  Values<float> x, y;

  __device__ void put(int64_t t, int64_t i, float value) const {
    if (y.data) y.row(t)[i] = x.row(t)[i] + value;
  }
};
inline Added added_of(const Graph& g, const Node& n, const Step& step) {
  if (!step.sum) return {};
  const Node& sum = *step.sum;
  const Var other = sum.in[0].id == n.out[0].id ? sum.in[1] : sum.in[0];
  return {values_of<float>(g.tensor(other)), values_of<float>(g.tensor(sum.out[0]))};
}

// ---- weights

__device__ inline float decode(DType dtype, const uint8_t* data, int64_t i) {
  switch (dtype) {
    case DType::F32: return reinterpret_cast<const float*>(data)[i];
    case DType::BF16: return f32_of_bf16(reinterpret_cast<const uint16_t*>(data)[i]);
    case DType::F16: return f32_of_f16(reinterpret_cast<const uint16_t*>(data)[i]);
    case DType::F8_E4M3: return f32_of_e4m3(data[i]);
    default: return 0;
  }
}
__device__ inline void encode(DType dtype, float value, uint8_t* data, int64_t i) {
  switch (dtype) {
    case DType::F32: reinterpret_cast<float*>(data)[i] = value; return;
    case DType::BF16: reinterpret_cast<uint16_t*>(data)[i] = bf16_of(value); return;
    case DType::F16: reinterpret_cast<uint16_t*>(data)[i] = f16_of(value); return;
    case DType::F8_E4M3: data[i] = e4m3_of(value); return;
    default: return;
  }
}

struct Vector {
  const uint8_t* data;  // or null
  DType dtype;

  __device__ float at(int64_t i) const { return decode(dtype, data, i); }
};
inline Vector vector_of(const Tensor& t) {
  return {reinterpret_cast<const uint8_t*>(t.data), t.dtype};
}

// A matrix is read in pieces of a row: with 16 values a lane loads 16 bytes of FP8 at once, and a scale holds for all of them.
constexpr int kPiece = 16;

struct Matrix {
  const uint8_t* data;
  int64_t stride;  // bytes
  int64_t rows, cols;
  const uint8_t* scale;  // or null
  int64_t scale_stride;  // bytes
  int64_t block_rows, block_cols, row0, col0;
  DType dtype, scale_dtype;
  bool wide;       // rows begin at multiples of 16 bytes
  bool one_scale;  // no piece crosses a border between scales
  int col_shift;   // of which block_cols is the power of two, or -1

  __device__ int64_t scale_row(int64_t i) const { return uint32_t(row0 + i) / uint32_t(block_rows); }
  __device__ float scale_at(int64_t i, int64_t j) const {
    return decode(scale_dtype, scale + scale_row(i) * scale_stride, (col0 + j) / block_cols);
  }
  // Elements [j, j + kPiece) of row i; zeros beyond the last.
  __device__ void piece(int64_t i, int64_t j, float (&to)[kPiece]) const {
    const uint8_t* row = data + i * stride;
    if (wide && j + kPiece <= cols) {
      if (dtype == DType::F8_E4M3) {
        const Words4 codes = load16(row + j);
#pragma unroll
        for (int k = 0; k < 4; ++k) f32_of_e4m3x4(codes.word[k], to + 4 * k);
      } else if (dtype == DType::F32) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const Words4 four = load16(row + 4 * j + 16 * k);
#pragma unroll
          for (int m = 0; m < 4; ++m) to[4 * k + m] = f32_of_bits(four.word[m]);
        }
      } else {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const Words4 eight = load16(row + 2 * j + 16 * k);
#pragma unroll
          for (int m = 0; m < 4; ++m) {
            const uint16_t low = uint16_t(eight.word[m]), high = uint16_t(eight.word[m] >> 16);
            to[8 * k + 2 * m] = dtype == DType::BF16 ? f32_of_bf16(low) : f32_of_f16(low);
            to[8 * k + 2 * m + 1] = dtype == DType::BF16 ? f32_of_bf16(high) : f32_of_f16(high);
          }
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) to[k] = j + k < cols ? decode(dtype, row, j + k) : 0.0f;
    }
    if (!scale) return;
    const float first = scale_at(i, j);
#pragma unroll
    for (int k = 0; k < kPiece; ++k)
      if (one_scale)
        to[k] *= first;
      else if (j + k < cols)
        to[k] *= scale_at(i, j + k);
  }
};

inline Matrix matrix_of(const Tensor& t) {
  const Scale& s = t.scale;
  Matrix m = {};
  m.data = reinterpret_cast<const uint8_t*>(t.data);
  m.stride = t.stride[0];
  m.rows = t.shape[0];
  m.cols = t.shape[1];
  m.dtype = t.dtype;
  m.wide = (reinterpret_cast<uintptr_t>(t.data) | uintptr_t(t.stride[0])) % 16 == 0;
  if (!s.data) return m;
  m.scale = reinterpret_cast<const uint8_t*>(s.data);
  m.scale_dtype = s.dtype;
  m.scale_stride = s.row_stride;
  m.block_rows = s.block_rows;
  m.block_cols = s.block_cols;
  m.row0 = s.row0;
  m.col0 = s.col0;
  m.one_scale = s.block_cols % kPiece == 0 && s.col0 % kPiece == 0;
  m.col_shift = std::has_single_bit(uint64_t(s.block_cols)) ? std::countr_zero(uint64_t(s.block_cols)) : -1;
  return m;
}

// ---- products

__device__ inline int lane() {
  return thread() % kWarp;
}
__device__ inline int warp() {
  return thread() / kWarp;
}

// Elements [0, kPiece) of x, zeros from n on.
__device__ inline void activations(const float* x, int64_t n, float (&to)[kPiece]) {
  if (n >= kPiece && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Words4 four = load16(x + 4 * k);
#pragma unroll
      for (int m = 0; m < 4; ++m) to[4 * k + m] = f32_of_bits(four.word[m]);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kPiece; ++k) to[k] = k < n ? x[k] : 0.0f;
}

// By a whole warp: sum[r * kTogether + t] = row[r] of m times x[t], for t < n; every lane gets them. Lanes take turns at
// pieces, so the order of a sum depends on its length alone.
template <int kRows>
__device__ void products(const Matrix& m, const int64_t (&row)[kRows], const float* const (&x)[kTogether],
                         int n, float (&sum)[kRows * kTogether]) {
#pragma unroll
  for (float& s : sum) s = 0;
  for (int64_t j = lane() * kPiece; j < m.cols; j += kWarp * kPiece) {
    float w[kRows][kPiece];
#pragma unroll
    for (int r = 0; r < kRows; ++r) m.piece(row[r], j, w[r]);
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      if (t >= n) continue;
      float v[kPiece];
      activations(x[t] + j, m.cols - j, v);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float part = 0;
#pragma unroll
        for (int k = 0; k < kPiece; ++k) part += w[r][k] * v[k];
        sum[r * kTogether + t] += part;
      }
    }
  }
  warp_sum(sum);
}

// Of a matrix of which each head owns `rows` rows: those that are used are [row0, row0 + out).
struct Head {
  int64_t rows, row0, out;
};

// The kernels of linear_per_head (ops.h).
void per_head(const Step& step, const Matrix& w, const Head& head, bool transposed, const Values<float>& x,
              const Values<float>& y, const Live& live);

// ---- rounding (Rounding in graph.h)

// By a whole warp: the scale of values [first, end) of a row.
__device__ inline float group_scale(Rounding rounding, const float* from, int64_t first, int64_t end) {
  float largest = 1e-4f;  // so that a group of zeros has a scale
  for (int64_t i = first + lane(); i < end; i += kWarp) largest = fmaxf(largest, fabsf(from[i]));
  for (int mask = kWarp / 2; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
  float scale = largest / 448.0f;
  if (rounding == Rounding::F8PowerOfTwo) {  // the next power of two at or above, from the bits
    const uint32_t bits = bits_of(scale), exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0);
    scale = f32_of_bits(min(max(exponent, 1u), 254u) << 23);
  }
  return scale;
}

// By a whole warp: 128 values beginning at `first` of a row of n, or what is left of it. From and to may be the same.
__device__ inline void round_group(Rounding rounding, const float* from, float* to, int64_t first,
                                   int64_t n) {
  const int64_t end = min(n, first + kRoundGroup);
  const float scale = group_scale(rounding, from, first, end);
  for (int64_t i = first + lane(); i < end; i += kWarp) to[i] = f32_of_e4m3(e4m3_of(from[i] / scale)) * scale;
}

}  // namespace lite::cuda
