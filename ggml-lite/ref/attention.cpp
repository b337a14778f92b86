// Causal attention over the rows of a stream, one (token, head) or (sequence, head) at a time.
#include <algorithm>
#include <cmath>

#include "ggml-lite/cached_rows.h"
#include "ggml-lite/ref/ref.h"

namespace lite::ref {
namespace {

struct Cache : CachedRows {
  void read(int64_t s, int64_t position, float* to) const { read(s, position, 0, stream.shape[1], to); }
  void read(int64_t s, int64_t position, int64_t first, int64_t n, float* to) const {
    decode(stream.dtype, row(s, position) + first * size_of(stream.dtype), to, n);
  }
};

// Scores [n] to probabilities, in place.
void softmax(float* score, int64_t n) {
  const float largest = *std::max_element(score, score + n);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += score[i] = std::exp(score[i] - largest);
  for (int64_t i = 0; i < n; ++i) score[i] /= sum;
}

// Floats of scratch per thread: scores and one row; expanded, also the keys and values of one head.
int64_t scratch_floats(const Graph& g, const Node& n) {
  const int64_t context = std::get<AttentionParams>(n.params).context;
  if (n.op == Op::AttentionMasked) return context;
  if (n.op == Op::AttentionGrouped) return context + g.tensor(n.out[0]).shape[2];
  if (n.op == Op::AttentionLatent) return context + g.tensor(n.in[2]).shape[1];
  const int64_t dn = g.tensor(n.in[0]).shape[2], dv = g.tensor(n.out[0]).shape[2],
                dr = g.tensor(n.in[1]).shape[2];
  return context * (1 + dn + dr + dv) + std::max(g.tensor(n.in[3]).shape[1], dn + dr) +
         g.tensor(n.in[2]).shape[1];
}

}  // namespace

int64_t attention_workspace(const Graph& g, const Node& n, int threads) {
  return threads * scratch_floats(g, n) * int64_t(sizeof(float));
}

void attention_latent(const Graph& g, const Node& n, const Team& team) {
  const Tensor &q_latent = g.tensor(n.in[0]), &q_rope = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const Cache cache{g.tensor(n.in[2]), g.tensor(n.in[3]).row<int32_t>(0), g.tensor(n.in[4])};
  const auto [scale, context, window] = std::get<AttentionParams>(n.params);
  const int64_t heads = y.shape[1], r = y.shape[2], dr = q_rope.shape[2];
  float* score = g.tensor(n.workspace).row<float>(0) + team.index * scratch_floats(g, n);
  float* row = score + context;

  const auto [first, end] = team.share(g.live_rows(n, n.in[0]) * heads);
  for (int64_t i = first; i < end; ++i) {
    const int64_t t = i / heads, h = i % heads, s = cache.sequence_of(t), length = cache.visible(s, t);
    for (int64_t p = 0; p < length; ++p) {
      cache.read(s, p, row);
      score[p] = scale * (dot(q_latent.row<float>(t, h), row, r) + dot(q_rope.row<float>(t, h), row + r, dr));
    }
    softmax(score, length);
    float* out = y.row<float>(t, h);
    std::fill_n(out, r, 0.0f);
    for (int64_t p = 0; p < length; ++p) {
      cache.read(s, p, row);
      for (int64_t j = 0; j < r; ++j) out[j] += score[p] * row[j];
    }
  }
}

void attention_expanded(const Graph& g, const Node& n, const Team& team) {
  const Tensor &q_nope = g.tensor(n.in[0]), &q_rope = g.tensor(n.in[1]), &kv_b = g.tensor(n.in[2]),
               &y = g.tensor(n.out[0]);
  const Cache cache{g.tensor(n.in[3]), g.tensor(n.in[4]).row<int32_t>(0), g.tensor(n.in[5])};
  const auto [scale, context, window] = std::get<AttentionParams>(n.params);
  const int64_t heads = y.shape[1], dn = q_nope.shape[2], dr = q_rope.shape[2], dv = y.shape[2],
                r = kv_b.shape[1];
  const int64_t dq = dn + dr;
  float* score = g.tensor(n.workspace).row<float>(0) + team.index * scratch_floats(g, n);
  float* keys = score + context;        // [context, dq]
  float* values = keys + context * dq;  // [context, dv]
  float* row = values + context * dv;   // a cached row, then a query
  float* weight_row = row + std::max(cache.stream.shape[1], dq);

  const int64_t sequences = g.tensor(n.counts).row<int32_t>(0)[kSequences];
  const auto [first, end] = team.share(sequences * heads);
  for (int64_t i = first; i < end; ++i) {
    const int64_t s = i / heads, h = i % heads, length = cache.length(s);
    for (int64_t j = 0; j < dn + dv; ++j) {
      decode_row(kv_b, h * (dn + dv) + j, weight_row);
      for (int64_t p = 0; p < length; ++p) {
        cache.read(s, p, row);
        float& to = j < dn ? keys[p * dq + j] : values[p * dv + j - dn];
        to = dot(row, weight_row, r);
        if (j == 0) std::copy_n(row + r, dr, keys + p * dq + dn);
      }
    }
    for (int64_t t = cache.first(s); t < cache.first(s) + cache.count(s); ++t) {
      std::copy_n(q_nope.row<float>(t, h), dn, row);
      std::copy_n(q_rope.row<float>(t, h), dr, row + dn);
      const int64_t visible = cache.visible(s, t);
      for (int64_t p = 0; p < visible; ++p) score[p] = scale * dot(row, keys + p * dq, dq);
      softmax(score, visible);
      float* out = y.row<float>(t, h);
      std::fill_n(out, dv, 0.0f);
      for (int64_t p = 0; p < visible; ++p)
        for (int64_t j = 0; j < dv; ++j) out[j] += score[p] * values[p * dv + j];
    }
  }
}

void attention_grouped(const Graph& g, const Node& n, const Team& team) {
  const Tensor &q = g.tensor(n.in[0]), &stream = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const Cache cache{stream, g.tensor(n.in[2]).row<int32_t>(0), g.tensor(n.in[3])};
  const auto [scale, context, window] = std::get<AttentionParams>(n.params);
  const int64_t heads = y.shape[1], size = y.shape[2], groups = stream.shape[1] / (2 * size);
  float* score = g.tensor(n.workspace).row<float>(0) + team.index * scratch_floats(g, n);
  float* row = score + context;

  const auto [first, end] = team.share(g.live_rows(n, n.in[0]) * heads);
  for (int64_t i = first; i < end; ++i) {
    const int64_t t = i / heads, h = i % heads, s = cache.sequence_of(t), length = cache.visible(s, t);
    const int64_t from = window ? std::max<int64_t>(0, length - window) : 0;
    const int64_t key = h / (heads / groups) * size, value = key + groups * size;
    for (int64_t p = from; p < length; ++p) {
      cache.read(s, p, key, size, row);
      score[p] = scale * dot(q.row<float>(t, h), row, size);
    }
    softmax(score + from, length - from);
    float* out = y.row<float>(t, h);
    std::fill_n(out, size, 0.0f);
    for (int64_t p = from; p < length; ++p) {
      cache.read(s, p, value, size, row);
      for (int64_t j = 0; j < size; ++j) out[j] += score[p] * row[j];
    }
  }
}

void attention_masked(const Graph& g, const Node& n, const Team& team) {
  const Tensor &q = g.tensor(n.in[0]), &k = g.tensor(n.in[1]), &v = g.tensor(n.in[2]),
               &y = g.tensor(n.out[0]);
  const int32_t* seqs = g.tensor(n.in[4]).row<int32_t>(0);
  const float scale = std::get<AttentionParams>(n.params).scale;
  const int64_t heads = y.shape[1], size = y.shape[2];
  float* score = g.tensor(n.workspace).row<float>(0) + team.index * scratch_floats(g, n);

  const auto [first, end] = team.share(g.live_rows(n, n.in[0]) * heads);
  for (int64_t i = first; i < end; ++i) {
    const int64_t t = i / heads, h = i % heads;
    int64_t s = 0;
    while (t >= seqs[3 * s] + seqs[3 * s + 1]) ++s;
    const int64_t start = seqs[3 * s], count = seqs[3 * s + 1];
    for (int64_t j = 0; j < count; ++j) {
      score[j] = scale * dot(q.row<float>(t, h), k.row<float>(start + j, h), size);
      if (n.in[3]) score[j] += g.tensor(n.in[3]).row<float>(t - start)[j];
    }
    softmax(score, count);
    float* out = y.row<float>(t, h);
    std::fill_n(out, size, 0.0f);
    for (int64_t j = 0; j < count; ++j)
      for (int64_t c = 0; c < size; ++c) out[c] += score[j] * v.row<float>(start + j, h)[c];
  }
}

}  // namespace lite::ref
