// Causal attention over cached rows, by blocks of positions.
//
// All kinds are one: query rows meet the keys and values of a block of positions, f32 sums of exp(score - top) and of
// weighted values are kept per row, and blocks are merged in order. Blocks begin at multiples of kSpan positions, and
// how many blocks make a split depends on the row's own length only, so that neither threads nor the rows beside a row
// change its bits.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "ggml-lite/cached_rows.h"
#include "ggml-lite/cpu/cpu.h"

namespace lite::cpu {
namespace {

constexpr int64_t kSpan = kTileSpan;  // positions of a block
constexpr int64_t kQueryRows = 64;    // rows that meet a block at once in a prompt
constexpr int64_t kMaxSplits = 32;    // parts of a sequence that threads do side by side
constexpr float kNever = -std::numeric_limits<float>::infinity();

// Sizes of one kind of attention: keys of `key` values, values of `value`; `group` query heads share them.
struct Shape {
  int64_t heads, group, key, value, context, tokens;
  int64_t latent;  // expanded: values of a cached latent; 0: keys and values are in the cache as they are
  int stream;      // which input of the node is the cache
  float scale;
  int64_t window;

  explicit Shape(const Graph& g, const Node& n) {
    const auto& p = std::get<AttentionParams>(n.params);
    const Tensor &q = g.tensor(n.in[0]), &y = g.tensor(n.out[0]);
    scale = p.scale;
    context = p.context;
    window = p.window;
    tokens = y.shape[0];
    heads = y.shape[1];
    value = y.shape[2];
    latent = 0;
    group = heads;
    key = q.shape[2];
    stream = n.op == Op::AttentionGrouped ? 1 : n.op == Op::AttentionLatent ? 2 : 3;
    if (n.op == Op::AttentionGrouped) {
      group = heads / (g.tensor(n.in[1]).shape[1] / (2 * value));
    } else {
      key += g.tensor(n.in[1]).shape[2];  // the rotated part
      if (n.op == Op::AttentionExpanded) latent = g.tensor(n.in[2]).shape[1], group = 1;
    }
  }
  int64_t splits() const { return std::min(kMaxSplits, ceil_div(context, kSpan)); }
  // Of positions [first, first + n), those that a row seeing [first_visible(visible), visible) sees, from `first` on.
  std::pair<int64_t, int64_t> seen(int64_t visible, int64_t first, int64_t n) const {
    const int64_t end = std::clamp<int64_t>(visible - first, 0, n);
    return {std::clamp<int64_t>(first_visible(visible) - first, 0, end), end};
  }
  int64_t first_visible(int64_t visible) const { return window ? std::max<int64_t>(0, visible - window) : 0; }
};

// Which arithmetic a node gets: queries, keys and exponentials in bf16, and that on the matrix unit, values too.
struct Ways {
  bool bf16, tiles, expand_on_tiles;

  Ways(const Graph& g, const Node& n, const Arithmetic& a) {
    const Shape s(g, n);
    bf16 = a.k->gemm_bf16 && !a.exact && g.tensor(n.in[s.stream]).dtype == DType::BF16;
    tiles = bf16 && a.k->tiles.product && s.key % kTileColumns == 0 && s.value % kTileColumns == 0;
    expand_on_tiles = s.latent && tiles_take(a, g.tensor(n.in[2]));
  }
};

// What a row has seen so far: its y is the sum of exp(score - top) * value, total that of exp(score - top).
struct State {
  float top, total;
};

// A thread's scratch, and what all threads share.
struct Memory {
  float *q, *keys, *values, *latents, *scores, *sums;
  uint16_t *q16, *keys16;
  // On the matrix unit: packed queries and latents, exponentials, values as they are and packed; of each query what it
  // sees of a span, and its state.
  uint16_t *packed_q, *packed_latents, *shares, *values16, *packed_values;
  int32_t *begin, *end;
  float *top, *total, *keep;
  State* state;
  const float** latent_row;
  std::byte* product;
  float* partial;  // shared: [splits, heads, value]
  State* partial_state;
  int64_t bytes;

  Memory(const Graph& g, const Node& n, std::byte* base, int threads, int thread, const Arithmetic& a) {
    const Shape s(g, n);
    const Ways ways(g, n, a);
    Carver carve(base);
    partial = carve.take<float>(s.latent ? 0 : s.splits() * s.heads * s.value);
    partial_state = carve.take<State>(s.latent ? 0 : s.splits() * s.heads);
    for (int i = 0; i < threads; ++i) {
      Memory m;
      m.q = carve.take<float>(kQueryRows * s.key);
      m.q16 = carve.take<uint16_t>(kQueryRows * s.key);
      m.keys = carve.take<float>(kSpan * s.key);
      m.scores = carve.take<float>(kQueryRows * kSpan);
      m.state = carve.take<State>(s.latent ? s.tokens : kQueryRows);
      m.sums = carve.take<float>(s.latent ? 0 : kQueryRows * s.value);
      m.keys16 = carve.take<uint16_t>(s.latent ? kSpan * s.key : 0);
      m.values = carve.take<float>(s.latent ? kSpan * s.value : 0);
      m.latents = carve.take<float>(kSpan * s.latent);
      m.latent_row = carve.take<const float*>(s.latent ? kSpan : 0);
      m.product = carve.take<std::byte>(s.latent ? ProductScratch::bytes(s.latent) : 0);
      const int64_t rows = ways.tiles ? kQueryRows : 0, span = ways.tiles ? kSpan : 0;
      m.packed_q = carve.take<uint16_t>(packed_rows(rows, s.key));
      m.packed_latents = carve.take<uint16_t>(ways.expand_on_tiles ? packed_rows(kSpan, s.latent) : 0);
      m.shares = carve.take<uint16_t>(rows * kSpan);
      m.values16 = carve.take<uint16_t>(s.latent ? span * s.value : 0);
      m.packed_values = carve.take<uint16_t>(span * s.value);
      m.begin = carve.take<int32_t>(rows);
      m.end = carve.take<int32_t>(rows);
      m.top = carve.take<float>(rows);
      m.total = carve.take<float>(rows);
      m.keep = carve.take<float>(rows);
      if (i != thread) continue;
      m.partial = partial;
      m.partial_state = partial_state;
      *this = m;
    }
    bytes = carve.used();
  }

 private:
  Memory() = default;
};

// Keys and values of up to kSpan positions.
struct Span {
  int64_t first, n;  // positions
  const void* key[kSpan];
  // Runs of rows at a fixed distance.
  struct Run {
    const void* value;
    int64_t n;
  } run[kSpan / kBlockRows];
  int n_runs;
  Elem value_type;
  int64_t key_stride, value_stride;  // bytes
};

// Up to kQueryRows rows that meet the same keys.
struct Queries {
  int64_t n = 0;
  const void* q[kQueryRows];    // f32, or bf16 where scores are computed so
  int64_t visible[kQueryRows];  // a row sees positions [first_visible(visible), visible)
  float* y;                     // sums, y_stride apart
  int64_t y_stride;
  State* state;
};

// One thread's part in one attention node.
class Attention {
 public:
  Attention(const Graph& g, const Node& n, const Team& team, const Arithmetic& a)
      : g_(g),
        n_(n),
        team_(team),
        k_(*a.k),
        arithmetic_(a),
        shape_(g, n),
        cache_{g.tensor(n.in[shape_.stream]), g.tensor(n.in[shape_.stream + 1]).row<int32_t>(0),
               g.tensor(n.in[shape_.stream + 2])},
        y_(g.tensor(n.out[0])),
        ways_(g, n, a),
        m_(g, n, g.tensor(n.workspace).data, team.size, team.index, a),
        use_(a, ways_.tiles || ways_.expand_on_tiles) {}

  // Keys and values as they are cached. A decode step: a task is some heads of a token with one split of the positions.
  void decode_cached();
  // A prompt: a task is a block of rows, with all positions that they see.
  void prompt_cached();
  // Keys and values expanded from latents: a task is a head of a sequence, block by block.
  void expanded(const Tensor& kv_b);

 private:
  void add_query(Queries* queries, int64_t s, int64_t t, int64_t h);
  void read_span(int64_t s, int64_t group, int64_t first, int64_t n, Span* span);
  void expand_span(const Tensor& kv_b, int64_t s, int64_t h, int64_t first, int64_t n, Span* span);
  // All rows of `queries` are there.
  void ready(const Queries& queries);
  void meet(const Span& span, Queries& queries);
  void meet_on_tiles(const Span& span, Queries& queries);

  const Graph& g_;
  const Node& n_;
  const Team& team_;
  const Kernels& k_;
  const Arithmetic& arithmetic_;
  const Shape shape_;
  const CachedRows cache_;
  const Tensor& y_;
  const Ways ways_;
  const Memory m_;
  const TileUse use_;
};

// Appends query head h of token t: its parts side by side, in the type of the scores' product.
void Attention::add_query(Queries* queries, int64_t s, int64_t t, int64_t h) {
  const Tensor& a = g_.tensor(n_.in[0]);
  const int64_t i = queries->n++, first = a.shape[2], rest = shape_.key - first;
  float* const q = m_.q + i * shape_.key;
  std::copy_n(a.row<float>(t, h), first, q);
  if (rest) std::copy_n(g_.tensor(n_.in[1]).row<float>(t, h), rest, q + first);
  queries->q[i] = q;
  queries->visible[i] = cache_.visible(s, t);
  if (!ways_.bf16 || ways_.tiles) return;
  k_.to_bf16(q, 1, m_.q16 + i * shape_.key, shape_.key);
  queries->q[i] = m_.q16 + i * shape_.key;
}

void Attention::ready(const Queries& queries) {
  if (ways_.tiles)
    pack_rows(arithmetic_, reinterpret_cast<const float* const*>(queries.q), queries.n, shape_.key,
              m_.packed_q);
}

void Attention::read_span(int64_t s, int64_t group, int64_t first, int64_t n, Span* span) {
  const Tensor& stream = cache_.stream;
  const int64_t size = size_of(stream.dtype), groups = shape_.heads / shape_.group;
  // Latent rows are [latent ; key], of which all is the key and the latent the value; others [keys ; values].
  const bool latent = n_.op == Op::AttentionLatent;
  const int64_t key_at = latent ? 0 : group * shape_.key,
                value_at = latent ? 0 : (groups + group) * shape_.value;
  *span = {};
  span->first = first;
  span->n = n;
  span->value_type = elem_of(stream.dtype);
  span->key_stride = span->value_stride = stream.stride[0];
  const bool direct = ways_.bf16 || stream.dtype == DType::F32;
  for (int64_t p = 0; p < n; ++p) {
    const std::byte* const row = cache_.row(s, first + p);
    span->key[p] = row + key_at * size;
    if (!direct) {
      float* const key = m_.keys + p * shape_.key;
      k_.to_f32(elem_of(stream.dtype), row + key_at * size, 1, key, shape_.key);
      span->key[p] = key;
    }
    if ((first + p) % kBlockRows == 0 || p == 0) span->run[span->n_runs++] = {row + value_at * size, 0};
    ++span->run[span->n_runs - 1].n;
  }
}

// Keys [nope from the latent ; rotated part from the cache] and values of one head.
void Attention::expand_span(const Tensor& kv_b, int64_t s, int64_t h, int64_t first, int64_t n, Span* span) {
  const Tensor& stream = cache_.stream;
  const int64_t r = shape_.latent, dv = shape_.value, dk = shape_.key, dn = g_.tensor(n_.in[0]).shape[2];
  ProductScratch scratch(m_.product, r);
  for (int64_t p = 0; p < n; ++p) {
    const std::byte* const row = cache_.row(s, first + p);
    float* const latent = m_.latents + p * r;
    k_.to_f32(elem_of(stream.dtype), row, 1, latent, r);
    k_.to_f32(elem_of(stream.dtype), row + r * size_of(stream.dtype), 1, m_.keys + p * dk + dn, dk - dn);
    m_.latent_row[p] = latent;
  }
  const auto product = [&](int64_t row, int64_t rows, float* to, int64_t stride) {
    if (ways_.expand_on_tiles)
      tile_product(arithmetic_, kv_b, row, rows, m_.packed_latents, n, to, stride, scratch);
    else
      prompt_product(arithmetic_, kv_b, row, rows, m_.latent_row, n, to, stride, scratch);
  };
  if (ways_.expand_on_tiles) pack_rows(arithmetic_, m_.latent_row, n, r, m_.packed_latents);
  product(h * (dn + dv), dn, m_.keys, dk);
  product(h * (dn + dv) + dn, dv, m_.values, dv);
  *span = {};
  span->first = first;
  span->n = n;
  for (int64_t p = 0; p < n; ++p) {
    span->key[p] = m_.keys + p * dk;
    if (!ways_.bf16) continue;
    k_.to_bf16(m_.keys + p * dk, 1, m_.keys16 + p * dk, dk);
    span->key[p] = m_.keys16 + p * dk;
  }
  span->n_runs = 1;
  span->key_stride = dk * int64_t(sizeof(uint16_t));
  if (ways_.tiles) {
    k_.to_bf16(m_.values, 1, m_.values16, n * dv);
    span->run[0] = {m_.values16, n};
    span->value_type = Elem::Bf16;
    span->value_stride = dv * int64_t(sizeof(uint16_t));
  } else {
    span->run[0] = {m_.values, n};
    span->value_type = Elem::F32;
    span->value_stride = dv * int64_t(sizeof(float));
  }
}

// Adds what the rows see of a span to their sums (the online softmax of arXiv:1805.02867).
void Attention::meet(const Span& span, Queries& queries) {
  if (ways_.tiles) return meet_on_tiles(span, queries);
  if (ways_.bf16)
    k_.gemm_bf16(reinterpret_cast<const uint16_t* const*>(queries.q), queries.n,
                 reinterpret_cast<const uint16_t* const*>(span.key), span.n, shape_.key, m_.scores, kSpan,
                 false);
  else
    k_.gemm_f32(reinterpret_cast<const float* const*>(queries.q), queries.n,
                reinterpret_cast<const float* const*>(span.key), span.n, shape_.key, m_.scores, kSpan, false);
  for (int64_t i = 0; i < queries.n; ++i) {
    float* const score = m_.scores + i * kSpan;
    const auto [begin, end] = shape_.seen(queries.visible[i], span.first, span.n);
    std::fill_n(score, begin, 0.0f);
    std::fill_n(score + end, span.n - end, 0.0f);
    if (begin == end) continue;
    k_.scale(score + begin, shape_.scale, end - begin);
    State& state = queries.state[i];
    const float top = std::max(state.top, k_.max(score + begin, end - begin));
    const float keep = std::exp(state.top - top);
    state.total = state.total * keep + k_.exp_sum(score + begin, top, end - begin);
    if (keep != 1) k_.scale(queries.y + i * queries.y_stride, keep, shape_.value);
    state.top = top;
  }
  int64_t p = 0;
  for (int r = 0; r < span.n_runs; p += span.run[r++].n)
    k_.accumulate(span.value_type, m_.scores + p, kSpan, queries.n, span.run[r].value, span.value_stride,
                  span.run[r].n, queries.y, queries.y_stride, shape_.value);
}

void Attention::meet_on_tiles(const Span& span, Queries& queries) {
  const Tiles& tiles = k_.tiles;
  const int64_t groups = ceil_div(queries.n, kTile), width = groups * kTile;
  int64_t p = 0;
  for (int r = 0; r < span.n_runs; p += span.run[r++].n)
    tiles.product(static_cast<const uint16_t*>(span.key[p]), span.key_stride, span.run[r].n, m_.packed_q,
                  packed_group(shape_.key), groups, shape_.key, nullptr, m_.scores + p * width, false);
  for (int64_t i = 0; i < width; ++i) {
    const bool live = i < queries.n;
    const int64_t visible = live ? queries.visible[i] : 0;
    std::tie(m_.begin[i], m_.end[i]) = shape_.seen(visible, span.first, span.n);
    m_.top[i] = live ? queries.state[i].top : kNever;
    m_.total[i] = live ? queries.state[i].total : 0;
  }
  tiles.softmax(m_.scores, span.n, groups, m_.begin, m_.end, shape_.scale, m_.top, m_.total, m_.keep,
                m_.shares);
  for (int64_t i = 0; i < queries.n; ++i) queries.state[i] = {m_.top[i], m_.total[i]};
  p = 0;
  for (int r = 0; r < span.n_runs; p += span.run[r++].n)
    tiles.pack_values(span.run[r].value, span.value_stride, span.run[r].n, shape_.value, p, span.n,
                      m_.packed_values);
  tiles.mix(m_.shares, queries.n, span.n, m_.packed_values, shape_.value, m_.keep, queries.y,
            queries.y_stride);
}

void Attention::decode_cached() {
  const int64_t tokens = g_.live_rows(n_, n_.in[0]), group = shape_.group, groups = shape_.heads / group;
  const int64_t rows = std::min(group, kQueryRows), parts = ceil_div(group, rows);
  // A token with the spans [first, end) it sees, and where its splits of them begin among those of its wave.
  struct Seen {
    int64_t t, s, visible, first, end, per_split, splits, place;
  };
  const auto seen_by = [&](int64_t t, int64_t place) {
    const int64_t s = cache_.sequence_of(t), visible = cache_.visible(s, t);
    const int64_t first = shape_.first_visible(visible) / kSpan, end = ceil_div(visible, kSpan);
    const int64_t per_split = ceil_div(end - first, kMaxSplits);
    return Seen{t, s, visible, first, end, per_split, ceil_div(end - first, per_split), place};
  };
  // As many tokens at a time as there is room for their splits.
  for (int64_t t0 = 0; t0 < tokens;) {
    Seen wave[kMaxSplits];
    int64_t n = 0, splits = 0;
    for (; n < kMaxSplits && t0 + n < tokens; splits += wave[n++].splits) {
      wave[n] = seen_by(t0 + n, splits);
      if (splits + wave[n].splits > shape_.splits()) break;
    }
    team_.tasks(splits * groups * parts, [&](int64_t i) {
      const int64_t part = i % parts, gr = i / parts % groups, place = i / parts / groups;
      const auto [t, s, visible, first, end, per_split, n_splits, from] =
          *std::find_if(wave, wave + n, [&](const Seen& w) { return place < w.place + w.splits; });
      const int64_t split = place - from;
      const int64_t h0 = gr * group + part * rows;
      Queries queries;
      for (int64_t h = h0; h < std::min(h0 + rows, (gr + 1) * group); ++h) add_query(&queries, s, t, h);
      ready(queries);
      queries.y = m_.partial + (place * shape_.heads + h0) * shape_.value;
      queries.y_stride = shape_.value;
      queries.state = m_.partial_state + place * shape_.heads + h0;
      std::fill_n(queries.y, queries.n * shape_.value, 0.0f);
      std::fill_n(queries.state, queries.n, State{kNever, 0});
      Span span;
      const int64_t last = std::min(end, first + (split + 1) * per_split);
      for (int64_t b = first + split * per_split; b < last; ++b) {
        const int64_t begin = b * kSpan;
        read_span(s, gr, begin, std::min(kSpan, visible - begin), &span);
        meet(span, queries);
      }
    });
    team_.barrier();
    // Merges the splits of each head, in order.
    const auto [first, end] = team_.share(n * shape_.heads);
    for (int64_t i = first; i < end; ++i) {
      const int64_t h = i % shape_.heads;
      const int64_t t = wave[i / shape_.heads].t, n_splits = wave[i / shape_.heads].splits,
                    place = wave[i / shape_.heads].place;
      const State* state = m_.partial_state + place * shape_.heads + h;
      float top = kNever, total = 0;
      for (int64_t j = 0; j < n_splits; ++j) top = std::max(top, state[j * shape_.heads].top);
      for (int64_t j = 0; j < n_splits; ++j)
        total += state[j * shape_.heads].total * std::exp(state[j * shape_.heads].top - top);
      float* const y = y_.row<float>(t, h);
      std::fill_n(y, shape_.value, 0.0f);
      for (int64_t j = 0; j < n_splits; ++j) {
        const float factor = std::exp(state[j * shape_.heads].top - top) / total;
        const float* const part = m_.partial + ((place + j) * shape_.heads + h) * shape_.value;
        for (int64_t c = 0; c < shape_.value; ++c) y[c] += factor * part[c];
      }
    }
    t0 += n;
    if (t0 < tokens) team_.barrier();
  }
}

void Attention::prompt_cached() {
  const int64_t group = shape_.group, groups = shape_.heads / group;
  // Whole tokens when they fit, else some heads of one.
  const int64_t tokens = std::max<int64_t>(1, kQueryRows / group), rows = std::min(group, kQueryRows);
  const int64_t parts = ceil_div(group, rows);
  const int64_t sequences = g_.tensor(n_.counts).row<int32_t>(0)[kSequences];
  int64_t tasks = 0;
  for (int64_t s = 0; s < sequences; ++s) tasks += ceil_div(cache_.count(s), tokens) * groups * parts;
  team_.tasks(tasks, [&](int64_t i) {
    int64_t s = 0;
    for (; i >= ceil_div(cache_.count(s), tokens) * groups * parts; ++s)
      i -= ceil_div(cache_.count(s), tokens) * groups * parts;
    const int64_t part = i % parts, gr = i / parts % groups,
                  t0 = cache_.first(s) + i / parts / groups * tokens;
    const int64_t t1 = std::min<int64_t>(t0 + tokens, cache_.first(s) + cache_.count(s));
    const int64_t h0 = gr * group + part * rows, h1 = std::min(h0 + rows, (gr + 1) * group);
    Queries queries;
    for (int64_t t = t0; t < t1; ++t)
      for (int64_t h = h0; h < h1; ++h) add_query(&queries, s, t, h);
    ready(queries);
    queries.y = m_.sums;
    queries.y_stride = shape_.value;
    queries.state = m_.state;
    std::fill_n(queries.y, queries.n * shape_.value, 0.0f);
    std::fill_n(queries.state, queries.n, State{kNever, 0});
    const int64_t end = cache_.visible(s, t1 - 1);
    Span span;
    for (int64_t b = shape_.first_visible(cache_.visible(s, t0)) / kSpan * kSpan; b < end; b += kSpan) {
      read_span(s, gr, b, std::min(kSpan, end - b), &span);
      meet(span, queries);
    }
    for (int64_t row = 0; row < queries.n; ++row) {
      float* const y = y_.row<float>(t0 + row / (h1 - h0), h0 + row % (h1 - h0));
      k_.to_f32(Elem::F32, queries.y + row * shape_.value, 1 / queries.state[row].total, y, shape_.value);
    }
  });
}

void Attention::expanded(const Tensor& kv_b) {
  const int64_t sequences = g_.tensor(n_.counts).row<int32_t>(0)[kSequences];
  team_.tasks(sequences * shape_.heads, [&](int64_t i) {
    const int64_t s = i / shape_.heads, h = i % shape_.heads;
    const int64_t first = cache_.first(s), end = first + cache_.count(s), length = cache_.length(s);
    for (int64_t t = first; t < end; ++t) std::fill_n(y_.row<float>(t, h), shape_.value, 0.0f);
    std::fill_n(m_.state, end - first, State{kNever, 0});
    Span span;
    for (int64_t b = 0; b < length; b += kSpan) {
      expand_span(kv_b, s, h, b, std::min(kSpan, length - b), &span);
      for (int64_t t0 = first; t0 < end; t0 += kQueryRows) {
        const int64_t t1 = std::min(t0 + kQueryRows, end);
        if (cache_.visible(s, t1 - 1) <= b) continue;
        Queries queries;
        for (int64_t t = t0; t < t1; ++t) add_query(&queries, s, t, h);
        ready(queries);
        queries.y = y_.row<float>(t0, h);
        queries.y_stride = y_.stride[0] / int64_t(sizeof(float));
        queries.state = m_.state + t0 - first;
        meet(span, queries);
      }
    }
    for (int64_t t = first; t < end; ++t)
      k_.scale(y_.row<float>(t, h), 1 / m_.state[t - first].total, shape_.value);
  });
}

}  // namespace

int64_t attention_workspace(const Graph& g, const Node& n, int threads, const Arithmetic& a) {
  return Memory(g, n, nullptr, threads, 0, a).bytes;
}

void attention_latent(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  Attention attention(g, n, team, a);
  is_prompt(g, n) ? attention.prompt_cached() : attention.decode_cached();
}

void attention_grouped(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  Attention attention(g, n, team, a);
  is_prompt(g, n) ? attention.prompt_cached() : attention.decode_cached();
}

void attention_expanded(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  Attention(g, n, team, a).expanded(g.tensor(n.in[2]));
}

}  // namespace lite::cpu
