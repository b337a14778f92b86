// Choosing experts and running them: route and moe_ffn.
#include <algorithm>
#include <set>

#include "tests/unit/support.h"

using namespace lite;
using test::OpHarness;
using test::Rng;
using test::Scales;
using test::Weight;

// ---- route ------------------------------------------------------------------------------------------------

namespace {

struct Choice {
  std::vector<std::pair<double, int32_t>> chosen;  // (weight, expert), highest weight first
  double margin = INFINITY;                        // least distance between what was and what was not chosen
};

// The k best of `items` by (score, lower index); the rest is dropped. *margin shrinks to the distance between
// the two.
std::vector<int64_t> best(const std::vector<double>& score, std::vector<int64_t> items, int64_t k,
                          double* margin) {
  std::stable_sort(items.begin(), items.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
  if (k < int64_t(items.size())) *margin = std::min(*margin, score[items[k - 1]] - score[items[k]]);
  items.resize(k);
  return items;
}

// The formula of route in ops.h.
Choice expected_choice(const float* logits, int64_t experts, const double* bias, const RouteParams& p) {
  std::vector<double> s(experts), c(experts);
  double sum = 0, largest = -INFINITY;
  for (int64_t e = 0; e < experts; ++e) largest = std::max(largest, double(logits[e]));
  for (int64_t e = 0; e < experts; ++e) sum += std::exp(logits[e] - largest);
  for (int64_t e = 0; e < experts; ++e) {
    s[e] = p.scoring == Scoring::Softmax ? std::exp(logits[e] - largest) / sum
                                         : 1 / (1 + std::exp(-double(logits[e])));
    c[e] = s[e] + (bias ? bias[e] : 0);
  }
  Choice out;
  std::vector<int64_t> allowed;
  const int64_t groups = p.group_score == GroupScore::None ? 1 : p.n_group, size = experts / groups;
  std::vector<double> group_score(groups);
  std::vector<int64_t> group_ids(groups);
  for (int64_t g = 0; g < groups; ++g) {
    std::vector<double> sorted(c.begin() + g * size, c.begin() + (g + 1) * size);
    std::sort(sorted.rbegin(), sorted.rend());
    group_score[g] = sorted[0] + (p.group_score == GroupScore::TwoLargest && size > 1 ? sorted[1] : 0);
    group_ids[g] = g;
  }
  const int64_t keep = groups == 1 ? 1 : p.topk_group;
  for (const int64_t g : best(group_score, group_ids, keep, &out.margin))
    for (int64_t e = g * size; e < (g + 1) * size; ++e) allowed.push_back(e);
  std::sort(allowed.begin(), allowed.end());
  double total = 0;
  for (const int64_t e : best(c, allowed, p.n_experts_per_token, &out.margin)) {
    out.chosen.emplace_back(s[e], int32_t(e));
    total += s[e];
  }
  std::stable_sort(out.chosen.begin(), out.chosen.end(), [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  });
  for (auto& [w, e] : out.chosen) w = (p.normalize ? w / (total + 1e-20) : w) * p.factor;
  return out;
}

// Routes rows of logits; returns ids and weights [T][K].
struct Routed {
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> weights;
};
Routed route(const std::vector<float>& logits, int64_t experts, const Weight* bias, const RouteParams& p) {
  const int64_t live = int64_t(logits.size()) / experts, T = live + 3, wide = experts + 2;
  std::vector<float> padded(T * wide, 0.0f);  // the logits are a slice of something wider
  for (int64_t t = 0; t < live; ++t) std::copy_n(&logits[t * experts], experts, &padded[t * wide + 1]);
  OpHarness h({.tokens = T, .sequences = 1, .blocks = 1, .outputs = 1});
  h.counts(int32_t(live), 1, 1);
  const auto [ids, weights] =
      h.b.route(h.b.slice(h.activation(padded, wide), 1, experts), bias ? h.weight(*bias) : Var::none(), p);
  h.keep("ids", ids);
  h.keep("weights", weights);
  h.run();
  Routed r;
  const int64_t k = p.n_experts_per_token;
  for (int64_t t = 0; t < live; ++t) {
    r.ids.emplace_back(h.integer_row("ids", t), h.integer_row("ids", t) + k);
    r.weights.emplace_back(h.row("weights", t), h.row("weights", t) + k);
  }
  return r;
}

RouteParams params(Scoring scoring, GroupScore groups, int64_t n_group, int64_t topk_group, int64_t k,
                   bool normalize, float factor = 1) {
  return {scoring, groups, n_group, topk_group, k, normalize, factor};
}

using Ids = std::vector<int32_t>;

}  // namespace

TEST_CASE("route: every way to score and to group, against float64") {
  Rng rng(40);
  const struct {
    int64_t experts, n_group, topk_group, k;
  } shapes[] = {{1, 1, 1, 1},  {7, 1, 1, 3},   {6, 1, 1, 6},  {8, 4, 2, 3},
                {64, 8, 3, 6}, {256, 8, 4, 8}, {12, 3, 3, 5}, {10, 5, 5, 10}};
  int64_t rows = 0, skipped = 0;
  for (const auto& s : shapes)
    for (const Scoring scoring : {Scoring::Softmax, Scoring::Sigmoid})
      for (const GroupScore groups : {GroupScore::None, GroupScore::Largest, GroupScore::TwoLargest})
        for (const DType bias_type : {DType::I32, DType::F32, DType::BF16, DType::F16})  // I32: none
          for (const bool normalize : {false, true}) {
            CAPTURE(s.experts);
            CAPTURE(int(scoring));
            CAPTURE(int(groups));
            CAPTURE(normalize);
            const bool biased = bias_type != DType::I32;
            Weight bias;
            if (biased) {
              // Biases are mostly negative, so that a masked expert that counted as 0 would win.
              bias = test::make_vector(rng, s.experts, DType::F32, 0.5);
              std::vector<float> values(s.experts);
              for (int64_t e = 0; e < s.experts; ++e) values[e] = float(bias.value[e] - 1);
              encode(bias_type, values.data(), bias.data->data(), s.experts);
              bias.tensor.dtype = bias_type;
              bias.tensor.stride[0] = size_of(bias_type);
              for (int64_t e = 0; e < s.experts; ++e) bias.value[e] = element(bias.tensor, e);
            }
            const RouteParams p = params(scoring, groups, s.n_group, s.topk_group, s.k, normalize, 2.446f);
            const std::vector<float> logits = rng.normals(20 * s.experts, 2);
            const Routed got = route(logits, s.experts, biased ? &bias : nullptr, p);
            for (int64_t t = 0; t < 20; ++t) {
              const Choice expected =
                  expected_choice(&logits[t * s.experts], s.experts, biased ? bias.value.data() : nullptr, p);
              ++rows;
              if (expected.margin < 1e-6) {
                ++skipped;
                continue;
              }
              std::map<int32_t, double> weight_of;
              for (const auto& [w, e] : expected.chosen) weight_of[e] = w;
              for (int64_t j = 0; j < s.k; ++j) {
                REQUIRE(weight_of.contains(got.ids[t][j]));
                REQUIRE(std::fabs(got.weights[t][j] - weight_of[got.ids[t][j]]) <=
                        test::kRowTolerance * expected.chosen[0].first);
                if (j > 0) REQUIRE(got.weights[t][j - 1] >= got.weights[t][j]);
              }
              REQUIRE(std::set<int32_t>(got.ids[t].begin(), got.ids[t].end()).size() == size_t(s.k));
            }
          }
  if (skipped) MESSAGE(skipped << " of " << rows << " rows skipped: two choices within 1e-6");
  CHECK(skipped * 100 < rows);
}

TEST_CASE("route: equal scores go to the lower index, of experts and of groups") {
  const std::vector<float> equal(8, 0.25f);
  for (const Scoring scoring : {Scoring::Softmax, Scoring::Sigmoid}) {
    CHECK(route(equal, 8, nullptr, params(scoring, GroupScore::None, 1, 1, 3, true)).ids[0] == Ids{0, 1, 2});
    for (const GroupScore groups : {GroupScore::Largest, GroupScore::TwoLargest}) {
      CHECK(route(equal, 8, nullptr, params(scoring, groups, 4, 2, 3, true)).ids[0] == Ids{0, 1, 2});
      CHECK(route(equal, 8, nullptr, params(scoring, groups, 4, 2, 4, true)).ids[0] == Ids{0, 1, 2, 3});
    }
    // The middle groups tie below the last one: of them the first stays.
    const std::vector<float> some = {0, 0, 1, 1, 1, 1, 2, 2};
    CHECK(route(some, 8, nullptr, params(scoring, GroupScore::Largest, 4, 2, 4, false)).ids[0] ==
          Ids{6, 7, 2, 3});
    CHECK(route(some, 8, nullptr, params(scoring, GroupScore::TwoLargest, 4, 3, 6, false)).ids[0] ==
          Ids{6, 7, 2, 3, 4, 5});
  }
}

TEST_CASE("route: a group's score is its largest, or the sum of its two largest") {
  // Group 0 has the best expert, group 1 the best pair.
  const std::vector<float> logits = {3, -9, 2, 2};
  CHECK(route(logits, 4, nullptr, params(Scoring::Sigmoid, GroupScore::Largest, 2, 1, 2, false)).ids[0] ==
        Ids{0, 1});
  CHECK(route(logits, 4, nullptr, params(Scoring::Sigmoid, GroupScore::TwoLargest, 2, 1, 2, false)).ids[0] ==
        Ids{2, 3});
  CHECK(route(logits, 4, nullptr, params(Scoring::Sigmoid, GroupScore::None, 2, 1, 2, false)).ids[0] ==
        Ids{0, 2});
}

TEST_CASE("route: experts outside the kept groups can never win, however negative the others are") {
  const std::vector<float> logits = {-1, -2, 0, 0.5f, -3, -4, -5, -6};
  for (const GroupScore groups : {GroupScore::Largest, GroupScore::TwoLargest})
    for (const float b : {-0.7f, -5.0f, -1e30f}) {
      const Weight bias = test::vector_of(std::vector<float>(8, b));
      const Routed r = route(logits, 8, &bias, params(Scoring::Sigmoid, groups, 4, 1, 2, false));
      const Ids expected =
          b == -1e30f ? Ids{1, 0} : Ids{3, 2};  // at -1e30 all choices tie: group 0; sorted by weight
      CHECK(std::set<int32_t>(r.ids[0].begin(), r.ids[0].end()) ==
            std::set<int32_t>(expected.begin(), expected.end()));
    }
}

TEST_CASE("route: the bias chooses and does not weigh") {
  const std::vector<float> logits = {2, 1, 0, -1};
  const Weight bias = test::vector_of({-3, 0, 0.5f, 1});
  const Routed r = route(logits, 4, &bias, params(Scoring::Sigmoid, GroupScore::None, 1, 1, 2, false));
  // By choice: 3 (1.27), then 2 (1.0); by weight 2 comes first.
  CHECK(r.ids[0] == Ids{2, 3});
  CHECK(r.weights[0][0] == doctest::Approx(0.5).epsilon(1e-6));
  CHECK(r.weights[0][1] == doctest::Approx(1 / (1 + std::exp(1.0))).epsilon(1e-6));
}

TEST_CASE("route: scores that underflow divide by 1e-20, not by zero") {
  const RouteParams p = params(Scoring::Sigmoid, GroupScore::None, 1, 1, 2, true, 3);
  const Routed r = route({-200, -200, -200, -46.051702f, -46.051702f, -46.051702f}, 3, nullptr, p);
  CHECK(r.weights[0] == std::vector<float>{0, 0});
  for (int j = 0; j < 2; ++j)
    CHECK(r.weights[1][j] == doctest::Approx(3 * 1.0 / 3).epsilon(1e-4));  // 1 / (1 + 1 + 1)
}

TEST_CASE("route: logits that are not numbers still give expert numbers") {
  const float nan = NAN, inf = INFINITY;
  for (const Scoring scoring : {Scoring::Softmax, Scoring::Sigmoid})
    for (const GroupScore groups : {GroupScore::None, GroupScore::Largest, GroupScore::TwoLargest})
      for (const std::vector<float>& row : {std::vector<float>(6, nan),
                                            {nan, 1, nan, 2, 3, nan},
                                            {inf, inf, -inf, -inf, 0, nan},
                                            std::vector<float>(6, -inf)}) {
        const Routed r = route(row, 6, nullptr, params(scoring, groups, 3, 2, 3, true));
        for (const int32_t id : r.ids[0]) CHECK((id >= 0 && id < 6));
      }
}

// ---- moe_ffn ----------------------------------------------------------------------------------------------

namespace {

struct Expert {
  Weight gate, up, down, up_bias, down_bias;
  FfnWeights weights() const {
    return {gate.tensor, up.tensor, down.tensor, up_bias.tensor, down_bias.tensor};
  }
};

struct MoeShape {
  int64_t tokens, experts, k, d, width, shared_width;  // shared_width 0: no shared expert
};

struct MoeTypes {
  DType gate = DType::F32, up = DType::F32, down = DType::F32;
  Rounding rounding = Rounding::None;
  Activation activation = Activation::SwiGlu;
};

Expert make_expert(Rng& rng, int64_t d, int64_t width, const MoeTypes& types) {
  const auto matrix = [&](int64_t rows, int64_t cols, DType dtype) {
    const bool f8 = dtype == DType::F8_E4M3;
    return test::make_weight(rng, rows, cols,
                             {.dtype = dtype,
                              .scales = f8 ? Scales::F32 : Scales::None,
                              .magnitude = 1 / std::sqrt(double(cols))});
  };
  Expert e{matrix(width, d, types.gate), matrix(width, d, types.up), matrix(d, width, types.down), {}, {}};
  if (types.activation == Activation::Gelu) {
    e.up_bias = test::make_vector(rng, width, DType::BF16);
    e.down_bias = test::make_vector(rng, d, DType::F32);
    e.gate = {};
  }
  return e;
}

struct Moe {
  MoeShape shape;
  MoeTypes types;
  std::vector<Expert> experts;
  Expert shared;
  std::vector<float> x, weights;  // [T, d], [T, K]
  std::vector<int32_t> ids;       // [T, K]

  Moe(Rng& rng, const MoeShape& s, const MoeTypes& t) : shape(s), types(t) {
    for (int64_t e = 0; e < s.experts; ++e) experts.push_back(make_expert(rng, s.d, s.width, t));
    if (s.shared_width) shared = make_expert(rng, s.d, s.shared_width, t);
    x = rng.normals(s.tokens * s.d);
    for (int64_t i = 0; i < s.tokens; ++i) {
      std::vector<int32_t> order(s.experts);
      for (size_t e = 0; e < order.size(); ++e) order[e] = int32_t(e);
      rng.shuffle(&order);
      ids.insert(ids.end(), order.begin(), order.begin() + s.k);
      for (int64_t j = 0; j < s.k; ++j) weights.push_back(float(0.1 + rng.uniform()));
    }
  }

  // One expert of one token, in double.
  std::vector<double> run(const Expert& e, const float* token, bool* close) const {
    const std::vector<double> exact(token, token + shape.d);
    const auto input = [&](const Weight& w, const std::vector<double>& from) {
      const bool rounds = types.rounding != Rounding::None && w.tensor.dtype == DType::F8_E4M3;
      return rounds ? test::rounded(types.rounding, from, close) : from;
    };
    const auto product = [&](const Weight& w, const std::vector<double>& from) {
      const std::vector<double> in = input(w, from);
      std::vector<double> out(w.rows, 0.0);
      for (int64_t i = 0; i < w.rows; ++i)
        for (int64_t j = 0; j < w.cols; ++j) out[i] += w.at(i, j) * in[j];
      return out;
    };
    std::vector<double> hidden = product(e.up, exact);
    if (types.activation == Activation::SwiGlu) {
      const std::vector<double> gate = product(e.gate, exact);
      for (size_t i = 0; i < hidden.size(); ++i) hidden[i] *= gate[i] / (1 + std::exp(-gate[i]));
      return product(e.down, hidden);
    }
    for (size_t i = 0; i < hidden.size(); ++i) {
      const double z = hidden[i] + e.up_bias.value[i];
      hidden[i] = z * (1 + std::erf(z / std::sqrt(2.0))) / 2;
    }
    std::vector<double> y = product(e.down, hidden);
    for (size_t i = 0; i < y.size(); ++i) y[i] += e.down_bias.value[i];
    return y;
  }

  // The formula of moe_ffn, over the experts that are `held`.
  std::vector<double> expected(int64_t t, const std::vector<bool>& held, bool with_shared,
                               bool* close) const {
    std::vector<double> y(shape.d, 0.0);
    const auto add = [&](const Expert& e, double w) {
      const std::vector<double> part = run(e, &x[t * shape.d], close);
      for (int64_t i = 0; i < shape.d; ++i) y[i] += w * part[i];
    };
    for (int64_t j = 0; j < shape.k; ++j)
      if (held[ids[t * shape.k + j]]) add(experts[ids[t * shape.k + j]], weights[t * shape.k + j]);
    if (with_shared) add(shared, 1);
    return y;
  }

  // The set of held experts, in slots of a shuffled order.
  ExpertSet set(Rng& rng, const std::vector<bool>& held, bool with_shared) const {
    ExpertSet out;
    std::vector<int32_t> order;
    for (int64_t e = 0; e < shape.experts; ++e)
      if (held[e]) order.push_back(int32_t(e));
    rng.shuffle(&order);
    out.slot_of_expert.assign(shape.experts, -1);
    for (const int32_t e : order) {
      out.slot_of_expert[e] = int32_t(out.slots.size());
      out.slots.push_back(experts[e].weights());
    }
    out.activation = types.activation;
    out.has_shared = with_shared;
    if (with_shared) out.shared = shared.weights();
    return out;
  }

  // y [T][d] of the first `live` tokens.
  std::vector<std::vector<float>> evaluate(const std::vector<ExpertSet>& sets, int64_t live,
                                           std::vector<int> threads = {1, 2, 3, 5}) const {
    OpHarness h({.tokens = shape.tokens, .sequences = 1, .blocks = 1, .outputs = 1});
    h.counts(int32_t(live), 1, 1);
    std::vector<float> padded(shape.tokens * (shape.d + 3), 0.0f);
    for (int64_t t = 0; t < shape.tokens; ++t)
      std::copy_n(&x[t * shape.d], shape.d, &padded[t * (shape.d + 3) + 2]);
    const Var a = h.b.slice(h.activation(padded, shape.d + 3), 2, shape.d);
    const Var i = h.integers(ids, shape.tokens, shape.k), w = h.activation(weights, shape.k);
    Var y = h.b.moe_ffn(a, i, w, sets[0], types.rounding);
    for (size_t k = 1; k < sets.size(); ++k) y = h.b.add(y, h.b.moe_ffn(a, i, w, sets[k], types.rounding));
    h.keep("y", y);
    h.run(threads);
    std::vector<std::vector<float>> rows;
    for (int64_t t = 0; t < live; ++t) rows.emplace_back(h.row("y", t), h.row("y", t) + shape.d);
    return rows;
  }
};

const MoeShape kMoeShapes[] = {
    {1, 1, 1, 1, 1, 0},     {1, 3, 2, 5, 4, 7},    {6, 4, 2, 33, 17, 20},
    {5, 8, 8, 16, 130, 40}, {9, 40, 3, 140, 9, 0}, {4, 6, 3, 257, 129, 300},
};

// Products of products: errors of the hidden values pass through `down`.
const double kMoeTolerance = test::tested_backend().fast ? 2e-2 : 4e-6;

}  // namespace

TEST_CASE("moe_ffn against float64: all types, shared or not, experts held or not, with idle experts") {
  Rng rng(41);
  const MoeTypes all_types[] = {{},
                                {.gate = DType::BF16, .up = DType::BF16, .down = DType::BF16},
                                {.gate = DType::F8_E4M3, .up = DType::F8_E4M3, .down = DType::F8_E4M3},
                                {.gate = DType::F16, .up = DType::F32, .down = DType::F8_E4M3},
                                {.activation = Activation::Gelu},
                                {.up = DType::F8_E4M3, .down = DType::BF16, .activation = Activation::Gelu}};
  for (const MoeTypes& types : all_types)
    for (const MoeShape& s : kMoeShapes) {
      CAPTURE(s.d);
      CAPTURE(int(types.up));
      const Moe m(rng, s, types);
      const int64_t live = (s.tokens + 1) / 2;
      for (const int hold : {100, 50, 0}) {  // of 100
        CAPTURE(hold);
        std::vector<bool> held(s.experts);
        for (int64_t e = 0; e < s.experts; ++e) held[e] = rng.below(100) < hold;
        const bool shared = s.shared_width > 0;
        const auto y = m.evaluate({m.set(rng, held, shared)}, live);
        bool close = false;
        for (int64_t t = 0; t < live; ++t)
          REQUIRE(test::row_error(y[t].data(), m.expected(t, held, shared, &close)) <= kMoeTolerance);
      }
    }
}

TEST_CASE("moe_ffn: all tokens to the same experts, and each token to experts of its own") {
  Rng rng(42);
  for (const bool same : {true, false}) {
    Moe m(rng, {8, 16, 2, 24, 12, 10}, {});
    for (int64_t t = 0; t < 8; ++t)
      for (int64_t j = 0; j < 2; ++j) m.ids[t * 2 + j] = int32_t(same ? 5 - 4 * j : t + 8 * j);
    const std::vector<bool> held(16, true);
    const auto y = m.evaluate({m.set(rng, held, true)}, 8);
    bool close = false;
    for (int64_t t = 0; t < 8; ++t)
      CHECK(test::row_error(y[t].data(), m.expected(t, held, true, &close)) <= kMoeTolerance);
  }
}

TEST_CASE("moe_ffn: many tokens, of every load an expert can have") {
  Rng rng(46);
  for (const DType dtype : {DType::F8_E4M3, DType::BF16})
    for (const bool uneven : {false, true}) {
      CAPTURE(int(dtype));
      CAPTURE(uneven);
      Moe m(rng, {70, 5, 2, 144, 80, 160}, {.gate = dtype, .up = dtype, .down = dtype});
      if (uneven)  // expert 1 has all tokens, 3 one, 4 the others, 0 and 2 none
        for (int64_t t = 0; t < 70; ++t) m.ids[2 * t] = 1, m.ids[2 * t + 1] = t == 7 ? 3 : 4;
      const std::vector<bool> held(5, true);
      const auto y = m.evaluate({m.set(rng, held, true)}, 69);
      bool close = false;
      for (int64_t t = 0; t < 69; ++t)
        REQUIRE(test::row_error(y[t].data(), m.expected(t, held, true, &close)) <= kMoeTolerance);
      for (const int64_t t : {0, 7, 68}) {  // alone
        Moe one = m;
        std::copy_n(&m.x[t * 144], 144, one.x.begin());
        std::copy_n(&m.ids[t * 2], 2, one.ids.begin());
        std::copy_n(&m.weights[t * 2], 2, one.weights.begin());
        CHECK(one.evaluate({m.set(rng, held, true)}, 1, {2})[0] == y[t]);
      }
    }
}

TEST_CASE("moe_ffn: thousands of pairs, some of experts that are not held") {
  Rng rng(47);
  const int64_t T = 520;
  const Moe m(rng, {T, 40, 3, 16, 16, 16},
              {.gate = DType::F8_E4M3, .up = DType::F8_E4M3, .down = DType::F8_E4M3});
  std::vector<bool> held(40);
  for (int64_t e = 0; e < 40; ++e) held[e] = e % 5 != 0;
  const auto y = m.evaluate({m.set(rng, held, true)}, T);
  bool close = false;
  for (int64_t t = 0; t < T; ++t)
    REQUIRE(test::row_error(y[t].data(), m.expected(t, held, true, &close)) <= kMoeTolerance);
}

TEST_CASE("moe_ffn: what enters an FP8 matrix is rounded, x and the hidden values, and nothing else is") {
  Rng rng(43);
  for (const Rounding rounding : {Rounding::F8, Rounding::F8PowerOfTwo})
    for (const auto& types :
         std::vector<std::array<DType, 3>>{{DType::F8_E4M3, DType::F8_E4M3, DType::F8_E4M3},
                                           {DType::F8_E4M3, DType::BF16, DType::BF16},
                                           {DType::BF16, DType::F8_E4M3, DType::F32},
                                           {DType::F32, DType::F32, DType::F8_E4M3}})
      for (const MoeShape& s :
           {MoeShape{3, 4, 2, 20, 6, 10}, MoeShape{2, 3, 2, 150, 133, 0}, MoeShape{3, 3, 2, 80, 48, 64}}) {
        const DType gate = types[0], up = types[1], down = types[2];
        CAPTURE(int(gate));
        CAPTURE(int(up));
        CAPTURE(int(down));
        bool close = true;
        for (int attempt = 0; close; ++attempt) {  // until f32 and double must round all values alike
          REQUIRE(attempt < 1000);
          const Moe m(rng, s, {gate, up, down, rounding});
          const std::vector<bool> held(s.experts, true);
          close = false;
          std::vector<std::vector<double>> expected;
          for (int64_t t = 0; t < s.tokens; ++t)
            expected.push_back(m.expected(t, held, s.shared_width > 0, &close));
          if (close) continue;
          const auto y = m.evaluate({m.set(rng, held, s.shared_width > 0)}, s.tokens);
          for (int64_t t = 0; t < s.tokens; ++t)
            CHECK(test::row_error(y[t].data(), expected[t]) <= kMoeTolerance);
        }
      }
}

TEST_CASE("moe_ffn: experts split between two sets add up to the whole") {
  Rng rng(44);
  for (const MoeShape& s : kMoeShapes) {
    const Moe m(rng, s, {.gate = DType::BF16, .up = DType::BF16, .down = DType::BF16});
    std::vector<bool> all(s.experts, true), first(s.experts), second(s.experts);
    for (int64_t e = 0; e < s.experts; ++e) second[e] = !(first[e] = rng.below(2));
    const bool shared = s.shared_width > 0;
    const auto whole = m.evaluate({m.set(rng, all, shared)}, s.tokens);
    const auto parts = m.evaluate({m.set(rng, first, false), m.set(rng, second, shared)}, s.tokens);
    for (int64_t t = 0; t < s.tokens; ++t)
      CHECK(test::row_error(parts[t].data(), {whole[t].begin(), whole[t].end()}) <= kMoeTolerance);
  }
}

TEST_CASE("moe_ffn: a token's bits do not depend on its batch mates or on the slots' order") {
  Rng rng(45);
  const Moe m(
      rng, {7, 6, 3, 40, 24, 16},
      {.gate = DType::F8_E4M3, .up = DType::F8_E4M3, .down = DType::F8_E4M3, .rounding = Rounding::F8});
  const std::vector<bool> held(6, true);
  const auto all = m.evaluate({m.set(rng, held, true)}, 7);
  CHECK(m.evaluate({m.set(rng, held, true)}, 7) == all);
  for (int64_t t = 0; t < 7; ++t) {
    Moe one = m;
    std::copy_n(&m.x[t * 40], 40, one.x.begin());
    std::copy_n(&m.ids[t * 3], 3, one.ids.begin());
    std::copy_n(&m.weights[t * 3], 3, one.weights.begin());
    CHECK(one.evaluate({m.set(rng, held, true)}, 1, {2})[0] == all[t]);
  }
}
