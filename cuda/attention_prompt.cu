// Attention of prompts by the matrix unit. A block has 64 rows of queries (tokens, with the heads that share keys) and walks
// the positions they see 64 at a time, which is a block of the block table: scores, online softmax and sums of values stay in
// its registers, f32; queries, keys, values and the softmax's exponentials are rounded to bf16.
//
// Expanded MLA goes in rounds. The tiles of all sequences' positions are numbered one after the other; a round expands a
// chunk of them, every head's keys and values, and the queries take from there what they see. What a row has so far is kept
// from round to round as it is, so that its bits do not depend on where a chunk ends. Rounds are recorded for as many
// positions as the step's sequences can have; those without live ones return at once.
#include "cuda/attention.h"
#include "cuda/attention_tiles.h"

namespace lite::cuda {
namespace {

constexpr int kTile = kAttentionTile;
constexpr int kThreads = kTile / 16 * kWarp;

// ---- attention

struct Problem {
  Queries queries;
  Part key, key_rest, value;
  int64_t chunk;    // tiles of a round
  Values<float> y;  // unfinished sums between rounds
  float* state;     // [T, H, 2] largest score and sum of exponentials between rounds

  // Elements j and j + 1 of a query as the keys lie in shared memory, each part padded.
  __device__ uint32_t query(int64_t t, int64_t h, int64_t j) const {
    const bool rest = j >= padded(key.n);
    const int64_t i = rest ? j - padded(key.n) : j, n = rest ? queries.q_rest.n : queries.q.n;
    const float* const row = rest ? queries.q_rest.row(t, h) : queries.q.row(t, h);
    return bf16x2_of(i < n ? row[i] : 0.0f, i + 1 < n ? row[i + 1] : 0.0f);
  }
};

// One of the two rows of queries that a thread has a part of.
struct Query {
  int64_t t, h;
  bool live;
  int from, to;  // positions it sees
  float largest, total;
};

template <int kKey, int kValue>
constexpr int64_t shared_bytes() {
  return kTile * (kKey + kPad + kValue + kPad) * int64_t(sizeof(uint16_t));
}

// For keys and values padded to so many: query tile block_x(), the last one first since it sees most; group block_y().
template <int kKey, int kValue>
__global__ void prompt_kernel(Problem p, int64_t round) {
  constexpr int kKeyStride = kKey + kPad, kValueStride = kValue + kPad;
  const Queries& queries = p.queries;
  const Sequences& sequences = queries.sequences;
  QueryTile at;
  if (!at.find(queries, block_x(), kTile)) return;
  const int64_t group = block_y(), length = sequences.length(at.s);
  // Where what the first of the rows sees ends, and what the last one sees.
  const int64_t first_to = at.to(queries, at.row0), last_to = at.to(queries, at.row0 + kTile - 1);
  const int64_t begin = queries.sees_from(first_to) / kTile, end = tiles_of(last_to);
  const int64_t round0 = round * p.chunk - at.positions;
  const int64_t tile_begin = max(begin, round0), tile_end = min(end, round0 + p.chunk);
  if (tile_begin >= tile_end) return;

  const int g = warp() * 16 + lane() / 4, i = lane() % 4 * 2;  // of multiply()
  Query query[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t row = at.row0 + g + 8 * e, to = at.to(queries, row);
    query[e] = {sequences.first(at.s) + at.token(queries, row),
                group * queries.heads_per_group + row % queries.heads_per_group,
                row < at.rows,
                int(queries.sees_from(to)),
                int(to),
                -INFINITY,
                0};
  }
  uint32_t q[kKey / 16][4];
#pragma unroll
  for (int k = 0; k < kKey / 16; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) q[k][j] = p.query(query[j % 2].t, query[j % 2].h, 16 * k + i + j / 2 * 8);
  float sum[kValue / 8][4] = {};
  if (tile_begin > begin)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float* const state = p.state + (query[e].t * p.y.heads + query[e].h) * 2;
      query[e].largest = state[0], query[e].total = state[1];
      const float* const y = p.y.row(query[e].t, query[e].h);
#pragma unroll
      for (int n = 0; n < kValue / 8; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) sum[n][2 * e + k] = 8 * n + i + k < p.y.n ? y[8 * n + i + k] : 0.0f;
    }

  uint16_t* const keys = shared_memory<uint16_t>();    // [kTile, kKeyStride]
  uint16_t* const values = keys + kTile * kKeyStride;  // [kTile, kValueStride]
  const auto load_keys = [&](int64_t tile) {
    const int64_t row = sequences.row(at.s, tile * kTile), chunk_row = (tile - round0) * kTile;
    bring_rows<kTile, kThreads>(p.key, p.key.at(row, chunk_row, group), kTile, keys, kKeyStride);
    if (p.key_rest.n)
      bring_rows<kTile, kThreads>(p.key_rest, p.key_rest.at(row, chunk_row, group), kTile,
                                  keys + padded(p.key.n), kKeyStride);
    commit_copies();
  };
  // Rows without a position are no numbers perhaps: their scores are not looked at, but their values meet zeros.
  const auto load_values = [&](int64_t tile) {
    const int64_t row = sequences.row(at.s, tile * kTile), chunk_row = (tile - round0) * kTile;
    bring_rows<kTile, kThreads>(p.value, p.value.at(row, chunk_row, group), length - tile * kTile, values,
                                kValueStride);
    commit_copies();
  };
  const int64_t used = padded(p.key.n) + padded(p.key_rest.n);
  for (int r = thread(); r < kTile; r += kThreads)
    for (int64_t j = used; j < kKey; ++j) keys[r * kKeyStride + j] = 0;

  load_keys(tile_begin);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    wait_copies<0>();
    sync_block();  // the keys have arrived, and the last tile's values been read
    load_values(tile);
    float score[kTile / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kKey / 16; ++k)
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        load_matrices(
            b, keys + (16 * n + lane() % 8 + lane() / 16 * 8) * kKeyStride + 16 * k + lane() / 8 % 2 * 8);
        multiply(score[2 * n], q[k], {b[0], b[1]});
        multiply(score[2 * n + 1], q[k], {b[2], b[3]});
      }
    sync_block();  // the keys have been read
    if (tile + 1 < tile_end) load_keys(tile + 1);

    const int position = int(tile * kTile) + i;
    const bool all = (tile + 1) * kTile <= first_to && tile * kTile >= queries.sees_from(last_to);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float largest = query[e].largest;
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          float& x = score[n][2 * e + k];
          const int now = position + 8 * n + k;
          x = all || (now >= query[e].from && now < query[e].to) ? x * queries.scale : -INFINITY;
          largest = fmaxf(largest, x);
        }
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      const float zero = largest == -INFINITY ? 0.0f : largest;  // nothing seen yet
      const float factor = exp2f(query[e].largest - zero);
      float total = 0;
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) total += score[n][2 * e + k] = exp2f(score[n][2 * e + k] - zero);
      total += shuffle_xor(total, 1);
      total += shuffle_xor(total, 2);
      query[e].total = query[e].total * factor + total;
      query[e].largest = largest;
#pragma unroll
      for (int n = 0; n < kValue / 8; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) sum[n][2 * e + k] *= factor;
    }
    if (tile + 1 < tile_end)
      wait_copies<1>();
    else
      wait_copies<0>();
    sync_block();  // the values have arrived
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      // What multiply() gave as d it takes as a.
      const uint32_t a[4] = {bf16x2_of(score[2 * k][0], score[2 * k][1]),
                             bf16x2_of(score[2 * k][2], score[2 * k][3]),
                             bf16x2_of(score[2 * k + 1][0], score[2 * k + 1][1]),
                             bf16x2_of(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kValue / 16; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b,
                                 values + (16 * k + lane() % 16) * kValueStride + 16 * n + lane() / 16 * 8);
        multiply(sum[2 * n], a, {b[0], b[1]});
        multiply(sum[2 * n + 1], a, {b[2], b[3]});
      }
    }
  }

#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (!query[e].live) continue;
    const bool done = tile_end == end;
    float* const y = p.y.row(query[e].t, query[e].h);
#pragma unroll
    for (int n = 0; n < kValue / 8; ++n)
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (8 * n + i + k < p.y.n)
          y[8 * n + i + k] = done ? sum[n][2 * e + k] / query[e].total : sum[n][2 * e + k];
    if (done || i > 0) continue;
    float* const state = p.state + (query[e].t * p.y.heads + query[e].h) * 2;
    state[0] = query[e].largest, state[1] = query[e].total;
  }
}

void attend(const Step& step, const Problem& p, int64_t groups, int64_t round) {
  const int64_t key = padded(p.key.n) + padded(p.key_rest.n), value = padded(p.value.n);
  const Grid grid = {p.queries.tiles, groups};
  if (key <= 64 && value <= 64)
    launch(prompt_kernel<64, 64>, grid, kThreads, shared_bytes<64, 64>(), step.stream, p, round);
  else if (key <= 128)
    launch(prompt_kernel<128, 128>, grid, kThreads, shared_bytes<128, 128>(), step.stream, p, round);
  else
    launch(prompt_kernel<kMostKey, kMostValue>, grid, kThreads, shared_bytes<kMostKey, kMostValue>(),
           step.stream, p, round);
}

// ---- keys and values from latents

constexpr int kExpandThreads = 256;
constexpr int kSide = kExpandSide;  // of a block's result: positions, and columns
constexpr int kDepth = 32;          // of the latent at a time
constexpr int kDepthStride = kDepth + kPad, kResultStride = kSide + kPad;
constexpr int64_t kExpandBytes = 2 * 2 * kSide * kDepthStride * int64_t(sizeof(uint16_t));
static_assert(kExpandBytes >= kSide * kResultStride * int64_t(sizeof(uint16_t)) &&
              kExpandBytes <= kSharedBytes);

// Every head's keys and values [padded(dn) + padded(dv)] of a chunk's positions, bf16.
struct Expansion {
  Matrix kv_b;
  Part weights;  // kv_b without its scales
  int64_t heads, dn, dv;
  Part latent;
  Sequences sequences;
  int64_t chunk;  // tiles
  uint16_t* to;   // [heads, chunk * kTile, width]

  __host__ __device__ int64_t width() const { return padded(dn) + padded(dv); }
  // The row of kv_b that makes a column of the heads' side by side, or -1: padding.
  __device__ int64_t row_of(int64_t column) const {
    const int64_t head = column / width(), within = column % width(), value = within - padded(dn);
    if (head >= heads || (within < padded(dn) ? within >= dn : value >= dv)) return -1;
    return head * (dn + dv) + (within < padded(dn) ? within : dn + value);
  }
};

// Tiles block_x() * 2 and the next of the round's chunk, columns from block_y() * kSide on. Warps take 32 positions and 64
// columns each.
__global__ void __launch_bounds__(kExpandThreads, 2) expand_kernel(Expansion x, int64_t round) {
  const int64_t tile0 = round * x.chunk + int64_t(block_x()) * 2;
  const int r = thread() / 4;  // of the rows that this thread brings of either tile
  const uint8_t* latents[2] = {x.latent.data, x.latent.data};
  bool live[2] = {};
  int64_t base = 0;
  for (int64_t s = 0; s < x.sequences.n(); ++s) {
    const int64_t tiles = tiles_of(x.sequences.length(s));
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int64_t tile = tile0 + k - base;
      if (tile < 0 || tile >= tiles) continue;
      latents[k] = x.latent.at(x.sequences.row(s, tile * kTile) + r, 0, 0);
      live[k] = tile * kTile + r < x.sequences.length(s);
    }
    base += tiles;
  }
  if (tile0 >= base) return;

  uint16_t* const shared =
      shared_memory<uint16_t>();  // 2 stages of positions and columns [2, kSide, kDepthStride]
  const int64_t column0 = int64_t(block_y()) * kSide;
  const int cols = int(x.kv_b.cols);
  // A thread brings 16 values of a row of kv_b: bf16 as they are, codes of e4m3 fetched before the products of what came
  // before them and decoded afterwards, others decoded at once.
  const bool as_is = x.weights.wide && !x.kv_b.scale,
             codes = x.kv_b.dtype == DType::F8_E4M3 && x.kv_b.wide && x.kv_b.one_scale && cols % kPiece == 0;
  const int piece = thread() % 2 * kPiece;
  const int64_t row = x.row_of(column0 + thread() / 2);
  const uint8_t *weights = nullptr, *scales = nullptr;  // of the row
  if (row >= 0) {
    weights = x.kv_b.data + row * x.kv_b.stride;
    if (x.kv_b.scale) scales = x.kv_b.scale + (x.kv_b.row0 + row) / x.kv_b.block_rows * x.kv_b.scale_stride;
  }
  const auto scale_of = [&](int j) {
    return scales
               ? decode(x.kv_b.scale_dtype, scales, (uint32_t(x.kv_b.col0) + j) / uint32_t(x.kv_b.block_cols))
               : 1.0f;
  };
  Words4 fetched = {};
  float scale = 1;
  const auto fetch = [&](int j, int stage) {
    uint16_t* const to = shared + stage * 2 * kSide * kDepthStride;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int at = thread() % 4 * 8;
      bring8(x.latent, latents[k], j + at, live[k], to + (k * kTile + r) * kDepthStride + at);
    }
    const bool there = weights && j + piece < cols;
    if (as_is)
#pragma unroll
      for (int k = 0; k < kPiece; k += 8)
        bring8(x.weights, weights, j + piece + k, there,
               to + (kSide + thread() / 2) * kDepthStride + piece + k);
    if (codes) fetched = there ? load16(weights + j + piece) : Words4{};
    if (codes && there) scale = scale_of(j + piece);
    commit_copies();
  };
  const auto put = [&](int j, int stage) {
    if (as_is) return;
    uint16_t* const to =
        shared + stage * 2 * kSide * kDepthStride + (kSide + thread() / 2) * kDepthStride + piece;
    if (codes && weights) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float w[4];
        f32_of_e4m3x4(fetched.word[k], w);
        uint32_t* const words = reinterpret_cast<uint32_t*>(to + 4 * k);
        words[0] = bf16x2_of(w[0] * scale, w[1] * scale);
        words[1] = bf16x2_of(w[2] * scale, w[3] * scale);
      }
      return;
    }
#pragma unroll 1
    for (int k = 0; k < kPiece; ++k) {
      const int at = j + piece + k;
      const bool there = weights && at < cols;
      to[k] = there ? bf16_of(decode(x.kv_b.dtype, weights, at) * scale_of(at)) : uint16_t(0);
    }
  };

  const int position = warp() / 2 * 32, column = warp() % 2 * 64;
  float sum[2][8][4] = {};
  fetch(0, 0);
  put(0, 0);
  for (int j = 0; j < cols; j += kDepth) {
    const int stage = j / kDepth % 2;
    wait_copies<0>();
    sync_block();  // this stage has arrived, and the other been read
    if (j + kDepth < cols) fetch(j + kDepth, 1 - stage);
    const uint16_t* const from = shared + stage * 2 * kSide * kDepthStride;
#pragma unroll 1  // for the registers of two blocks on a processor
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
        load_matrices(a[m], from + (position + 16 * m + lane() % 16) * kDepthStride + k + lane() / 16 * 8);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        load_matrices(b, from + (kSide + column + 16 * n + lane() % 8 + lane() / 16 * 8) * kDepthStride + k +
                             lane() / 8 % 2 * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply(sum[m][2 * n], a[m], {b[0], b[1]});
          multiply(sum[m][2 * n + 1], a[m], {b[2], b[3]});
        }
      }
    }
    if (j + kDepth < cols) put(j + kDepth, 1 - stage);
  }
  sync_block();
  // Through shared memory, so that 16 bytes are written at once.
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int r = position + 16 * m + lane() / 4 + 8 * e, c = column + 8 * n + lane() % 4 * 2;
        *reinterpret_cast<uint32_t*>(shared + r * kResultStride + c) =
            bf16x2_of(sum[m][n][2 * e], sum[m][n][2 * e + 1]);
      }
  sync_block();
  constexpr int kEights = kSide / 8;
  const int c = thread() % kEights * 8;
  const int64_t head = (column0 + c) / x.width(), within = (column0 + c) % x.width();
  if (head >= x.heads) return;
  uint16_t* const to = x.to + (head * x.chunk + int64_t(block_x()) * 2) * kTile * x.width() + within;
  for (int r = thread() / kEights; r < kSide; r += kExpandThreads / kEights)
    store16(to + r * x.width(), load16(shared + r * kResultStride + c));
}

Problem problem(const Graph& g, const Node& n, Var seqs, Var blocks, int64_t heads_per_group,
                const Step& step) {
  Problem p = {};
  p.queries = queries_of(g, n, seqs, blocks, heads_per_group, kTile, step);
  p.chunk = int64_t(1) << 40;  // one round
  p.y = values_of<float>(g.tensor(n.out[0]));
  return p;
}

void expanded(const Graph& g, const Node& n, const Step& step) {
  const Tensor &kv_b = g.tensor(n.in[2]), &stream = g.tensor(n.in[3]);
  const PromptAttentionWorkspace scratch = prompt_attention_workspace(g, n, g.tensor(n.workspace).data);
  Problem p = problem(g, n, n.in[4], n.in[5], 1, step);
  const int64_t r = kv_b.shape[1];
  Matrix matrix = matrix_of(kv_b);
  matrix.block_cols = std::min<int64_t>(matrix.block_cols, INT32_MAX);  // the kernel divides by 32 bits
  const Expansion x = {matrix,
                       part_of(kv_b.data, kv_b.stride[0], 0, r, kv_b.dtype),
                       p.y.heads,
                       p.queries.q.n,
                       p.y.n,
                       part_of(stream.data, stream.stride[0], 0, r, stream.dtype),
                       p.queries.sequences,
                       scratch.chunk,
                       scratch.rows};
  const int64_t row_bytes = x.width() * int64_t(sizeof(uint16_t)),
                head_bytes = scratch.chunk * kTile * row_bytes;
  p.queries.q_rest = values_of<float>(g.tensor(n.in[1]));
  p.key = part_of(scratch.rows, row_bytes, head_bytes, padded(x.dn), DType::BF16);
  p.value = part_of(scratch.rows + padded(x.dn), row_bytes, head_bytes, padded(x.dv), DType::BF16);
  p.key.in_chunk = p.value.in_chunk = true;
  p.key_rest =
      part_of(stream.data + r * size_of(stream.dtype), stream.stride[0], 0, p.queries.q_rest.n, stream.dtype);
  p.chunk = scratch.chunk;
  p.state = scratch.state;
  const int64_t tiles = most_tiles(g, n, std::min(g.tensor(n.out[0]).shape[0], step.rows));
  for (int64_t round = 0; round * scratch.chunk < tiles; ++round) {
    launch(expand_kernel, {scratch.chunk / 2, ceil_div(x.heads * x.width(), kSide)}, kExpandThreads,
           kExpandBytes, step.stream, x, round);
    attend(step, p, x.heads, round);
  }
}

void grouped(const Graph& g, const Node& n, const Step& step) {
  const Tensor& stream = g.tensor(n.in[1]);
  const int64_t size = g.tensor(n.in[0]).shape[2], groups = stream.shape[1] / (2 * size),
                bytes = size * size_of(stream.dtype);
  Problem p = problem(g, n, n.in[2], n.in[3], g.tensor(n.in[0]).shape[1] / groups, step);
  p.key = part_of(stream.data, stream.stride[0], bytes, size, stream.dtype);
  p.value = part_of(stream.data + groups * bytes, stream.stride[0], bytes, size, stream.dtype);
  attend(step, p, groups, 0);
}

}  // namespace

void prompt_attention(const Graph& g, const Node& n, const Step& step) {
  n.op == Op::AttentionExpanded ? expanded(g, n, step) : grouped(g, n, step);
}

}  // namespace lite::cuda
