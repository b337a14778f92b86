// What the kernels of attention in prompts share: where keys and values are, and which queries a block has.
#pragma once

#include "cuda/matrix.h"
#include "ggml-lite/kv.h"

namespace lite::cuda {

constexpr int kPad = 8;  // elements after a row in shared memory: 16 bytes of 8 rows are in different banks

// The sequences of the step (StepInputs).
struct Sequences {
  const int32_t *counts, *seqs, *blocks;
  int64_t blocks_stride;

  __device__ int64_t n() const { return counts[kSequences]; }
  __device__ int64_t first(int64_t s) const { return seqs[3 * s]; }
  __device__ int64_t count(int64_t s) const { return seqs[3 * s + 1]; }
  __device__ int64_t length(int64_t s) const { return seqs[3 * s + 2]; }
  __device__ int64_t row(int64_t s, int64_t position) const {  // of the stream
    return blocks[s * blocks_stride + position / kBlockRows] * kBlockRows + position % kBlockRows;
  }
};

// A key, a value, or a part of one, of every position and group.
struct Part {
  const uint8_t* data;
  int64_t row_stride, group_stride;  // bytes
  int64_t n;
  DType dtype;
  bool in_chunk;  // rows of the round's chunk, not of the stream
  bool wide;      // bf16 in whole pieces of 16 bytes

  __device__ const uint8_t* at(int64_t stream_row, int64_t chunk_row, int64_t group) const {
    return data + (in_chunk ? chunk_row : stream_row) * row_stride + group * group_stride;
  }
};

inline Part part_of(const void* data, int64_t row_stride, int64_t group_stride, int64_t n, DType dtype) {
  const bool wide =
      dtype == DType::BF16 && n % 8 == 0 &&
      (reinterpret_cast<uintptr_t>(data) | uintptr_t(row_stride) | uintptr_t(group_stride)) % 16 == 0;
  return {static_cast<const uint8_t*>(data), row_stride, group_stride, n, dtype, false, wide};
}

// Starts to bring values [j, j + 8) of a row of n to shared memory; zeros beyond the last, or all if the row is dead.
__device__ inline void bring8(const Part& part, const uint8_t* row, int64_t j, bool live, uint16_t* to) {
  if (part.wide && live && j < part.n) {
    copy16_async(to, row + 2 * j);
    return;
  }
#pragma unroll 1  // rarely taken, and must not take registers from what is
  for (int k = 0; k < 8; ++k)
    to[k] = live && j + k < part.n ? bf16_of(decode(part.dtype, row, j + k)) : uint16_t(0);
}

// Starts to bring rows that follow each other to shared memory, `stride` elements apart.
template <int kRows, int kThreads>
__device__ void bring_rows(const Part& part, const uint8_t* row0, int64_t live, uint16_t* to, int stride) {
  constexpr int kOfRow = 8;  // threads of a row: 128 bytes that follow each other
  for (int r = thread() / kOfRow; r < kRows; r += kThreads / kOfRow)
    for (int64_t j = thread() % kOfRow * 8; j < padded(part.n); j += kOfRow * 8)
      bring8(part, row0 + r * part.row_stride, j, r < live, to + r * stride + j);
}

// Queries that are (token, head) pairs of a sequence: those of a token that share keys follow each other.
struct Queries {
  Values<float> q, q_rest;  // a query's parts; q_rest may have none
  Sequences sequences;
  int64_t heads_per_group;
  int64_t window;  // or 0
  int64_t tiles;   // of the launch
  float scale;     // of scores, to the base of 2

  __host__ __device__ int64_t n() const { return q.n + q_rest.n; }
  __device__ int64_t sees_from(int64_t to) const { return window ? max(int64_t(0), to - window) : 0; }
  __device__ float at(int64_t t, int64_t h, int64_t j) const {
    return j < q.n ? q.row(t, h)[j] : j < n() ? q_rest.row(t, h)[j - q.n] : 0.0f;
  }
};

inline Queries queries_of(const Graph& g, const Node& n, Var seqs, Var blocks, int64_t heads_per_group,
                          int tile, const Step& step) {
  const auto params = std::get<AttentionParams>(n.params);
  Queries queries = {};
  queries.q = values_of<float>(g.tensor(n.in[0]));
  queries.sequences = {g.tensor(n.counts).row<int32_t>(0), g.tensor(seqs).row<int32_t>(0),
                       g.tensor(blocks).row<int32_t>(0), g.tensor(blocks).stride[0] / 4};
  queries.heads_per_group = heads_per_group;
  queries.window = params.window;
  // Every live row, and of each sequence a tile that is not full.
  const int64_t tokens = std::min(g.tensor(n.out[0]).shape[0], step.rows);
  queries.tiles = tiles_of(tokens * heads_per_group, tile) + std::min(tokens, g.tensor(seqs).shape[0]);
  queries.scale = params.scale * 1.44269504f;
  return queries;
}

// Rows [row0, row0 + tile) of a sequence's, of which there are `rows`; the last tile of the launch comes first, since it sees
// most.
struct QueryTile {
  int64_t s, rows, row0;
  int64_t before;     // positions before the step's own
  int64_t positions;  // tiles of positions of the sequences before this one

  // False: there is no such tile.
  __device__ bool find(const Queries& q, int64_t index, int tile) {
    s = positions = 0;
    for (row0 = (q.tiles - 1 - index) * tile; s < q.sequences.n(); ++s) {
      rows = q.sequences.count(s) * q.heads_per_group;
      before = q.sequences.length(s) - q.sequences.count(s);
      if (row0 < rows) return true;
      row0 -= tiles_of(rows, tile) * tile;
      positions += tiles_of(q.sequences.length(s), tile);
    }
    return false;
  }
  // The row's token counted from the sequence's first; beyond the last row the last.
  __device__ int64_t token(const Queries& q, int64_t row) const {
    return min(row, rows - 1) / q.heads_per_group;
  }
  // Where what the row sees ends.
  __device__ int64_t to(const Queries& q, int64_t row) const { return before + token(q, row) + 1; }
};

}  // namespace lite::cuda
