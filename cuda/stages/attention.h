// Stages of attention: the keys and values are rows of a stream or of the step, and a query's scores are made kChunk positions
// at a time. In a decode step several blocks take parts of a long context side by side.
#pragma once

#include "cuda/matrix.h"
#include "cuda/stage.h"
#include "ggml-lite/kv.h"

namespace lite::cuda {

constexpr int kChunk = kAttentionChunk, kHeads = kAttentionHeads;
constexpr int kKeys = 4;  // that a warp meets together
static_assert(kHeads == kStageWarps && kKeys * kHeads == kWarp,
              "a warp per head's softmax, a lane per score");

// A key's or a value's place: row, group, element.
struct Cached {
  const uint8_t* data;
  int64_t row_stride, group_stride;  // bytes
  int64_t n;
  bool wide;  // pairs of values lie at multiples of their size
};

struct AttentionProblem {
  // q is one value or two that follow each other.
  Values<float> q, q_rest;
  Cached keys, values;
  DType dtype;
  int64_t heads, heads_per_group;  // query heads; those that share keys and values
  const int32_t* seqs;             // StepInputs
  const int32_t* blocks;  // null: keys and values are the step's own, and every one of a sequence's is seen
  int64_t blocks_stride;
  const float* mask;  // or null
  int64_t mask_stride;
  int64_t window;  // or 0
  float scale;
  Values<float> y;
  Live live;

  __host__ __device__ int64_t n_query() const { return q.n + q_rest.n; }
  __host__ __device__ AttentionSizes sizes() const { return {n_query(), values.n}; }
};

// What token t sees: positions [from, to) of sequence s, which begins at token `first` of the step.
struct Visible {
  int64_t s, first, from, to;
};
__device__ inline Visible visible(const AttentionProblem& p, int64_t t) {
  int64_t s = 0;
  while (t >= p.seqs[3 * s] + p.seqs[3 * s + 1]) ++s;
  const int64_t first = p.seqs[3 * s], count = p.seqs[3 * s + 1], length = p.seqs[3 * s + 2];
  if (!p.blocks) return {s, first, 0, count};
  const int64_t to = length - count + (t - first) + 1;
  return {s, first, p.window ? max(int64_t(0), to - p.window) : 0, to};
}

// The chunks of part `part` of what is seen: the split depends on the row's own positions and its phase only.
struct Chunks {
  int64_t begin, end;
};
__device__ inline Chunks chunks_of(const Visible& v, int64_t part, int64_t parts) {
  const int64_t first = v.from / kChunk, n = (v.to + kChunk - 1) / kChunk - first;
  const int64_t each = (n + parts - 1) / parts;
  return {first + min(n, part * each), first + min(n, (part + 1) * each)};
}

// How many parts have chunks, at least one.
__device__ inline int64_t parts_of(const Visible& v, int64_t parts) {
  const int64_t n = (v.to + kChunk - 1) / kChunk - v.from / kChunk, each = (n + parts - 1) / parts;
  return max(int64_t(1), (n + each - 1) / max(int64_t(1), each));
}

// Unfinished results of parts: per (token of the group, part, head) the largest score, the sum of exponentials, and values.
struct Partial {
  float* data;
  int64_t parts, heads, n;

  __device__ float* at(int64_t token, int64_t part, int64_t head) const {
    return data + ((token * parts + part) * heads + head) * (2 + n);
  }
};

// Values j and j + 1 of a row of n; a zero beyond the last.
__device__ inline void load_pair(DType dtype, const uint8_t* row, int64_t j, int64_t n, bool wide,
                                 float (&to)[2]) {
  if (wide && dtype == DType::BF16) {
    const uint32_t word = load<1>(row + 2 * j).word[0];
    to[0] = f32_of_bits(word << 16);
    to[1] = f32_of_bits(word & 0xFFFF0000);
  } else if (wide && dtype == DType::F32) {
    const Words<2> two = load<2>(row + 4 * j);
    to[0] = f32_of_bits(two.word[0]);
    to[1] = f32_of_bits(two.word[1]);
  } else {
    to[0] = decode(dtype, row, j);
    to[1] = j + 1 < n ? decode(dtype, row, j + 1) : 0.0f;
  }
}

// Token token0 + block x; head group block y, part block z of `parts`. With partial.data the result is left there.
struct Attention {
  static constexpr StageKind kKind = StageKind::Attention;
  AttentionProblem p;
  int64_t token0;
  int block_heads, parts;
  Partial partial;

  __device__ void run(Block at) const {
    const int64_t t = token0 + at.x;
    if (t >= p.live.rows()) return;
    const int blocks_per_group = (int(p.heads_per_group) + block_heads - 1) / block_heads;
    const int64_t group = at.y / blocks_per_group;
    const int within = at.y % blocks_per_group * block_heads;
    const int64_t head0 = group * p.heads_per_group + within;
    const int heads = min(block_heads, int(p.heads_per_group) - within);
    const Visible v = visible(p, t);
    const Chunks chunks = chunks_of(v, at.z, parts);
    if (chunks.begin == chunks.end && at.z > 0) return;

    const AttentionSizes sizes = p.sizes();
    const int nq = int(p.n_query()), nv = int(p.values.n), query_row = sizes.query_row(),
              sum_row = 2 * sizes.pairs();
    int64_t* row = shared_memory<int64_t>();                // [kChunk]
    float* score = reinterpret_cast<float*>(row + kChunk);  // [kChunk][kHeads]
    float* largest = score + kChunk * kHeads;               // [kHeads]
    float* total = largest + kHeads;                        // [kHeads] of exponentials
    float* factor = total + kHeads;  // [kHeads] by which a chunk changes what was before
    float* query = factor + kHeads;  // [block_heads][query_row]
    float* sum = query + int64_t(block_heads) * query_row;  // [sets][block_heads][sum_row]
    const int set_row = block_heads * sum_row;

    for (int h = 0; h < heads; ++h)
      for (int i = thread(); i < query_row; i += kStageThreads)
        query[h * query_row + i] = i < p.q.n ? p.q.row(t, head0 + h)[i]
                                   : i < nq  ? p.q_rest.row(t, head0 + h)[i - p.q.n]
                                             : 0.0f;
    for (int i = thread(); i < sizes.sets() * set_row; i += kStageThreads) sum[i] = 0;
    if (thread() < kHeads) largest[thread()] = -INFINITY, total[thread()] = 0;

    for (int64_t c = chunks.begin; c < chunks.end; ++c) {
      const int64_t base = c * kChunk;
      const int begin = int(max(v.from, base) - base), end = int(min(v.to - base, int64_t(kChunk)));
      sync_block();  // the last chunk's scores and rows have been read
      for (int i = thread(); i < kChunk; i += kStageThreads) {
        const int64_t position = base + min(max(i, begin), end - 1);
        row[i] = p.blocks ? p.blocks[v.s * p.blocks_stride + position / kBlockRows] * kBlockRows +
                                position % kBlockRows
                          : v.first + position;
      }
      sync_block();
      for (int i = warp() * kKeys; i < end; i += kStageWarps * kKeys)
        if (i + kKeys > begin) make_scores(query, row, i, group, heads, score);
      sync_block();
      for (int i = thread(); p.mask && i < kChunk * kHeads; i += kStageThreads)
        if (const int k = i / kHeads; k >= begin && k < end && i % kHeads < heads)
          score[i] += p.mask[(t - v.first) * p.mask_stride + base + k];
      if (p.mask) sync_block();
      if (warp() < heads)
        merge_softmax(score + warp(), begin, end, largest + warp(), total + warp(), factor + warp());
      sync_block();
      add_values(score, row, factor, begin, end, group, heads, set_row, sum);
    }
    sync_block();
    for (int h = 0; h < heads; ++h) {
      float* to = partial.data ? partial.at(at.x, at.z, head0 + h) : p.y.row(t, head0 + h);
      if (partial.data) {
        if (thread() == 0) to[0] = largest[h], to[1] = total[h];
        to += 2;
      }
      for (int j = thread(); j < nv; j += kStageThreads) {
        float all = 0;
        for (int set = 0; set < sizes.sets(); ++set) all += sum[set * set_row + h * sum_row + j];
        to[j] = partial.data ? all : all / total[h];
      }
    }
  }

  // By a warp: scores of positions [i, i + kKeys) of the chunk with every head, a lane of each.
  __device__ void make_scores(const float* query, const int64_t* row, int i, int64_t group, int heads,
                              float* score) const {
    const int nq = int(p.n_query()), query_row = p.sizes().query_row();
    const DType dtype = p.dtype;
    const bool wide = p.keys.wide;
    const uint8_t* key[kKeys];
#pragma unroll
    for (int k = 0; k < kKeys; ++k)
      key[k] = p.keys.data + row[i + k] * p.keys.row_stride + group * p.keys.group_stride;
    float dot[kKeys * kHeads] = {};
#pragma unroll 2
    for (int j = 2 * lane(); j < nq; j += 2 * kWarp) {
      float pair[kKeys][2];
#pragma unroll
      for (int k = 0; k < kKeys; ++k) load_pair(dtype, key[k], j, nq, wide, pair[k]);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (h >= heads) continue;
        const float q0 = query[h * query_row + j], q1 = query[h * query_row + j + 1];
#pragma unroll
        for (int k = 0; k < kKeys; ++k) {
          dot[k * kHeads + h] += q0 * pair[k][0];
          dot[k * kHeads + h] += q1 * pair[k][1];
        }
      }
    }
    score[i * kHeads + lane()] = p.scale * warp_sums(dot);
  }

  // By a warp: of a head, whose scores are kHeads apart.
  __device__ static void merge_softmax(float* score, int begin, int end, float* largest, float* total,
                                       float* factor) {
    float most = -INFINITY;
    for (int k = begin + lane(); k < end; k += kWarp) most = fmaxf(most, score[k * kHeads]);
    for (int mask = kWarp / 2; mask > 0; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
    most = fmaxf(most, *largest);
    const bool nothing = most == -INFINITY;  // yet: every score is -infinity
    float exponentials[1] = {0};
    for (int k = begin + lane(); k < end; k += kWarp) {
      float& s = score[k * kHeads];
      exponentials[0] += s = nothing && s == -INFINITY ? 0.0f : expf(s - most);
    }
    warp_sum(exponentials);
    if (lane() > 0) return;
    *factor = nothing ? 1.0f : expf(*largest - most);
    *total = *total * *factor + exponentials[0];
    *largest = most;
  }

  // A pair of values is a thread's, for every sets()-th position.
  __device__ void add_values(const float* score, const int64_t* row, const float* factor, int begin, int end,
                             int64_t group, int heads, int set_row, float* sum) const {
    const int pairs = p.sizes().pairs(), sets = p.sizes().sets();
    const DType dtype = p.dtype;
    const bool wide = p.values.wide;
    const int64_t nv = p.values.n, stride = p.values.row_stride;
    const uint8_t* values = p.values.data + group * p.values.group_stride;
    for (int i = thread(); i < pairs * sets; i += kStageThreads) {
      const int j = i % pairs * 2, set = i / pairs;
      float mixed[kHeads][2] = {};
#pragma unroll 4
      for (int k = begin + (set + sets - begin % sets) % sets; k < end; k += sets) {
        float pair[2];
        load_pair(dtype, values + row[k] * stride, j, nv, wide, pair);
        const Words<4> low = load<4>(score + k * kHeads), high = load<4>(score + k * kHeads + 4);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          if (h >= heads) continue;
          const float weight = f32_of_bits(h < 4 ? low.word[h % 4] : high.word[h % 4]);
          mixed[h][0] += weight * pair[0];
          mixed[h][1] += weight * pair[1];
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (h >= heads) continue;
          float& all = sum[set * set_row + h * 2 * pairs + j + c];
          all = all * factor[h] + mixed[h][c];
        }
    }
  }
};

// Merges the parts of token token0 + block x and head block y, in order.
struct Merge {
  static constexpr StageKind kKind = StageKind::Merge;
  AttentionProblem p;
  int64_t token0;
  int parts;
  Partial partial;

  __device__ void run(Block at) const {
    const int64_t t = token0 + at.x, h = at.y;
    if (t >= p.live.rows()) return;
    const int64_t used = parts_of(visible(p, t), parts);
    float largest = -INFINITY;
    for (int64_t i = 0; i < used; ++i) largest = fmaxf(largest, partial.at(at.x, i, h)[0]);
    for (int64_t j = thread(); j < partial.n; j += kStageThreads) {
      float total = 0, mixed = 0;
#pragma unroll 4
      for (int64_t i = 0; i < used; ++i) {
        const float* from = partial.at(at.x, i, h);
        const float factor = expf(from[0] - largest);
        total += from[1] * factor;
        mixed += from[2 + j] * factor;
      }
      p.y.row(t, h)[j] = mixed / total;
    }
  }
};

}  // namespace lite::cuda
