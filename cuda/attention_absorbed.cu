// Absorbed attention of prompts by the matrix unit. All heads share a row of the stream, which is the key and, without its
// rotated part, the value; so a block has 32 rows (token, head) and brings 32 positions at a time, the next while it works.
//
// Of the scores four pairs of warps have a quarter of the key's values each, the queries in registers; the quarters meet in
// shared memory, where 8 threads have a row's softmax. Then each warp adds to its columns of the sums.
#include "cuda/attention.h"
#include "cuda/attention_tiles.h"

namespace lite::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kTile = 32;                   // rows of queries, and positions
constexpr int kParts = 4;                   // of a key, in the products with queries
constexpr int kScoreStride = kTile + kPad;  // two f32 of 4 rows by 4 lanes each are in different banks
constexpr int kWeightStride = kTile + kPad;

// Keys of up to kKey values, and values of up to kValue: kSteps times 16 of each part, kFragments times 8 of each warp.
template <int kSteps, int kFragments>
struct Shape {
  static constexpr int kKey = kParts * 16 * kSteps, kValue = kWarps * 8 * kFragments, kStride = kKey + kPad;
  static constexpr int64_t kRowsBytes = 2 * kTile * kStride * int64_t(sizeof(uint16_t));
  static constexpr int64_t kScoreBytes = kParts * kTile * kScoreStride * int64_t(sizeof(float));
  static constexpr int64_t kWeightBytes = kTile * kWeightStride * int64_t(sizeof(uint16_t));
  static constexpr int64_t kShared = kRowsBytes + kScoreBytes + kWeightBytes + kTile * int64_t(sizeof(float));
  static_assert(kFragments % 2 == 0 && kValue <= kStride && kShared <= kSharedMost);
};
using Small = Shape<2, 2>;
using Large = Shape<9, 8>;  // latents of 512, rotated keys of 64

struct Problem {
  Queries queries;
  Part row;
  Values<float> y;
};

template <int kSteps, int kFragments>
__global__ void absorbed_kernel(Problem p) {
  using S = Shape<kSteps, kFragments>;
  const Queries& queries = p.queries;
  QueryTile at;
  if (!at.find(queries, block_x(), kTile)) return;
  const int64_t length = queries.sequences.length(at.s), first = queries.sequences.first(at.s);
  const int64_t tile_begin = queries.sees_from(at.to(queries, at.row0)) / kTile,
                tile_end = tiles_of(at.to(queries, at.row0 + kTile - 1), kTile);

  uint16_t* const rows = shared_memory<uint16_t>();  // [2, kTile, kStride]
  float* const scores =
      reinterpret_cast<float*>(rows + 2 * kTile * S::kStride);  // [kParts, kTile, kScoreStride]
  uint16_t* const weights =
      reinterpret_cast<uint16_t*>(scores + kParts * kTile * kScoreStride);           // [kTile, kWeightStride]
  float* const factors = reinterpret_cast<float*>(weights + kTile * kWeightStride);  // [kTile]
  const auto load = [&](int64_t tile, int stage) {
    bring_rows<kTile, kThreads>(p.row, p.row.at(queries.sequences.row(at.s, tile * kTile), 0, 0),
                                length - tile * kTile, rows + stage * kTile * S::kStride, S::kStride);
    commit_copies();
  };

  // The three places of a thread: in the product with queries (half of the rows, a part of the key), in the softmax (a
  // row, every eighth position), and in the sums (columns).
  const int g = lane() / 4, i = lane() % 4 * 2;
  const int half = warp() % 2 * 16, part = warp() / 2;
  const int row = thread() / 8, position = thread() % 8;
  const int column = warp() * 8 * kFragments;

  uint32_t q[kSteps][4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t r = min(at.row0 + half + g + j % 2 * 8, at.rows - 1);
    const int64_t t = first + at.token(queries, r), h = r % queries.heads_per_group;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const int64_t c = (part * kSteps + k) * 16 + i + j / 2 * 8;
      q[k][j] = bf16x2_of(queries.at(t, h, c), queries.at(t, h, c + 1));
    }
  }
  const int64_t to = at.to(queries, at.row0 + row), from = queries.sees_from(to);
  float largest = -INFINITY, total = 0;
  float sum[2][kFragments][4] = {};

  for (int r = thread(); r < 2 * kTile; r += kThreads)
    for (int64_t j = padded(p.row.n); j < S::kKey; ++j) rows[r * S::kStride + j] = 0;
  load(tile_begin, 0);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int stage = int((tile - tile_begin) % 2);
    const uint16_t* const keys = rows + stage * kTile * S::kStride;
    wait_copies<0>();
    sync_block();  // this tile has arrived, and the last one been read
    if (tile + 1 < tile_end) load(tile + 1, 1 - stage);

    float score[kTile / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, keys + (16 * n + lane() % 8 + lane() / 16 * 8) * S::kStride +
                             (part * kSteps + k) * 16 + lane() / 8 % 2 * 8);
        multiply(score[2 * n], q[k], {b[0], b[1]});
        multiply(score[2 * n + 1], q[k], {b[2], b[3]});
      }
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        scores[(part * kTile + half + g + k / 2 * 8) * kScoreStride + 8 * n + i + k % 2] = score[n][k];
    sync_block();

    float x[4];
    float most = largest;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float dot = 0;
#pragma unroll
      for (int j = 0; j < kParts; ++j) dot += scores[(j * kTile + row) * kScoreStride + position + 8 * k];
      const int64_t now = tile * kTile + position + 8 * k;
      x[k] = now >= from && now < to ? dot * queries.scale : -INFINITY;
      most = fmaxf(most, x[k]);
    }
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
    const float zero = most == -INFINITY ? 0.0f : most;  // nothing seen yet
    const float factor = exp2f(largest - zero);
    float exponentials = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) exponentials += x[k] = exp2f(x[k] - zero);
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) exponentials += shuffle_xor(exponentials, mask);
    total = total * factor + exponentials;
    largest = most;
#pragma unroll
    for (int k = 0; k < 4; ++k) weights[row * kWeightStride + position + 8 * k] = bf16_of(x[k]);
    if (position == 0) factors[row] = factor;
    sync_block();

#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float f = factors[16 * m + g + 8 * e];
#pragma unroll
        for (int n = 0; n < kFragments; ++n) sum[m][n][2 * e] *= f, sum[m][n][2 * e + 1] *= f;
      }
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
        load_matrices(a[m], weights + (16 * m + lane() % 16) * kWeightStride + 16 * k + lane() / 16 * 8);
#pragma unroll
      for (int n = 0; n < kFragments / 2; ++n) {
        uint32_t b[4];
        load_matrices_transposed(
            b, keys + (16 * k + lane() % 16) * S::kStride + column + 16 * n + lane() / 16 * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply(sum[m][2 * n], a[m], {b[0], b[1]});
          multiply(sum[m][2 * n + 1], a[m], {b[2], b[3]});
        }
      }
    }
  }

  sync_block();  // the last factors have been read
  if (position == 0) factors[row] = total;
  sync_block();
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int place = 16 * m + g + 8 * e;
      const int64_t r = at.row0 + place;
      if (r >= at.rows) continue;
      float* const y = p.y.row(first + at.token(queries, r), r % queries.heads_per_group);
#pragma unroll
      for (int n = 0; n < kFragments; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int c = column + 8 * n + i + k;
          if (c < p.y.n) y[c] = sum[m][n][2 * e + k] / factors[place];
        }
    }
}

bool fits(const Graph& g, const Node& n, int key, int value) {
  return g.tensor(n.in[2]).shape[1] <= key && g.tensor(n.out[0]).shape[2] <= value;
}

}  // namespace

bool has_absorbed_attention(const Graph& g, const Node& n) {
  return n.op == Op::AttentionLatent && fits(g, n, Large::kKey, Large::kValue);
}

void absorbed_attention(const Graph& g, const Node& n, const Step& step) {
  const Tensor& stream = g.tensor(n.in[2]);
  Problem p = {};
  p.y = values_of<float>(g.tensor(n.out[0]));
  p.queries = queries_of(g, n, n.in[3], n.in[4], p.y.heads, kTile, step);
  p.queries.q_rest = values_of<float>(g.tensor(n.in[1]));
  p.row = part_of(stream.data, stream.stride[0], 0, stream.shape[1], stream.dtype);
  const Grid grid = {p.queries.tiles};
  if (fits(g, n, Small::kKey, Small::kValue))
    launch(absorbed_kernel<2, 2>, grid, kThreads, Small::kShared, step.stream, p);
  else
    launch(absorbed_kernel<9, 8>, grid, kThreads, Large::kShared, step.stream, p);
}

}  // namespace lite::cuda
