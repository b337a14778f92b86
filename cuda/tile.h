// Products of many rows of activations with weights by the matrix unit: what prompts take (product.cu, moe_prompt.cu).
//
// A block of 8 warps makes one tile of y = x W^T. It walks along K in chunks of 64, which asynchronous copies bring to shared
// memory some chunks ahead: activations rounded to bf16 beforehand, weights as they are stored. These become bf16 in registers,
// exactly, as bf16 holds every value of e4m3. Sums are f32, of codes; scales are brought in every 128 columns. All of this goes
// by K alone, so tiles of every shape give a row the same bits.
#pragma once

#include "cuda/matrix.h"

namespace lite::cuda {

constexpr int kTileThreads = 256, kTileWarps = kTileThreads / kWarp;
constexpr int kChunk = kTileChunk;   // columns of a chunk
constexpr int kWarpRows = 64;        // rows of activations of one warp
constexpr int kRowFragments = 4;     // of 16
constexpr int64_t kGroupCols = 128;  // columns within which no scale changes

// By a whole warp: 128 values beginning at `first` of a row of n, or what is left of it and the zeros behind it. With factors
// the values are those of e4m3 codes.
__device__ inline void round_row(Rounding rounding, const float* from, int64_t n, int64_t first,
                                 const RoundedRows& to, int64_t row) {
  const float scale = to.factor ? group_scale(rounding, from, first, min(n, first + kRoundGroup)) : 1.0f;
  const int64_t end = min((n + kChunk - 1) / kChunk * kChunk, first + kRoundGroup);
  for (int64_t i = first + lane(); i < end; i += kWarp) {
    const float value = i < n ? from[i] : 0.0f;
    to.data[row * to.stride + i] = bf16_of(to.factor ? f32_of_e4m3(e4m3_of(value / scale)) : value);
  }
  if (to.factor && lane() == 0) to.factor[row * to.groups + first / kRoundGroup] = scale;
}

// What tiles can be made of. Of other weights bf16 does not hold every value, or their pieces of 16 bytes lie elsewhere, or
// their scales change elsewhere than every 128 columns: those products stay f32 (linear.cu, moe.cu).
inline bool fits_tiles(const Matrix& m) {
  return held_by_bf16(m.dtype) && m.wide && m.cols * size_of(m.dtype) % 16 == 0 &&
         (!m.scale || (m.block_cols % kGroupCols == 0 && m.col0 % kGroupCols == 0));
}

// Four codes of e4m3 as bf16, in order. The bits of a code are those of a bf16 2^120 times too small; NaNs become 480.
__device__ inline void bf16_of_e4m3x4(uint32_t codes, uint32_t (&to)[2]) {
  constexpr uint32_t kFactor = 0x7B807B80;  // 2^120, twice
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t high =
        select_bytes(codes, i == 0 ? 0x1404 : 0x3424);  // each code the upper byte of a half
    to[i] = multiply_bf16x2((high & 0x80008000) | (high >> 4 & 0x07F007F0), kFactor);
  }
}

// Where a row's piece of 16 bytes of a chunk lies in shared memory, so that lanes which read the same pieces of several rows
// meet no bank twice.
template <int kRowBytes>
__device__ int piece_at(int row, int piece) {
  return row * kRowBytes + (piece ^ (kRowBytes == 128 ? row % 2 * 4 : row / 2 % 2 * 2)) * 16;
}

// A row of weights of a tile.
struct WeightRow {
  const Matrix* matrix;
  int64_t row;
};

// What each kGroupCols columns of a row of weights or of activations are to be multiplied by.
struct Factors {
  const uint8_t* data;  // null: all are 1
  DType dtype;
  uint32_t first, per;

  __device__ float at(int i) const { return data ? decode(dtype, data, (first + uint32_t(i)) / per) : 1.0f; }
};

// A scale to divide by: 0 and what is next to it count as 2^-80.
__device__ inline float divisor(float scale) {
  return fabsf(scale) < 0x1p-80f ? 0x1p-80f : scale;
}

// Tiles of weights of type kType; kDown of the block's warps lie below each other, and each has kColFragments times 8 columns.
template <DType kType, int kDown, int kColFragments>
struct Tile {
  static constexpr int kAcross = kTileWarps / kDown, kFragments = kColFragments, kWarpCols = 8 * kFragments;
  static constexpr int kRows = kDown * kWarpRows, kCols = kAcross * kWarpCols;
  static constexpr bool kF8 = kType == DType::F8_E4M3;
  static constexpr int kRowBytes = kF8 ? kChunk : 2 * kChunk;  // of weights in a chunk
  static constexpr int kXBytes = kRows * 2 * kChunk, kStage = kXBytes + kCols * kRowBytes;
  static constexpr int kFactors = kCols + kRows;  // for columns, then for rows
  static constexpr int kFactorBytes = 2 * kFactors * int(sizeof(float));
  static constexpr int kStages = std::min(4, (int(kSharedMost) - kFactorBytes) / kStage);
  static constexpr int64_t kShared = kFactorBytes + kStages * kStage;
  static_assert(kStages >= 2);

  // [row fragment][column fragment]: places as multiply() has them.
  using Sums = float[kRowFragments][kFragments][4];

  // The warp's first row and column in the tile; the lane's in a fragment.
  static __device__ int row0() { return warp() / kAcross * kWarpRows; }
  static __device__ int col0() { return warp() % kAcross * kWarpCols; }
  static __device__ int row(int fragment, int i) { return row0() + fragment * 16 + lane() / 4 + i / 2 * 8; }
  static __device__ int col(int fragment, int i) { return col0() + fragment * 8 + lane() % 4 * 2 + i % 2; }

  // Sums over k columns for the first `rows` rows and, by warps, the first `cols` columns. x_row(r) is the row of x that is
  // the tile's row r; it is also asked beyond `rows` and answers with any. weight_row(c) is the WeightRow of column c, which
  // may lie beyond its matrix; of columns c, c + 32, c + 64, ... these are at equal distances in one matrix.
  template <class XRow, class Weights>
  static __device__ void multiply_all(int64_t k, const RoundedRows& x, const XRow& x_row, int rows,
                                      const Weights& weight_row, int cols, Sums& sum);

 private:
  static __device__ void multiply_chunk(const uint8_t* stage, int fragments, Sums& sum);
};

// The order of columns within a chunk is free if both sides have it. A lane's in step s are 32 (s / 2) + 8 (lane % 4) + 4 (s % 2) + {0, 1,
// 2, 3}: for two steps it needs 8 in sequence.
template <DType kType, int kDown, int kColFragments>
__device__ void Tile<kType, kDown, kColFragments>::multiply_chunk(const uint8_t* stage, int fragments,
                                                                  Sums& sum) {
  const int g = lane() / 4, c = lane() % 4;
  const uint8_t* const weights = stage + kXBytes;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t b[kFragments][2][2];  // [][step]
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int row = col0() + 8 * f + g;
      if constexpr (kF8) {
        const Words2 codes = load8(weights + piece_at<kRowBytes>(row, 2 * half + c / 2) + c % 2 * 8);
#pragma unroll
        for (int step = 0; step < 2; ++step) bf16_of_e4m3x4(codes.word[step], b[f][step]);
      } else {
        const Words4 eight = load16(weights + piece_at<kRowBytes>(row, 4 * half + c));
#pragma unroll
        for (int i = 0; i < 4; ++i) b[f][i / 2][i % 2] = eight.word[i];
      }
    }
#pragma unroll
    for (int r = 0; r < kRowFragments; ++r) {
      if (r >= fragments) continue;
      const int row = row0() + 16 * r + g, piece = 4 * half + c;
      const Words4 upper = load16(stage + piece_at<128>(row, piece)),
                   lower = load16(stage + piece_at<128>(row + 8, piece));
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t a[4] = {upper.word[2 * step], lower.word[2 * step], upper.word[2 * step + 1],
                               lower.word[2 * step + 1]};
#pragma unroll
        for (int f = 0; f < kFragments; ++f) multiply(sum[r][f], a, b[f][step]);
      }
    }
  }
}

template <DType kType, int kDown, int kColFragments>
template <class XRow, class Weights>
__device__ void Tile<kType, kDown, kColFragments>::multiply_all(int64_t k, const RoundedRows& x,
                                                                const XRow& x_row, int rows,
                                                                const Weights& weight_row, int cols,
                                                                Sums& sum) {
  constexpr int kXPieces = 8, kWPieces = kRowBytes / 16;  // of 16 bytes in a row of a chunk
  constexpr int kXCopies = kRows * kXPieces / kTileThreads, kWCopies = kCols * kWPieces / kTileThreads;
  constexpr int kOwn = (kFactors + kTileThreads - 1) / kTileThreads;
  float* const factors = shared_memory<float>();  // [2][kFactors], by turns
  uint8_t* const stages = shared_memory<uint8_t>() + kFactorBytes;
  const int chunks = int((k + kChunk - 1) / kChunk), groups = int((k + kGroupCols - 1) / kGroupCols);

  // What this thread copies of every chunk: pieces of rows at equal distances.
  constexpr int kXGap = kTileThreads / kXPieces, kWGap = kTileThreads / kWPieces;
  const int x_piece = thread() % kXPieces, x_first = thread() / kXPieces;
  const int w_piece = thread() % kWPieces, w_first = thread() / kWPieces;
  int x_from[kXCopies];
#pragma unroll
  for (int i = 0; i < kXCopies; ++i) x_from[i] = int(x_row(x_first + i * kXGap));
  const int x_stride = int(x.stride);
  const WeightRow w = weight_row(w_first);
  const int64_t w_gap = weight_row(w_first + kWGap).row - w.row, w_step = w_gap * w.matrix->stride;
  const int w_rows = int(max(int64_t(0), (w.matrix->rows - w.row + w_gap - 1) / w_gap));  // inside the matrix
  const uint8_t* const w_from = w.matrix->data + w.row * w.matrix->stride + w_piece * 16;
  const auto bring = [&](int chunk, int place) {
    uint8_t* const stage = stages + place * kStage;
    const uint16_t* const x_now = x.data + chunk * kChunk + x_piece * 8;
#pragma unroll
    for (int i = 0; i < kXCopies; ++i)
      copy16_async(stage + piece_at<128>(x_first + i * kXGap, x_piece),
                   x_now + int64_t(x_from[i]) * x_stride);
    const int64_t at = int64_t(chunk) * kRowBytes;
    const int there = at + w_piece * 16 < k * (kF8 ? 1 : 2) ? w_rows : 0;
#pragma unroll
    for (int i = 0; i < kWCopies; ++i) {
      const int row = w_first + i * kWGap;
      uint8_t* const to = stage + kXBytes + piece_at<kRowBytes>(row, w_piece);
      if (i < there)
        copy16_async(to, w_from + i * w_step + at);
      else
        *reinterpret_cast<Words4*>(to) = {};
    }
  };

  // The scales of rows and columns, of which this thread looks after one or two, change every 128 columns. The sums are kept in
  // the unit of the last columns: before others come, they are multiplied by (old scale / new scale), and at the end, where the
  // unit becomes 1, by the scale.
  Factors own[kOwn];
  float unit[kOwn], next[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int place = thread() + i * kTileThreads;
    own[i] = {nullptr, DType::F32, 0, 1};
    if (place < kCols) {
      const auto [matrix, row] = weight_row(place);
      const Matrix& m = *matrix;
      if (m.scale && row < m.rows)
        own[i] = {m.scale + (m.row0 + row) / m.block_rows * m.scale_stride, m.scale_dtype,
                  uint32_t(m.col0 / kGroupCols), uint32_t(m.block_cols / kGroupCols)};
    } else if (place < kFactors && x.factor) {
      own[i].data = reinterpret_cast<const uint8_t*>(x.factor + x_row(place - kCols) * x.groups);
    }
  }
  const auto read_scales = [&](int group) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) next[i] = group < groups ? own[i].at(group) : 1.0f;
  };
  const auto put_factors = [&](int group) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float scale = divisor(next[i]);
      if (thread() + i * kTileThreads < kFactors)
        factors[group % 2 * kFactors + thread() + i * kTileThreads] = unit[i] / scale;
      unit[i] = scale;
    }
  };
  const auto change_unit = [&](int group) {
    const float* const of_cols = factors + group % 2 * kFactors;
    const float* const of_rows = of_cols + kCols;
#pragma unroll
    for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[r][f][i] *= of_cols[col(f, i)];
    if (!x.factor) return;
#pragma unroll
    for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[r][f][i] *= of_rows[row(r, i)];
  };

#pragma unroll
  for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[r][f][i] = 0;
  const int fragments = col0() < cols ? min(kRowFragments, (rows - row0() + 15) / 16) : 0;

  read_scales(0);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) unit[i] = divisor(next[i]);
  read_scales(1);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < chunks) bring(i, i);
    commit_copies();
  }
  for (int chunk = 0, stage = 0; chunk < chunks; ++chunk) {
    const int group = chunk / 2, free = stage == 0 ? kStages - 1 : stage - 1;
    wait_copies<kStages - 2>();
    sync_block();
    if (chunk + kStages - 1 < chunks) bring(chunk + kStages - 1, free);
    commit_copies();
    if (chunk % 2 == 0) {
      if (chunk > 0) change_unit(group);
      put_factors(group + 1);
      read_scales(group + 2);
    }
    multiply_chunk(stages + stage * kStage, fragments, sum);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  sync_block();
  change_unit(groups);
}

}  // namespace lite::cuda
