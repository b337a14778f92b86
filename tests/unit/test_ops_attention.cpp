// The attention ops over cached rows: several sequences at once, scattered blocks, any cutting into steps.
#include "ggml-lite/kv.h"
#include "tests/unit/support.h"

using namespace lite;
using test::OpHarness;
using test::Rng;
using test::Weight;

namespace {

struct Sizes {
  int64_t heads, r, dr, dn, dv;  // latent width, rotated part; of a head: unrotated part, value
};

// A part of a sequence that one step evaluates: positions [first, first + count).
struct Part {
  int sequence;
  int64_t first, count;
};
using Step = std::vector<Part>;

// Sequences with their queries and cached rows, and the blocks the rows lie in.
struct World {
  Sizes z;
  DType kv;
  std::vector<std::vector<float>> cached;  // [sequence][position][r + dr], before rounding to kv
  std::vector<std::vector<float>> kept;    // the same, rounded
  std::vector<std::vector<float>> query;   // [sequence][position][heads][r + dr + dn]
  std::vector<std::vector<int32_t>> blocks;
  int64_t longest = 0, pool_blocks = 0;

  World(Rng& rng, const Sizes& sizes, DType kv_type, const std::vector<int64_t>& lengths)
      : z(sizes), kv(kv_type) {
    for (const int64_t n : lengths) {
      cached.push_back(rng.normals(n * (z.r + z.dr)));
      kept.push_back(cached.back());
      if (kv == DType::BF16)
        for (float& x : kept.back()) x = float(test::bf16(bf16_from_f32(x)));
      query.push_back(rng.normals(n * z.heads * (z.r + z.dr + z.dn)));
      longest = std::max(longest, n);
      pool_blocks += ceil_div(n, kBlockRows) + 1;
    }
    std::vector<int32_t> order(pool_blocks);
    for (size_t i = 0; i < order.size(); ++i) order[i] = int32_t(i);
    rng.shuffle(&order);
    for (const int64_t n : lengths) {
      blocks.emplace_back(order.end() - ceil_div(n, kBlockRows), order.end());
      order.resize(order.size() - blocks.back().size());
    }
  }
  int64_t width() const { return z.r + z.dr; }
  int64_t head() const { return z.r + z.dr + z.dn; }
  int64_t row(int s, int64_t p) const {
    return int64_t(blocks[s][p / kBlockRows]) * kBlockRows + p % kBlockRows;
  }
  float stored(int s, int64_t p, int64_t i) const { return kept[s][p * width() + i]; }
  const float* q(int s, int64_t p, int64_t h) const { return &query[s][(p * z.heads + h) * head()]; }
};

// The op under test: given the harness, the query [T, H, r + dr + dn] and the written stream, returns [T, H,
// n].
using Attend = std::function<Var(OpHarness&, Var query, Var stream)>;

// Evaluates a step: earlier rows are in the stream already, the step's own are written by its graph. Result:
// [part][position][heads][out].
std::vector<std::vector<float>> evaluate(const World& w, const Step& step, int64_t out, const Attend& attend,
                                         const std::vector<int>& threads) {
  int64_t live = 0;
  for (const Part& part : step) live += part.count;
  const int64_t n_blocks = ceil_div(w.longest, kBlockRows), T = live + 2;
  OpHarness h({.tokens = T, .sequences = int64_t(step.size()) + 1, .blocks = n_blocks, .outputs = 1});
  h.counts(int32_t(live), int32_t(step.size()), 0);
  h.blocks().assign(h.blocks().size(), -1);
  std::vector<float> query, rows;
  const Var stream = h.stream(w.kv, w.width(), w.pool_blocks * kBlockRows);
  std::fill(h.stream_bytes(0).begin(), h.stream_bytes(0).end(),
            std::byte{0xFF});  // NaN where nothing was written
  int64_t t = 0;
  for (size_t k = 0; k < step.size(); ++k) {
    const auto& [s, first, count] = step[k];
    h.seqs()[3 * k] = int32_t(t);
    h.seqs()[3 * k + 1] = int32_t(count);
    h.seqs()[3 * k + 2] = int32_t(first + count);
    std::copy_n(w.blocks[s].begin(), ceil_div(first + count, kBlockRows),
                h.blocks().begin() + int64_t(k) * n_blocks);
    for (int64_t p = 0; p < first; ++p)
      encode(w.kv, &w.cached[s][p * w.width()], &h.stream_bytes(0)[w.row(s, p) * w.width() * size_of(w.kv)],
             w.width());
    for (int64_t p = first; p < first + count; ++p, ++t) {
      h.kv_rows()[t] = int32_t(w.row(s, p));
      h.positions()[t] = int32_t(p);
      query.insert(query.end(), w.q(s, p, 0), w.q(s, p, 0) + w.z.heads * w.head());
      rows.insert(rows.end(), &w.cached[s][p * w.width()], &w.cached[s][p * w.width()] + w.width());
    }
  }
  query.resize(T * w.z.heads * w.head());
  rows.resize(T * w.width());
  const Var q = h.b.view(h.activation(query, w.z.heads * w.head()), {T, w.z.heads, w.head()});
  h.keep("y", attend(h, q, h.b.stream_write(stream, h.in.kv_rows, h.activation(rows, w.width()))));
  h.run(threads);

  std::vector<std::vector<float>> result;
  t = 0;
  for (const Part& part : step) {
    result.emplace_back();
    for (int64_t p = 0; p < part.count; ++p, ++t)
      for (int64_t i = 0; i < w.z.heads; ++i)
        result.back().insert(result.back().end(), h.row("y", t, i), h.row("y", t, i) + out);
  }
  return result;
}

constexpr float kScale = 0.11f;

Var latent(const World& w, OpHarness& h, Var query, Var stream) {
  return h.b.attention_latent(h.b.slice(query, 0, w.z.r), h.b.slice(query, w.z.r, w.z.dr), stream, h.in,
                              kScale, w.longest);
}

Var expanded(const World& w, const Weight& kv_b, OpHarness& h, Var query, Var stream) {
  return h.b.attention_expanded(h.b.slice(query, w.z.r + w.z.dr, w.z.dn), h.b.slice(query, w.z.r, w.z.dr),
                                h.weight(kv_b), stream, h.in, kScale, w.longest);
}

Var grouped(const World& w, int64_t window, OpHarness& h, Var query, Var stream) {
  return h.b.attention_grouped(h.b.slice(query, 0, w.z.dn), stream, h.in, kScale, w.longest, window);
}

// A row of results, and the largest of the values it mixes: the scale of its rounding errors.
struct Mixture {
  std::vector<double> y;
  double largest_value;
  double error(const float* got) const {
    double worst = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      if (!std::isfinite(got[i])) return INFINITY;
      worst = std::max(worst, std::fabs(got[i] - y[i]));
    }
    return worst / largest_value;
  }
};

// Softmax attention in double over n positions: score(p), then the mixture of value(p, i), i < out.
Mixture mixed(int64_t n, int64_t out, const auto& score, const auto& value) {
  std::vector<double> p(n);
  Mixture m{std::vector<double>(out, 0.0), 0};
  double largest = -INFINITY, sum = 0;
  for (int64_t s = 0; s < n; ++s) largest = std::max(largest, p[s] = score(s));
  for (int64_t s = 0; s < n; ++s) sum += p[s] = std::exp(p[s] - largest);
  for (int64_t s = 0; s < n; ++s)
    for (int64_t i = 0; i < out; ++i) {
      const double x = value(s, i);
      m.y[i] += p[s] / sum * x;
      m.largest_value = std::max(m.largest_value, std::fabs(x));
    }
  return m;
}

// Of query (s, t, h), from the formula of attention_latent.
Mixture expected_latent(const World& w, int s, int64_t t, int64_t h) {
  const auto score = [&](int64_t p) {
    double dot = 0;
    for (int64_t i = 0; i < w.width(); ++i) dot += double(w.q(s, t, h)[i]) * w.stored(s, p, i);
    return kScale * dot;
  };
  return mixed(t + 1, w.z.r, score, [&](int64_t p, int64_t i) { return double(w.stored(s, p, i)); });
}

// From the formula of attention_expanded: first keys and values of every position and head through kv_b.
class ExpectedExpanded {
 public:
  ExpectedExpanded(const World& w, const Weight& kv_b)
      : w_(w), head_rows_(w.z.dn + w.z.dv), projected_(w.cached.size()) {
    for (size_t s = 0; s < w.cached.size(); ++s)
      for (int64_t p = 0; p < int64_t(w.cached[s].size()) / w.width(); ++p)
        for (int64_t row = 0; row < kv_b.rows; ++row) {
          double dot = 0;
          for (int64_t i = 0; i < w.z.r; ++i) dot += kv_b.at(row, i) * w.stored(int(s), p, i);
          projected_[s].push_back(dot);
        }
  }
  Mixture operator()(int s, int64_t t, int64_t h) const {
    const Sizes& z = w_.z;
    const auto at = [&](int64_t p) { return &projected_[s][(p * z.heads + h) * head_rows_]; };
    const auto score = [&](int64_t p) {
      double dot = 0;
      for (int64_t j = 0; j < z.dn; ++j) dot += w_.q(s, t, h)[z.r + z.dr + j] * at(p)[j];
      for (int64_t i = 0; i < z.dr; ++i) dot += double(w_.q(s, t, h)[z.r + i]) * w_.stored(s, p, z.r + i);
      return kScale * dot;
    };
    return mixed(t + 1, z.dv, score, [&](int64_t p, int64_t j) { return at(p)[z.dn + j]; });
  }

 private:
  const World& w_;
  int64_t head_rows_;
  std::vector<std::vector<double>> projected_;  // [sequence][position][heads][dn + dv]
};

// From the formula of attention_grouped, with G key heads of size dn.
Mixture expected_grouped(const World& w, int64_t window, int s, int64_t t, int64_t h) {
  const int64_t n = w.z.dn, groups = w.width() / (2 * n), g = h / (w.z.heads / groups);
  const int64_t from = window ? std::max<int64_t>(0, t - window + 1) : 0;
  const auto score = [&](int64_t p) {
    double dot = 0;
    for (int64_t i = 0; i < n; ++i) dot += double(w.q(s, t, h)[i]) * w.stored(s, from + p, g * n + i);
    return kScale * dot;
  };
  return mixed(t + 1 - from, n, score,
               [&](int64_t p, int64_t i) { return double(w.stored(s, from + p, (groups + g) * n + i)); });
}

using Expected = std::function<Mixture(int s, int64_t t, int64_t h)>;

// Largest error over all rows of a result.
double worst_error(const World& w, const Step& step, const std::vector<std::vector<float>>& got, int64_t out,
                   const Expected& expected) {
  double worst = 0;
  for (size_t k = 0; k < step.size(); ++k)
    for (int64_t p = 0; p < step[k].count; ++p)
      for (int64_t h = 0; h < w.z.heads; ++h) {
        const float* row = &got[k][(p * w.z.heads + h) * out];
        worst = std::max(worst, expected(step[k].sequence, step[k].first + p, h).error(row));
      }
  return worst;
}

// What a fast mode rounds to bf16 (queries, keys, values, exponentials) moves a result by a few times 2^-9.
const double kTolerance = test::tested_backend().fast ? 1e-2 : test::kRowTolerance;
const std::vector<int> kAllThreads(std::begin(test::kThreads), std::end(test::kThreads));

const struct {
  std::vector<int64_t> lengths;
  Step step;
} kBatches[] = {
    {{1}, {{0, 0, 1}}},
    {{64}, {{0, 0, 64}}},
    {{130, 3, 65}, {{0, 128, 2}, {1, 0, 3}, {2, 64, 1}}},          // a prompt, a chunk and a single token
    {{63, 200, 129, 64}, {{3, 63, 1}, {1, 130, 70}, {0, 60, 3}}},  // not all, and in another order
};
const Sizes kSizes[] = {{1, 1, 2, 1, 1}, {3, 33, 6, 10, 7}, {4, 48, 8, 24, 16}};

}  // namespace

TEST_CASE("attention_latent and attention_expanded against float64") {
  Rng rng(30);
  for (const DType kv : {DType::F32, DType::BF16})
    for (const Sizes& z : kSizes)
      for (const auto& batch : kBatches) {
        CAPTURE(z.r);
        CAPTURE(batch.lengths.size());
        const World w(rng, z, kv, batch.lengths);
        const auto a = evaluate(w, batch.step, z.r, std::bind_front(latent, std::ref(w)), kAllThreads);
        CHECK(worst_error(w, batch.step, a, z.r, std::bind_front(expected_latent, std::ref(w))) <=
              kTolerance);

        const test::WeightOptions type =
            z.r == 33 ? test::WeightOptions{.dtype = DType::F8_E4M3, .scales = test::Scales::F32}
                      : test::WeightOptions{.dtype = DType::BF16, .magnitude = 0.3};
        const Weight kv_b = test::make_weight(rng, z.heads * (z.dn + z.dv), z.r, type);
        const auto b =
            evaluate(w, batch.step, z.dv, std::bind_front(expanded, std::ref(w), kv_b), kAllThreads);
        CHECK(worst_error(w, batch.step, b, z.dv, ExpectedExpanded(w, kv_b)) <= kTolerance);
      }
}

TEST_CASE("absorbed and expanded attention are the same function") {
  Rng rng(31);
  const Sizes z = {4, 40, 8, 12, 20};
  const World w(rng, z, DType::F32, {90, 70});
  const Step step = {{0, 60, 30}, {1, 0, 70}};
  const Weight kv_b =
      test::make_weight(rng, z.heads * (z.dn + z.dv), z.r, {.dtype = DType::BF16, .magnitude = 0.3});
  const auto absorbed = [&](OpHarness& h, Var query, Var stream) {
    const Var matrix = h.weight(kv_b), nope = h.b.slice(query, z.r + z.dr, z.dn),
              rope = h.b.slice(query, z.r, z.dr);
    const Var q = h.b.linear_per_head(nope, matrix, z.dn + z.dv, 0, z.dn, true);
    const Var y = h.b.attention_latent(q, rope, stream, h.in, kScale, w.longest);
    return h.b.linear_per_head(y, matrix, z.dn + z.dv, z.dn, z.dv, false);
  };
  const auto a = evaluate(w, step, z.dv, absorbed, kAllThreads);
  CHECK(worst_error(w, step, a, z.dv, ExpectedExpanded(w, kv_b)) <= kTolerance);
}

TEST_CASE("attention_grouped against float64: multi-head, grouped, one key head; with a window") {
  Rng rng(32);
  const struct { int64_t heads, groups, n; } shapes[] = {{1, 1, 2}, {4, 4, 10}, {6, 2, 17}, {5, 1, 16}};
  for (const DType kv : {DType::F32, DType::BF16})
    for (const auto& shape : shapes)
      for (const int64_t window : {0, 1, 5, 64, 1000}) {
        CAPTURE(shape.groups);
        CAPTURE(window);
        // The query slice is dn wide; the stream is [G keys ; G values].
        const Sizes z = {shape.heads, 2 * shape.groups * shape.n, 0, shape.n, shape.n};
        const auto& batch = kBatches[window == 0 ? 2 : 3];
        const World w(rng, z, kv, batch.lengths);
        const auto y =
            evaluate(w, batch.step, z.dn, std::bind_front(grouped, std::ref(w), window), kAllThreads);
        CHECK(worst_error(w, batch.step, y, z.dn, std::bind_front(expected_grouped, std::ref(w), window)) <=
              kTolerance);
      }
}

TEST_CASE("attention: a token's bits do not depend on batch mates, blocks or the cutting into steps") {
  Rng rng(33);
  // Sizes that no vector divides, and whole tiles.
  const struct {
    Sizes z, g;
  } all[] = {{{3, 20, 6, 10, 7}, {4, 2 * 2 * 9, 0, 9, 9}}, {{3, 64, 32, 32, 32}, {4, 2 * 2 * 32, 0, 32, 32}}};
  for (const auto& [z, g] : all)
    for (const DType kv : {DType::F32, DType::BF16})
      for (const int op : {0, 1, 2}) {
        CAPTURE(op);
        const std::vector<int64_t> lengths = {140, 77};
        World w(rng, op == 2 ? g : z, kv, lengths);
        const Weight kv_b = test::make_weight(rng, z.heads * (z.dn + z.dv), z.r, {.magnitude = 0.3});
        const int64_t out = op == 0 ? z.r : op == 1 ? z.dv : g.dn;
        const auto bits = [&](const World& world, const Step& step) {
          const Attend attend = op == 0   ? Attend(std::bind_front(latent, world))
                                : op == 1 ? Attend(std::bind_front(expanded, world, kv_b))
                                          : Attend(std::bind_front(grouped, world, 30));
          return evaluate(world, step, out, attend, {2});
        };
        const std::vector<float> whole = bits(w, {{0, 0, 140}})[0];
        std::vector<float> chunks, alone, beside;
        for (int64_t first = 0; first < 140; first += 7) {
          const auto part = bits(w, {{0, first, 7}});
          chunks.insert(chunks.end(), part[0].begin(), part[0].end());
        }
        CHECK(chunks == whole);
        for (int64_t p = 130; p < 140; ++p) {
          const auto part = bits(w, {{0, p, 1}});
          alone.insert(alone.end(), part[0].begin(), part[0].end());
          const auto both = bits(w, {{1, p - 130, 60}, {0, p, 1}});
          beside.insert(beside.end(), both[1].begin(), both[1].end());
        }
        const std::vector<float> tail(whole.end() - 10 * w.z.heads * out, whole.end());
        CHECK(alone == tail);
        CHECK(beside == tail);
        World moved = w;
        std::swap(moved.blocks[0][0], moved.blocks[1][1]);
        std::swap(moved.blocks[0][1], moved.blocks[0][2]);
        CHECK(bits(moved, {{1, 0, 70}, {0, 0, 140}})[1] == whole);
      }
}

TEST_CASE("attention against float64: parts of long and short sequences, heads of every size") {
  Rng rng(37);
  const std::vector<int64_t> lengths = {130, 3, 65, 600};
  const Step step = {{3, 590, 10}, {0, 128, 2}, {1, 0, 3}, {2, 64, 1}};
  const test::WeightOptions f8 = {.dtype = DType::F8_E4M3,
                                  .scales = test::Scales::F32,
                                  .block_rows = 32,
                                  .block_cols = 16,
                                  .magnitude = 0.3},
                            bf16 = {.dtype = DType::BF16, .magnitude = 0.2};
  const struct {
    Sizes z;
    test::WeightOptions kv_b;
  } mla[] = {{{1, 1, 2, 1, 1}, bf16},     {{2, 33, 6, 10, 7}, f8},       {{3, 80, 32, 24, 40}, f8},
             {{1, 40, 32, 64, 24}, bf16}, {{1, 24, 64, 128, 128}, bf16}, {{1, 24, 16, 200, 10}, bf16},
             {{2, 96, 32, 64, 32}, f8}};
  for (const auto& shape : mla) {
    const Sizes& z = shape.z;
    CAPTURE(z.dn);
    const World w(rng, z, z.r == 33 ? DType::F32 : DType::BF16, lengths);
    const Weight kv_b = test::make_weight(rng, z.heads * (z.dn + z.dv), z.r, shape.kv_b);
    const auto y = evaluate(w, step, z.dv, std::bind_front(expanded, std::ref(w), kv_b), kAllThreads);
    CHECK(worst_error(w, step, y, z.dv, ExpectedExpanded(w, kv_b)) <= kTolerance);
  }
  for (const Sizes& z : {Sizes{3, 33, 6, 1, 1}, Sizes{3, 130, 14, 1, 1}, Sizes{2, 500, 60, 1, 1},
                         Sizes{17, 64, 32, 1, 1}, Sizes{70, 512, 64, 1, 1}}) {
    CAPTURE(z.r);
    const World w(rng, z, z.r == 33 ? DType::F32 : DType::BF16, lengths);
    const auto y = evaluate(w, step, z.r, std::bind_front(latent, std::ref(w)), kAllThreads);
    CHECK(worst_error(w, step, y, z.r, std::bind_front(expected_latent, std::ref(w))) <= kTolerance);
  }
  const struct {
    int64_t heads, groups, n, window;
  } shapes[] = {{6, 2, 17, 0},   {6, 2, 17, 5},    {5, 1, 16, 64},
                {2, 2, 96, 100}, {20, 1, 64, 300}, {1, 1, 136, 1000}};
  for (const auto& shape : shapes) {
    CAPTURE(shape.n);
    CAPTURE(shape.window);
    const Sizes z = {shape.heads, 2 * shape.groups * shape.n, 0, shape.n, shape.n};
    const World w(rng, z, shape.n == 16 ? DType::F32 : DType::BF16, lengths);
    const auto y = evaluate(w, step, z.dn, std::bind_front(grouped, std::ref(w), shape.window), kAllThreads);
    CHECK(worst_error(w, step, y, z.dn, std::bind_front(expected_grouped, std::ref(w), shape.window)) <=
          kTolerance);
  }
}

TEST_CASE("attention: a late token's bits do not depend on batch mates or the cutting into steps") {
  Rng rng(38);
  const Sizes z = {2, 20, 6, 10, 7}, g = {4, 2 * 2 * 9, 0, 9, 9};
  for (const int op : {0, 1, 2}) {
    CAPTURE(op);
    const World w(rng, op == 2 ? g : z, DType::BF16, {330, 140});
    const Weight kv_b = test::make_weight(rng, z.heads * (z.dn + z.dv), z.r, {.magnitude = 0.3});
    const int64_t out = op == 0 ? z.r : op == 1 ? z.dv : g.dn;
    const Attend attend = op == 0   ? Attend(std::bind_front(latent, w))
                          : op == 1 ? Attend(std::bind_front(expanded, w, kv_b))
                                    : Attend(std::bind_front(grouped, w, 90));
    const auto bits = [&](const Step& step) { return evaluate(w, step, out, attend, {2}); };
    const auto whole = bits({{0, 250, 80}})[0];
    auto pieces = bits({{0, 250, 7}})[0];
    const auto rest = bits({{1, 120, 20}, {0, 257, 73}})[1];
    pieces.insert(pieces.end(), rest.begin(), rest.end());
    CHECK(pieces == whole);
  }
}

TEST_CASE("attention: large scores and equal scores") {
  Rng rng(34);
  const Sizes z = {2, 8, 4, 6, 5};
  World w(rng, z, DType::F32, {100});
  for (float& x : w.query[0])
    x *= 3000;  // exp of the differences under- and overflows unless the largest is taken away
  for (int64_t p = 0; p < 100; ++p)
    std::fill_n(&w.query[0][p * z.heads * w.head()], p < 50 ? w.head() : 0, 0.0f);
  const Step step = {{0, 0, 100}};
  const auto y = evaluate(w, step, z.r, std::bind_front(latent, std::ref(w)), {2});
  // Where the scores are in the thousands an f32 score is off by 1e-3 and so is the softmax; but it is
  // finite, and equal scores give the mean.
  for (const float value : y[0]) REQUIRE(std::isfinite(value));
  for (int64_t t = 0; t < 50; ++t) {
    std::vector<double> mean(z.r, 0.0);
    for (int64_t p = 0; p <= t; ++p)
      for (int64_t i = 0; i < z.r; ++i) mean[i] += w.stored(0, p, i) / double(t + 1);
    CHECK(test::row_error(&y[0][t * z.heads * z.r], mean) <= kTolerance);
  }
}

TEST_CASE("attention over a long context") {
  Rng rng(36);
  const Sizes z = {1, 6, 2, 4, 3};
  const World w(rng, z, DType::F32, {40000});
  const Step step = {{0, 39998, 2}};
  const auto y = evaluate(w, step, z.r, std::bind_front(latent, std::ref(w)), {2});
  for (int64_t p = 0; p < 2; ++p) {
    const Mixture expected = expected_latent(w, 0, 39998 + p, 0);
    // Relative to the result itself: the mean of so many values is small against each of them.
    CHECK(test::row_error(&y[0][p * z.r], expected.y) <= std::max(2e-5, kTolerance));
  }
}

TEST_CASE("attention_masked: within the step, both ways, with any mask") {
  Rng rng(35);
  const int64_t T = 14, H = 3, n = 10, S = 6;
  const std::vector<int64_t> counts = {5, 1, 6};
  std::vector<float> causal(S * S, 0.0f), added = rng.normals(S * S), blind(S * S, 0.0f);
  for (int64_t i = 0; i < S; ++i)
    for (int64_t j = i + 1; j < S; ++j) causal[i * S + j] = -INFINITY;
  std::fill_n(blind.begin() + 3 * S, S, -INFINITY);  // token 3 sees nothing
  for (const std::vector<float>& mask : {std::vector<float>(), causal, added, blind}) {
    OpHarness h({.tokens = T, .sequences = 4, .blocks = 1, .outputs = 1});
    h.counts(12, 3, 0);
    h.seqs() = {0, 5, 5, 5, 1, 1, 6, 6, 6, -1, -1, -1};
    const std::vector<float> x = rng.normals(T * 3 * H * n);
    const Var all = h.activation(x, 3 * H * n);
    Var part[3];
    for (int i = 0; i < 3; ++i) part[i] = h.b.view(h.b.slice(all, i * H * n, H * n), {T, H, n});
    const Var m = mask.empty() ? Var::none() : h.weight(test::matrix_of(mask, S, S));
    h.keep("y", h.b.attention_masked(part[0], part[1], part[2], m, h.in, kScale));
    std::vector<float> first;
    h.run();
    int64_t start = 0;
    for (const int64_t count : counts) {
      for (int64_t t = 0; t < count; ++t)
        for (int64_t i = 0; i < H; ++i) {
          const auto at = [&](int64_t token, int64_t which) {
            return &x[((start + token) * 3 + which) * H * n + i * n];
          };
          const auto score = [&](int64_t j) {
            double dot = 0;
            for (int64_t c = 0; c < n; ++c) dot += double(at(t, 0)[c]) * at(j, 1)[c];
            return kScale * dot + (mask.empty() ? 0.0 : double(mask[t * S + j]));
          };
          const auto expected =
              mixed(count, n, score, [&](int64_t j, int64_t c) { return double(at(j, 2)[c]); });
          const float* y = h.row("y", start + t, i);
          if (std::isnan(expected.y[0]))
            CHECK(std::isnan(y[0]));
          else
            CHECK(expected.error(y) <= kTolerance);
        }
      start += count;
    }
  }
}
