// Products in f32 of rows of weights with a few rows of activations: the weights pass by once, as fast as memory gives them.
//
// Weights come to shared memory by asynchronous copies, 16 bytes a lane: a warp brings 512 bytes of a row at once, and several rows
// are on their way while it works on what has arrived. There a lane takes four neighbouring columns at a time (a quad), so that
// the warp reads its activations by whole lines too. The order of a sum depends on the matrix' shape alone.
#pragma once

#include "cuda/matrix.h"
#include "cuda/stage.h"

namespace lite::cuda {

constexpr int kQuad = 4;
constexpr int kSpan = kWarp * kQuad;  // columns of a warp at once
constexpr int kWarpRows = kGemvRows;  // rows of the weights that a warp has
constexpr int kLine = kWarp * 16;     // bytes of a row that a warp brings at once
// As many of them at once as its registers hold sums for: activations are read once for these.
__host__ __device__ constexpr int rows_at_once(int tokens) {
  return tokens < 8 ? kWarpRows : kWarpRows / 2;
}

// ---- quads of weights. kWords: words in memory, as many as an element has bytes; 0: what is not laid out for wide loads

// For rows [first, last] of m, which must share their scales.
__device__ inline int quad_words(const Matrix& m, int64_t first, int64_t last) {
  if (!m.wide || m.cols % kQuad != 0) return 0;
  if (m.scale && (!m.one_scale || m.col_shift < 0 || m.scale_row(first) != m.scale_row(last))) return 0;
  return m.dtype == DType::F8_E4M3 ? 1 : m.dtype == DType::F32 ? 0 : 2;
}

template <int kWords>
using Quad = Words<kWords == 0 ? 4 : kWords>;

// Element (i, j), zero beyond the last column. Out of line: it is long, and rarely what is called.
__device__ LITE_OUT_OF_LINE inline float element(const Matrix& m, int64_t i, int64_t j) {
  if (j >= m.cols) return 0;
  return decode(m.dtype, m.data + i * m.stride, j) * (m.scale ? m.scale_at(i, j) : 1.0f);
}

// Columns [j, j + 4) of row i, zeros beyond the last.
template <int kWords>
__device__ Quad<kWords> fetch(const Matrix& m, int64_t i, int64_t j) {
  if constexpr (kWords > 0) {
    return load_once<kWords>(m.data + i * m.stride + j * kWords);
  } else {
    Quad<kWords> to;
#pragma unroll
    for (int c = 0; c < kQuad; ++c) to.word[c] = bits_of(element(m, i, j + c));
    return to;
  }
}
template <int kWords>
__device__ void unpack(DType dtype, const Quad<kWords>& from, float (&to)[kQuad]) {
  if constexpr (kWords == 1) {
    f32_of_e4m3x4(from.word[0], to);
  } else if constexpr (kWords == 2) {
#pragma unroll
    for (int c = 0; c < kQuad; ++c) {
      const auto half = uint16_t(from.word[c / 2] >> 16 * (c % 2));
      to[c] = dtype == DType::BF16 ? f32_of_bf16(half) : f32_of_f16(half);
    }
  } else {
#pragma unroll
    for (int c = 0; c < kQuad; ++c) to[c] = f32_of_bits(from.word[c]);
  }
}
// The scale of a fetched quad; 1 where it is applied already.
template <int kWords>
__device__ float quad_scale(const Matrix& m, int64_t i, int64_t j) {
  if (kWords == 0 || !m.scale) return 1.0f;
  return decode(m.scale_dtype, m.scale + m.scale_row(i) * m.scale_stride, (m.col0 + j) >> m.col_shift);
}

// ---- products

// Columns of a row that a warp takes when `split` warps share it: whole spans.
struct Columns {
  int64_t begin, end;
};
__device__ inline Columns columns_of(int64_t cols, int split, int part) {
  const int64_t each = ((cols + kSpan - 1) / kSpan + split - 1) / split * kSpan;
  return {min(cols, part * each), min(cols, (part + 1) * each)};
}
// Long rows are shared, which makes enough work of a small matrix for every processor.
__host__ __device__ inline int split_of(int64_t cols) {
  int split = 1;
  while (split < kStageWarps && cols / split >= 8 * kSpan) split *= 2;
  return split;
}

// Rows of activations: row i, or row index[i], of what begins at `data`.
struct Gathered {
  const float* data;
  int64_t stride;  // elements
  const int32_t* index;
  int n;

  __device__ int64_t offset(int i) const {
    i = min(i, n - 1);
    return stride * (index ? index[i] : i);
  }
  __device__ const float* row(int i) const { return data + offset(i); }
};

// What a block's shared memory has behind the rings of its warps.
template <class T>
__device__ T* behind_rings() {
  return reinterpret_cast<T*>(shared_memory<uint8_t>() + kRingsBytes);
}

// For rows of whole pieces of 16 bytes.
template <int kWords, int kTokens, int kRows>
__device__ void add_products(const Matrix& m, const int64_t (&row)[kRows], const float* x,
                             const uint32_t (&quad)[kTokens], Columns columns,
                             float (&sum)[kTokens * kRows]) {
  constexpr int kPart = kLine / kWords, kSpans = kPart / kSpan;          // columns that are brought together
  constexpr int kParts = int(kRingBytes) / (kRows * kLine);              // of the ring
  uint8_t* const ring = shared_memory<uint8_t>() + warp() * kRingBytes;  // [kParts][kRows][kLine]
  const uint8_t* data[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) data[r] = m.data + row[r] * m.stride;
  const auto bring = [&](int64_t begin, int place) {
    const int64_t j = begin + lane() * (16 / kWords);
    if (j < columns.end)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        copy16_async(ring + (place * kRows + r) * kLine + lane() * 16, data[r] + j * kWords);
    commit_copies();
  };
  const uint8_t* scales = m.scale ? m.scale + m.scale_row(row[0]) * m.scale_stride : nullptr;
  const DType dtype = m.dtype, scale_dtype = m.scale_dtype;
  const int64_t col0 = m.col0;
  const int col_shift = m.col_shift;
#pragma unroll
  for (int p = 0; p < kParts; ++p) bring(columns.begin + p * kPart, p);
  int place = 0;
#pragma unroll 1
  for (int64_t begin = columns.begin; begin < columns.end; begin += kPart) {
    const int64_t j0 = begin + lane() * kQuad;
    float scale[kSpans];
#pragma unroll
    for (int u = 0; u < kSpans; ++u) {
      const int64_t j = j0 + u * kSpan;
      scale[u] = scales && j < columns.end ? decode(scale_dtype, scales, (col0 + j) >> col_shift) : 1.0f;
    }
    wait_copies<kParts - 1>();
    sync_warp();  // every lane's have arrived
#pragma unroll
    for (int u = 0; u < kSpans; ++u) {
      const int64_t j = j0 + u * kSpan;
      if (j >= columns.end) continue;
      float w[kRows][kQuad];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        unpack<kWords>(
            dtype, load<kWords>(ring + (place * kRows + r) * kLine + (u * kSpan + lane() * kQuad) * kWords),
            w[r]);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const Words<4> four = load<4>(x + j + quad[t] * int64_t(kQuad));
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float part = w[r][0] * f32_of_bits(four.word[0]);
#pragma unroll
          for (int c = 1; c < kQuad; ++c) part += w[r][c] * f32_of_bits(four.word[c]);
          sum[t * kRows + r] += scale[u] * part;
        }
      }
    }
    sync_warp();  // all have read
    bring(begin + kParts * kPart, place);
    place = place + 1 == kParts ? 0 : place + 1;
  }
  wait_copies<0>();
}

// Any matrix, any activations: a sum after the other.
template <int kTokens>
__device__ LITE_OUT_OF_LINE float products_of_any(const Matrix& m, int64_t first, int64_t last,
                                                  const Gathered& x, Columns columns) {
  constexpr int kRows = rows_at_once(kTokens);
  float sum[kTokens * kRows];
#pragma unroll 1
  for (int i = 0; i < kTokens * kRows; ++i) {
    const int64_t row = min(first + i % kRows, last);
    const float* from = x.row(i / kRows);
    sum[i] = 0;
#pragma unroll 1
    for (int64_t j = columns.begin + lane(); j < columns.end; j += kWarp)
      sum[i] += element(m, row, j) * from[j];
  }
  return warp_sums(sum);
}

// By a whole warp, whose kWarpRows rows of m begin at `mine`: `columns` of rows_at_once() of them from the r-th on, or of row
// `last` instead of those that follow it, times those of x. Of the sums a lane has the one at place_of_sum(). How they are made is
// decided for all rows of the warp alike, as more or fewer tokens take them in other portions.
template <int kTokens>
__device__ float products(const Matrix& m, int64_t mine, int r0, int64_t last, const Gathered& rows,
                          Columns columns) {
  constexpr int kRows = rows_at_once(kTokens);
  const int64_t first = mine + r0;
  int64_t row[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) row[r] = min(first + r, last);
  uint32_t quad[kTokens];  // where the rows of x begin: half a register of an address
#pragma unroll
  for (int t = 0; t < kTokens; ++t) quad[t] = uint32_t(rows.offset(t) / kQuad);
  const bool aligned = reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.stride % kQuad == 0;
  const int words = aligned ? quad_words(m, mine, min(mine + kWarpRows - 1, last)) : 0;
  if (words == 0 || m.cols * words % 16 != 0) return products_of_any<kTokens>(m, first, last, rows, columns);
  float sum[kTokens * kRows] = {};
  if (words == 1)
    add_products<1>(m, row, rows.data, quad, columns, sum);
  else
    add_products<2>(m, row, rows.data, quad, columns, sum);
  return warp_sums(sum);
}
// Where the lane's sum belongs in [token][kWarpRows]. Several lanes may have the same.
template <int kTokens>
__device__ int place_of_sum() {
  constexpr int kRows = rows_at_once(kTokens);
  const int i = lane() / (kWarp / (kTokens * kRows));
  return i / kRows * kWarpRows + i % kRows;
}
// Whether the lane is the one that stores the sum at its place.
template <int kTokens>
__device__ bool stores_sum() {
  return lane() % (kWarp / (kTokens * rows_at_once(kTokens))) == 0;
}

// Calls f.run_tokens<k>(args...) with the least k of 1, 2, 4 and 8 that n is not more than; n is at most kMost.
template <int kMost, int k = 1, class F, class... A>
__device__ void with_tokens(int64_t n, const F& f, const A&... args) {
  if constexpr (k == kMost) {
    f.template run_tokens<k>(args...);
  } else if (n <= k) {
    f.template run_tokens<k>(args...);
  } else {
    with_tokens<kMost, 2 * k>(n, f, args...);
  }
}
constexpr int64_t tokens_of_block(int64_t rows) {
  return std::min<int64_t>(kTogether, int64_t(std::bit_ceil(uint64_t(rows))));
}

}  // namespace lite::cuda
