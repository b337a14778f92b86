// Attention of every kind by one kernel, in f32: of decode steps, in exact mode, and what attention.h has no kernels for. The keys
// and values are rows of a stream or of the step, and a query's scores are made 256 positions at a time. In a decode step
// several blocks take parts of a long context side by side.
#include "cuda/attention.h"
#include "cuda/matrix.h"
#include "ggml-lite/carver.h"
#include "ggml-lite/kv.h"

namespace lite::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 256;     // positions between two merges of the softmax, at fixed multiples
constexpr int kHeads = 8;       // most heads of one block: they share the keys' rows
constexpr int kParts = 32;      // most parts of a context in a decode step
constexpr int kTokenGroup = 8;  // tokens whose parts are kept at a time
static_assert(kThreads == kChunk && kThreads == kHeads * kWarp, "a thread per position, a warp per head");

// A key's or a value's place: row, group, element.
struct Cached {
  const uint8_t* data;
  int64_t row_stride, group_stride;  // bytes
  int64_t n;
};

struct Problem {
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
  // Heads that one block takes, as many as its shared memory has room for: q, sums and scores in f32, and rows.
  __host__ int64_t heads_of_block() const {
    const int64_t room =
        kSharedBytes - kChunk * int64_t(sizeof(int64_t)) - 3 * kHeads * int64_t(sizeof(float));
    const int64_t one = (n_query() + values.n + kChunk) * int64_t(sizeof(float));
    return std::min({int64_t(kHeads), heads_per_group, room / one});
  }
  __host__ int64_t shared_bytes() const {
    return kChunk * int64_t(sizeof(int64_t)) +
           (3 * kHeads + heads_of_block() * (n_query() + values.n + kChunk)) * int64_t(sizeof(float));
  }
};

// What token t sees: positions [from, to) of sequence s, which begins at token `first` of the step.
struct Visible {
  int64_t s, first, from, to;
};
__device__ Visible visible(const Problem& p, int64_t t) {
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
__device__ Chunks chunks_of(const Visible& v, int64_t part, int64_t parts) {
  const int64_t first = v.from / kChunk, n = (v.to + kChunk - 1) / kChunk - first;
  const int64_t each = (n + parts - 1) / parts;
  return {first + min(n, part * each), first + min(n, (part + 1) * each)};
}

// Unfinished results of parts: per (token of the group, part, head) the largest score, the sum of exponentials, and values.
struct Partial {
  float* data;
  int64_t parts, heads, n;

  __device__ float* at(int64_t token, int64_t part, int64_t head) const {
    return data + ((token * parts + part) * heads + head) * (2 + n);
  }
};

// Tokens from token0; head group block_y(), part block_z(). With partial.data the result is left there.
__global__ void attention_kernel(Problem p, int64_t token0, int64_t block_heads, int64_t split,
                                 Partial partial) {
  const int64_t t = token0 + block_x();
  if (t >= p.live.rows()) return;
  const int64_t blocks_per_group = (p.heads_per_group + block_heads - 1) / block_heads;
  const int64_t group = block_y() / blocks_per_group, within = block_y() % blocks_per_group * block_heads;
  const int64_t head0 = group * p.heads_per_group + within;
  const int heads = int(min(block_heads, p.heads_per_group - within));
  const Visible v = visible(p, t);
  const Chunks chunks = chunks_of(v, block_z(), split);
  if (chunks.begin == chunks.end && block_z() > 0) return;

  const int64_t nq = p.n_query(), nv = p.values.n;
  int64_t* row = shared_memory<int64_t>();                  // [kChunk]
  float* largest = reinterpret_cast<float*>(row + kChunk);  // [kHeads]
  float* total = largest + kHeads;                          // [kHeads] of exponentials
  float* factor = total + kHeads;         // [kHeads] by which a chunk changes what was before
  float* query = factor + kHeads;         // [block_heads, nq]
  float* sum = query + block_heads * nq;  // [block_heads, nv]
  float* score = sum + block_heads * nv;  // [block_heads, kChunk]

  for (int h = 0; h < heads; ++h) {
    for (int64_t i = thread(); i < nq; i += threads())
      query[h * nq + i] = i < p.q.n ? p.q.row(t, head0 + h)[i] : p.q_rest.row(t, head0 + h)[i - p.q.n];
    for (int64_t i = thread(); i < nv; i += threads()) sum[h * nv + i] = 0;
  }
  if (thread() < kHeads) largest[thread()] = -INFINITY, total[thread()] = 0;

  for (int64_t c = chunks.begin; c < chunks.end; ++c) {
    const int64_t base = c * kChunk;
    const int begin = int(max(v.from, base) - base), end = int(min(v.to - base, int64_t(kChunk)));
    sync_block();  // the last chunk's scores and rows have been read
    // A position's scores are one thread's.
    const int i = thread();
    if (i >= begin && i < end) {
      const int64_t position = base + i;
      row[i] = p.blocks ? p.blocks[v.s * p.blocks_stride + position / kBlockRows] * kBlockRows +
                              position % kBlockRows
                        : v.first + position;
      const uint8_t* key = p.keys.data + row[i] * p.keys.row_stride + group * p.keys.group_stride;
      float dot[kHeads] = {};
      for (int64_t j = 0; j < nq; ++j) {
        const float k = decode(p.dtype, key, j);
#pragma unroll
        for (int h = 0; h < kHeads; ++h)
          if (h < heads) dot[h] += query[h * nq + j] * k;
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
        if (h < heads)
          score[h * kChunk + i] =
              p.scale * dot[h] + (p.mask ? p.mask[(t - v.first) * p.mask_stride + position] : 0.0f);
    }
    sync_block();
    // A head's softmax is one warp's.
    if (warp() < heads) {
      const int h = warp();
      float* s = score + h * kChunk;
      float most = -INFINITY;
      for (int k = begin + lane(); k < end; k += kWarp) most = fmaxf(most, s[k]);
      for (int mask = kWarp / 2; mask > 0; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
      most = fmaxf(most, largest[h]);
      const bool nothing = most == -INFINITY;  // yet: every score is -infinity
      float exponentials[1] = {0};
      for (int k = begin + lane(); k < end; k += kWarp)
        exponentials[0] += s[k] = nothing && s[k] == -INFINITY ? 0.0f : expf(s[k] - most);
      warp_sum(exponentials);
      if (lane() == 0) {
        factor[h] = nothing ? 1.0f : expf(largest[h] - most);
        total[h] = total[h] * factor[h] + exponentials[0];
        largest[h] = most;
      }
    }
    sync_block();
    // An element of the values is one thread's.
    for (int64_t j = thread(); j < nv; j += threads()) {
      float mixed[kHeads] = {};
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
        if (h < heads) mixed[h] = sum[h * nv + j] * factor[h];
      for (int k = begin; k < end; ++k) {
        const float value =
            decode(p.dtype, p.values.data + row[k] * p.values.row_stride + group * p.values.group_stride, j);
#pragma unroll
        for (int h = 0; h < kHeads; ++h)
          if (h < heads) mixed[h] += score[h * kChunk + k] * value;
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
        if (h < heads) sum[h * nv + j] = mixed[h];
    }
  }
  sync_block();
  for (int h = 0; h < heads; ++h) {
    if (!partial.data) {
      for (int64_t j = thread(); j < nv; j += threads())
        p.y.row(t, head0 + h)[j] = sum[h * nv + j] / total[h];
      continue;
    }
    float* to = partial.at(block_x(), block_z(), head0 + h);
    if (thread() == 0) to[0] = largest[h], to[1] = total[h];
    for (int64_t j = thread(); j < nv; j += threads()) to[2 + j] = sum[h * nv + j];
  }
}

// Merges the parts of one token and head, in order.
__global__ void merge_kernel(Problem p, int64_t token0, int64_t split, Partial partial) {
  const int64_t t = token0 + block_x(), h = block_y();
  if (t >= p.live.rows()) return;
  const Visible v = visible(p, t);
  int64_t parts = 1;
  while (parts < split && chunks_of(v, parts, split).begin < chunks_of(v, parts, split).end) ++parts;
  float largest = -INFINITY;
  for (int64_t i = 0; i < parts; ++i) largest = fmaxf(largest, partial.at(block_x(), i, h)[0]);
  for (int64_t j = thread(); j < partial.n; j += threads()) {
    float total = 0, mixed = 0;
    for (int64_t i = 0; i < parts; ++i) {
      const float* from = partial.at(block_x(), i, h);
      const float factor = expf(from[0] - largest);
      total += from[1] * factor;
      mixed += from[2 + j] * factor;
    }
    p.y.row(t, h)[j] = mixed / total;
  }
}

int64_t chunks_of_context(int64_t context) {
  return ceil_div(context, kChunk);
}

// Most parts that a token's context comes in, and the floats they take.
int64_t parts_of(int64_t context) {
  return std::min<int64_t>(kParts, chunks_of_context(context));
}
int64_t partial_bytes(int64_t tokens, int64_t context, int64_t heads, int64_t n) {
  return std::min<int64_t>(tokens, kTokenGroup) * parts_of(context) * heads * (2 + n) *
         int64_t(sizeof(float));
}

// Only cached rows are attended to in parts, and only in decode steps.
void attend(const Step& step, const Problem& p, int64_t context, float* partials) {
  const int64_t block_heads = p.heads_of_block();
  const int64_t head_blocks = p.heads / p.heads_per_group * ceil_div(p.heads_per_group, block_heads);
  if (step.phase == kPrompt || !p.blocks) {
    launch(attention_kernel, {p.live.most, head_blocks}, kThreads, p.shared_bytes(), step.stream, p, 0,
           block_heads, 1, Partial{});
    return;
  }
  const int64_t parts = parts_of(context);
  const Partial partial = {partials, parts, p.heads, p.values.n};
  for (int64_t token0 = 0; token0 < p.live.most; token0 += kTokenGroup) {
    const int64_t tokens = std::min<int64_t>(kTokenGroup, p.live.most - token0);
    launch(attention_kernel, {tokens, head_blocks, parts}, kThreads, p.shared_bytes(), step.stream, p, token0,
           block_heads, kParts, partial);
    launch(merge_kernel, {tokens, p.heads}, kThreads, 0, step.stream, p, token0, kParts, partial);
  }
}

const uint8_t* bytes(const Tensor& t) {
  return reinterpret_cast<const uint8_t*>(t.data);
}

// The parts of a Problem that every op of cached rows has alike.
Problem cached(const Graph& g, const Node& n, const Tensor& stream, Var seqs, Var blocks, const Step& step) {
  const auto p = std::get<AttentionParams>(n.params);
  Problem problem = {};
  problem.dtype = stream.dtype;
  problem.seqs = g.tensor(seqs).row<int32_t>(0);
  problem.blocks = g.tensor(blocks).row<int32_t>(0);
  problem.blocks_stride = g.tensor(blocks).stride[0] / 4;
  problem.window = p.window;
  problem.scale = p.scale;
  problem.y = values_of<float>(g.tensor(n.out[0]));
  problem.heads = problem.y.heads;
  problem.live = live_rows(g, n, n.in[0], step);
  return problem;
}

// Keys [latent ; rotated key], values the latent, of every head.
Problem latent(const Graph& g, const Node& n, const Values<float>& q_latent, Var q_rope, Var stream_var,
               Var seqs, Var blocks, const Step& step) {
  const Tensor& stream = g.tensor(stream_var);
  Problem p = cached(g, n, stream, seqs, blocks, step);
  p.q = q_latent;
  p.q_rest = values_of<float>(g.tensor(q_rope));
  p.keys = {bytes(stream), stream.stride[0], 0, stream.shape[1]};
  p.values = {bytes(stream), stream.stride[0], 0, q_latent.n};
  p.heads_per_group = p.heads;
  return p;
}

Problem grouped(const Graph& g, const Node& n, const Step& step) {
  const Tensor& stream = g.tensor(n.in[1]);
  Problem p = cached(g, n, stream, n.in[2], n.in[3], step);
  p.q = values_of<float>(g.tensor(n.in[0]));
  const int64_t groups = stream.shape[1] / (2 * p.q.n), size = p.q.n * size_of(stream.dtype);
  p.keys = {bytes(stream), stream.stride[0], size, p.q.n};
  p.values = {bytes(stream) + groups * size, stream.stride[0], size, p.q.n};
  p.heads_per_group = p.heads / groups;
  return p;
}

Problem masked(const Graph& g, const Node& n, const Step& step) {
  const Tensor &k = g.tensor(n.in[1]), &v = g.tensor(n.in[2]);
  Problem p = {};
  p.q = values_of<float>(g.tensor(n.in[0]));
  p.keys = {bytes(k), k.stride[0], k.stride[1], k.shape[2]};
  p.values = {bytes(v), v.stride[0], v.stride[1], v.shape[2]};
  p.dtype = DType::F32;
  p.heads = p.q.heads;
  p.heads_per_group = 1;
  p.seqs = g.tensor(n.in[4]).row<int32_t>(0);
  if (n.in[3]) {
    p.mask = g.tensor(n.in[3]).row<float>(0);
    p.mask_stride = g.tensor(n.in[3]).stride[0] / 4;
  }
  p.scale = std::get<AttentionParams>(n.params).scale;
  p.y = values_of<float>(g.tensor(n.out[0]));
  p.live = live_rows(g, n, n.in[0], step);
  return p;
}

// Scratch of attention_expanded: the query and the result in the latent space, [T, H, r] each, and the parts.
struct Expanded {
  Values<float> query, result;
  float* partials;
  int64_t bytes;

  Expanded(const Graph& g, const Node& n, std::byte* memory) {
    const int64_t tokens = g.tensor(n.in[0]).shape[0], heads = g.tensor(n.in[0]).shape[1],
                  r = g.tensor(n.in[2]).shape[1];
    Carver carve(memory);
    query = {carve.take<float>(tokens * heads * r), heads * r, r, heads, r};
    result = {carve.take<float>(tokens * heads * r), heads * r, r, heads, r};
    const int64_t context = std::get<AttentionParams>(n.params).context;
    partials = carve.take<float>(partial_bytes(tokens, context, heads, r) / int64_t(sizeof(float)));
    bytes = carve.used();
  }
};

bool rounds_to_bf16(const Step& step) {
  return step.phase == kPrompt && !step.exact;
}

}  // namespace

int64_t attention_workspace(const Graph& g, const Node& n) {
  const Tensor& y = g.tensor(n.out[0]);
  switch (n.op) {
    case Op::AttentionExpanded:  // one or the other
      return std::max(Expanded(g, n, nullptr).bytes, prompt_attention_workspace(g, n));
    case Op::AttentionLatent:
    case Op::AttentionGrouped:
      return partial_bytes(y.shape[0], std::get<AttentionParams>(n.params).context, y.shape[1], y.shape[2]);
    default: return 0;
  }
}

Status check_attention(const Graph& g, const Node& n) {
  Problem p = {};
  p.heads_per_group = 1;
  const int64_t width = g.tensor(n.in[0]).shape[2];
  switch (n.op) {
    case Op::AttentionLatent:
      p.q.n = g.tensor(n.in[2]).shape[1];
      p.values.n = width;
      break;
    case Op::AttentionExpanded:
      p.q.n = g.tensor(n.in[3]).shape[1];
      p.values.n = g.tensor(n.in[2]).shape[1];
      break;
    default: p.q.n = p.values.n = width;
  }
  if (p.heads_of_block() >= 1) return {};
  return unsupported(op_name(n.op), " on a GPU: a head's query of ", p.q.n, " values and result of ",
                     p.values.n, " do not fit the ", kSharedBytes, " bytes that a block shares");
}

void attention_latent(const Graph& g, const Node& n, const Step& step) {
  if (rounds_to_bf16(step) && has_absorbed_attention(g, n)) return absorbed_attention(g, n, step);
  const Problem p =
      latent(g, n, values_of<float>(g.tensor(n.in[0])), n.in[1], n.in[2], n.in[3], n.in[4], step);
  attend(step, p, std::get<AttentionParams>(n.params).context, g.tensor(n.workspace).row<float>(0));
}

// In the latent space too: the query goes there by each head's key rows, the result comes back by its value rows. Keys and
// values are never expanded, so no memory grows with the context.
void attention_expanded(const Graph& g, const Node& n, const Step& step) {
  if (rounds_to_bf16(step) && has_prompt_attention(g, n)) return prompt_attention(g, n, step);
  const Tensor &q_nope = g.tensor(n.in[0]), &kv_b = g.tensor(n.in[2]), &y = g.tensor(n.out[0]);
  const int64_t dn = q_nope.shape[2], dv = y.shape[2];
  const Expanded scratch(g, n, g.tensor(n.workspace).data);
  Problem p = latent(g, n, scratch.query, n.in[1], n.in[3], n.in[4], n.in[5], step);
  p.y = scratch.result;
  per_head(step, matrix_of(kv_b), {dn + dv, 0, dn}, true, values_of<float>(q_nope), scratch.query, p.live);
  attend(step, p, std::get<AttentionParams>(n.params).context, scratch.partials);
  per_head(step, matrix_of(kv_b), {dn + dv, dn, dv}, false, scratch.result, values_of<float>(y), p.live);
}

void attention_grouped(const Graph& g, const Node& n, const Step& step) {
  if (rounds_to_bf16(step) && has_prompt_attention(g, n)) return prompt_attention(g, n, step);
  attend(step, grouped(g, n, step), std::get<AttentionParams>(n.params).context,
         g.tensor(n.workspace).row<float>(0));
}

void attention_masked(const Graph& g, const Node& n, const Step& step) {
  attend(step, masked(g, n, step), 0, nullptr);
}

}  // namespace lite::cuda
