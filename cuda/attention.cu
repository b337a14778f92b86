// Attention of every kind in f32: of decode steps, in exact mode, and what attention.h has no kernels for. In a decode step
// blocks take parts of a long context side by side, and the parts are merged.
#include "cuda/attention.h"
#include "cuda/stages/attention.h"

namespace lite::cuda {
namespace {

// Only cached rows are attended to in parts, and only in decode steps.
void attend(const Step& step, const AttentionProblem& p, int64_t context, float* partials) {
  const int64_t block_heads = p.sizes().heads_of_block(p.heads_per_group),
                shared = p.sizes().shared_bytes(block_heads);
  const int64_t head_blocks = p.heads / p.heads_per_group * ceil_div(p.heads_per_group, block_heads);
  if (step.phase == kPrompt || !p.blocks)
    return give(step, Attention{p, 0, int(block_heads), 1, {}}, {p.live.most, head_blocks}, shared);
  const auto split = int(split_of_heads(p.heads));
  const int64_t parts = most_parts(context, p.heads);
  const Partial partial = {partials, parts, p.heads, p.values.n};
  for (int64_t token0 = 0; token0 < p.live.most; token0 += kTokenGroup) {
    const int64_t tokens = std::min<int64_t>(kTokenGroup, p.live.most - token0);
    give(step, Attention{p, token0, int(block_heads), split, partial}, {tokens, head_blocks, parts}, shared);
    step.program->add(Merge{p, token0, split, partial}, {tokens, p.heads});
  }
}

// Rows of `t`, or of a part of its rows of n values that begins `offset` bytes into them.
Cached cached_rows(const Tensor& t, int64_t offset, int64_t row_stride, int64_t group_stride, int64_t n) {
  const uint8_t* data = reinterpret_cast<const uint8_t*>(t.data) + offset;
  const int64_t pair = 2 * size_of(t.dtype);
  const bool wide = (int64_t(reinterpret_cast<uintptr_t>(data)) | row_stride | group_stride) % pair == 0;
  return {data, row_stride, group_stride, n, wide && n % 2 == 0};
}

// The parts of a problem that every op of cached rows has alike.
AttentionProblem cached(const Graph& g, const Node& n, const Tensor& stream, Var seqs, Var blocks,
                        const Step& step) {
  const auto p = std::get<AttentionParams>(n.params);
  AttentionProblem problem = {};
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
AttentionProblem latent(const Graph& g, const Node& n, const Values<float>& q_latent, Var q_rope,
                        Var stream_var, Var seqs, Var blocks, const Step& step) {
  const Tensor& stream = g.tensor(stream_var);
  AttentionProblem p = cached(g, n, stream, seqs, blocks, step);
  p.q = q_latent;
  p.q_rest = values_of<float>(g.tensor(q_rope));
  p.keys = cached_rows(stream, 0, stream.stride[0], 0, stream.shape[1]);
  p.values = cached_rows(stream, 0, stream.stride[0], 0, q_latent.n);
  p.heads_per_group = p.heads;
  return p;
}

AttentionProblem grouped(const Graph& g, const Node& n, const Step& step) {
  const Tensor& stream = g.tensor(n.in[1]);
  AttentionProblem p = cached(g, n, stream, n.in[2], n.in[3], step);
  p.q = values_of<float>(g.tensor(n.in[0]));
  const int64_t groups = stream.shape[1] / (2 * p.q.n), size = p.q.n * size_of(stream.dtype);
  p.keys = cached_rows(stream, 0, stream.stride[0], size, p.q.n);
  p.values = cached_rows(stream, groups * size, stream.stride[0], size, p.q.n);
  p.heads_per_group = p.heads / groups;
  return p;
}

AttentionProblem masked(const Graph& g, const Node& n, const Step& step) {
  const Tensor &k = g.tensor(n.in[1]), &v = g.tensor(n.in[2]);
  AttentionProblem p = {};
  p.q = values_of<float>(g.tensor(n.in[0]));
  p.keys = cached_rows(k, 0, k.stride[0], k.stride[1], k.shape[2]);
  p.values = cached_rows(v, 0, v.stride[0], v.stride[1], v.shape[2]);
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

bool rounds_to_bf16(const Step& step) {
  return step.phase == kPrompt && !step.exact;
}

}  // namespace

void attention_latent(const Graph& g, const Node& n, const Step& step) {
  if (rounds_to_bf16(step) && has_absorbed_attention(g, n)) return absorbed_attention(g, n, step);
  const AttentionProblem p =
      latent(g, n, values_of<float>(g.tensor(n.in[0])), n.in[1], n.in[2], n.in[3], n.in[4], step);
  attend(step, p, std::get<AttentionParams>(n.params).context, g.tensor(n.workspace).row<float>(0));
}

// In the latent space too: the query goes there by each head's key rows, the result comes back by its value rows. Keys and
// values are never expanded, so no memory grows with the context.
void attention_expanded(const Graph& g, const Node& n, const Step& step) {
  if (rounds_to_bf16(step) && has_prompt_attention(g, n)) return prompt_attention(g, n, step);
  const Tensor &q_nope = g.tensor(n.in[0]), &kv_b = g.tensor(n.in[2]), &y = g.tensor(n.out[0]);
  const int64_t dn = q_nope.shape[2], dv = y.shape[2], heads = y.shape[1], r = kv_b.shape[1];
  const ExpandedWorkspace scratch = expanded_workspace(g, n, g.tensor(n.workspace).data);
  const Values<float> query = {scratch.query, heads * r, r, heads, r},
                      result = {scratch.result, heads * r, r, heads, r};
  AttentionProblem p = latent(g, n, query, n.in[1], n.in[3], n.in[4], n.in[5], step);
  p.y = result;
  per_head(step, matrix_of(kv_b), {dn + dv, 0, dn}, true, values_of<float>(q_nope), query, p.live);
  attend(step, p, std::get<AttentionParams>(n.params).context, scratch.partials);
  per_head(step, matrix_of(kv_b), {dn + dv, dn, dv}, false, result, values_of<float>(y), p.live);
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
