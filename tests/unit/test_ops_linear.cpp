// Products with weight matrices: linear and linear_per_head.
#include "tests/unit/support.h"

using namespace lite;
using test::OpHarness;
using test::Rng;
using test::Scales;
using test::Weight;
using test::WeightOptions;

namespace {

// Every type a weight can have; FP8 with every type of scale and cut out of a larger matrix at odd places.
std::vector<WeightOptions> weight_table() {
  std::vector<WeightOptions> table;
  for (const DType dtype : {DType::F32, DType::BF16, DType::F16, DType::F8_E4M3})
    table.push_back({.dtype = dtype});
  table.push_back({.dtype = DType::BF16, .row0 = 2, .col0 = 5});
  for (const Scales scales : {Scales::F32, Scales::Bf16, Scales::F16})
    table.push_back({.dtype = DType::F8_E4M3, .scales = scales});
  for (const auto& [row0, col0] :
       std::vector<std::pair<int64_t, int64_t>>{{5, 0}, {0, 100}, {127, 77}, {128, 256}})
    table.push_back({.dtype = DType::F8_E4M3, .scales = Scales::F32, .row0 = row0, .col0 = col0});
  table.push_back({.dtype = DType::F8_E4M3,
                   .scales = Scales::Bf16,
                   .row0 = 3,
                   .col0 = 9,
                   .block_rows = 4,
                   .block_cols = 16});
  return table;
}

double dot(const double* a, const Weight& w, int64_t row) {
  double sum = 0;
  for (int64_t j = 0; j < w.cols; ++j) sum += a[j] * w.at(row, j);
  return sum;
}

// Columns [first, first + n) of a matrix.
Weight columns_of(const Weight& whole, int64_t first, int64_t n) {
  Weight w = whole;
  w.tensor = slice_cols(whole.tensor, first, n);
  w.cols = n;
  w.value.clear();
  for (int64_t i = 0; i < w.rows; ++i)
    for (int64_t j = 0; j < n; ++j) w.value.push_back(whole.at(i, first + j));
  return w;
}

// Rows of whole pieces of 16 bytes, with and without scales, cut out along borders between scales or across them.
std::vector<Weight> aligned_weights(Rng& rng, int64_t out, int64_t in) {
  std::vector<Weight> all;
  for (const Scales scales : {Scales::None, Scales::F32, Scales::Bf16, Scales::F16})
    all.push_back(test::make_weight(rng, out, in, {.dtype = DType::F8_E4M3, .scales = scales}));
  all.push_back(test::make_weight(rng, out, in, {.dtype = DType::BF16}));
  for (const int64_t first : {128, 64, 16})
    all.push_back(columns_of(
        test::make_weight(rng, out, in + 144, {.dtype = DType::F8_E4M3, .scales = Scales::F32}), first, in));
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{32, 256}, {7, 64}})
    all.push_back(test::make_weight(
        rng, out, in,
        {.dtype = DType::F8_E4M3, .scales = Scales::F32, .block_rows = rows, .block_cols = cols}));
  // Scales of 0 in the middle, far from their neighbours in any case.
  Weight& zeros =
      all.emplace_back(test::make_weight(rng, out, in, {.dtype = DType::F8_E4M3, .scales = Scales::F32}));
  const int64_t columns = ceil_div(in, 128);
  for (int64_t i = 0; columns > 1 && i < ceil_div(out, 128); ++i)
    std::memset(zeros.scales->data() + (i * columns + 1) * 4, 0, 4);
  for (int64_t i = 0; i < out; ++i)
    for (int64_t j = 128; j < std::min<int64_t>(in, 256); ++j) zeros.value[i * in + j] = 0;
  return all;
}

// Values that bf16 holds, so that rounding to it changes nothing.
std::vector<float> bf16_normals(Rng& rng, int64_t n) {
  std::vector<float> x = rng.normals(n);
  for (float& v : x) v = f32_from_bf16(bf16_from_f32(v));
  return x;
}

}  // namespace

TEST_CASE("linear: every type of weight, whole and sliced, with and without bias") {
  Rng rng(20);
  const struct {
    int64_t tokens, live, out, in;
  } shapes[] = {{1, 1, 1, 1}, {2, 1, 3, 7}, {5, 3, 130, 128}, {3, 3, 129, 300}, {4, 4, 17, 1000}};
  for (const WeightOptions& o : weight_table())
    for (const auto& s : shapes) {
      CAPTURE(info(o.dtype).name);
      CAPTURE(o.row0);
      CAPTURE(o.col0);
      CAPTURE(s.out);
      CAPTURE(s.in);
      OpHarness h({.tokens = s.tokens, .sequences = 1, .blocks = 1, .outputs = 1});
      h.counts(int32_t(s.live), 1, 1);
      const int64_t wide = s.in + 3;
      const std::vector<float> x = rng.normals(s.tokens * wide);
      const Weight w = test::make_weight(rng, s.out, s.in, o);
      const DType bias_type = o.dtype == DType::F8_E4M3 ? DType::BF16 : o.dtype;
      const Weight bias = test::make_vector(rng, s.out, bias_type);
      const Var a = h.activation(x, wide), m = h.weight(w);
      h.keep("plain", h.b.linear(h.b.slice(a, 0, s.in), m));
      h.keep("sliced", h.b.linear(h.b.slice(a, 3, s.in), m, h.weight(bias)));
      h.run();
      for (int64_t t = 0; t < s.live; ++t) {
        const std::vector<double> row(x.begin() + t * wide, x.begin() + (t + 1) * wide);
        for (int64_t i = 0; i < s.out; ++i) {
          const double bound = test::dot_tolerance(s.in) * test::norm_of(&x[t * wide], wide) * w.norm(i);
          REQUIRE(std::fabs(h.row("plain", t)[i] - dot(row.data(), w, i)) <= bound);
          const double y = dot(row.data() + 3, w, i) + bias.value[i];
          REQUIRE(std::fabs(h.row("sliced", t)[i] - y) <= bound + 2e-7 * std::fabs(bias.value[i]));
        }
      }
    }
}

TEST_CASE("linear: many rows, of lengths and counts that no tile divides, with the bounds of f32") {
  Rng rng(24);
  // The processor's fast modes may move scales to the activations before they round these, or add up in f16.
  const auto tolerance = [](int64_t n) {
    return test::tested_backend().cuda ? 4e-7 * std::sqrt(double(n)) : test::dot_tolerance(n);
  };
  const struct {
    int64_t tokens, live, out, in;
  } shapes[] = {{1, 1, 64, 128}, {6, 5, 130, 576}, {40, 33, 70, 192}, {70, 66, 17, 16}, {131, 129, 150, 272}};
  for (const auto& s : shapes)
    for (const Weight& w : aligned_weights(rng, s.out, s.in)) {
      CAPTURE(info(w.tensor.dtype).name);
      CAPTURE(w.tensor.scale.col0);
      CAPTURE(s.live);
      CAPTURE(s.in);
      OpHarness h({.tokens = s.tokens, .sequences = 1, .blocks = 1, .outputs = 1});
      h.counts(int32_t(s.live), 1, 1);
      const std::vector<float> x = bf16_normals(rng, s.tokens * s.in);
      const Weight bias = test::make_vector(rng, s.out, DType::F32);
      h.keep("y", h.b.linear(h.activation(x, s.in), h.weight(w), h.weight(bias)));
      h.run();
      for (int64_t t = 0; t < s.live; ++t) {
        const std::vector<double> row(x.begin() + t * s.in, x.begin() + (t + 1) * s.in);
        for (int64_t i = 0; i < s.out; ++i) {
          const double bound = tolerance(s.in) * test::norm_of(&x[t * s.in], s.in) * w.norm(i);
          REQUIRE(std::fabs(h.row("y", t)[i] - dot(row.data(), w, i) - bias.value[i]) <=
                  bound + 2e-7 * std::fabs(bias.value[i]));
        }
      }
    }
}

TEST_CASE("linear: a row's bits do not depend on how many rows there are") {
  Rng rng(25);
  const int64_t T = 130, in = 320, out = 70;
  const std::vector<float> x = rng.normals(T * in);
  for (const Rounding rounding : {Rounding::None, Rounding::F8})
    for (const Weight& w : aligned_weights(rng, out, in)) {
      const auto rows = [&](const std::vector<int32_t>& ids) {
        OpHarness h({.tokens = T, .sequences = 1, .blocks = 1, .outputs = 1});
        h.counts(int32_t(ids.size()), 1, 1);
        std::copy(ids.begin(), ids.end(), h.ids().begin());
        h.keep("y", h.b.linear(h.activation(x, in), h.weight(w), Var::none(), {.rounding = rounding}));
        h.run({2});
        std::vector<std::vector<float>> y;
        for (size_t t = 0; t < ids.size(); ++t) y.emplace_back(h.row("y", t), h.row("y", t) + out);
        return y;
      };
      std::vector<int32_t> ids(T);
      for (int64_t t = 0; t < T; ++t) ids[t] = int32_t(t);
      const auto all = rows(ids);
      for (const int32_t t : {0, 77, 129}) CHECK(rows({t})[0] == all[t]);
      const auto some = rows({129, 3, 64, 65, 2});
      CHECK(some == std::vector{all[129], all[3], all[64], all[65], all[2]});
    }
}

TEST_CASE("linear: activations are rounded before FP8 weights and before no others") {
  Rng rng(21);
  for (const Rounding rounding : {Rounding::None, Rounding::F8, Rounding::F8PowerOfTwo})
    for (const DType dtype : {DType::F8_E4M3, DType::BF16})
      for (const int64_t in : {1, 100, 128, 272, 300}) {
        CAPTURE(in);
        const int64_t T = 4, live = 3, out = 20, wide = in + 4;
        std::vector<float> x;
        std::vector<std::vector<double>> rows;
        for (bool close = true; close;) {  // until f32 and double must round all of them alike
          close = false;
          x = rng.normals(T * wide, 2);
          rows.clear();
          for (int64_t t = 0; t < live; ++t) {
            rows.emplace_back(x.begin() + t * wide + 4, x.begin() + (t + 1) * wide);
            if (rounding != Rounding::None && dtype == DType::F8_E4M3)
              rows.back() = test::rounded(rounding, rows.back(), &close);
          }
        }
        OpHarness h({.tokens = T, .sequences = 1, .blocks = 1, .outputs = 1});
        h.counts(live, 1, 1);
        const Scales scales = dtype == DType::F8_E4M3 ? Scales::F32 : Scales::None;
        const Weight w = test::make_weight(rng, out, in, {.dtype = dtype, .scales = scales});
        h.keep("y", h.b.linear(h.b.slice(h.activation(x, wide), 4, in), h.weight(w), Var::none(),
                               {.rounding = rounding}));
        h.run();
        for (int64_t t = 0; t < live; ++t)
          for (int64_t i = 0; i < out; ++i) {
            const double bound = test::dot_tolerance(in) * test::norm_of(&x[t * wide], wide) * w.norm(i);
            REQUIRE(std::fabs(h.row("y", t)[i] - dot(rows[t].data(), w, i)) <= bound);
          }
      }
}

TEST_CASE("linear on output rows: none, some") {
  Rng rng(22);
  for (const int32_t outputs : {0, 2}) {
    OpHarness h({.tokens = 5, .sequences = 1, .blocks = 1, .outputs = 3});
    h.counts(4, 1, outputs);
    h.out_rows() = {3, 1, -1};
    const std::vector<float> x = rng.normals(5 * 12);
    const Weight w = test::make_weight(rng, 9, 12);
    h.keep("y", h.b.linear(h.b.select_rows(h.activation(x, 12), h.in.out_rows), h.weight(w)));
    h.run();
    for (int64_t r = 0; r < outputs; ++r) {
      const float* from = &x[h.out_rows()[r] * 12];
      const std::vector<double> row(from, from + 12);
      for (int64_t i = 0; i < 9; ++i)
        CHECK(std::fabs(h.row("y", r)[i] - dot(row.data(), w, i)) <=
              test::dot_tolerance(12) * test::norm_of(from, 12) * w.norm(i));
    }
  }
}

TEST_CASE("linear_per_head: some rows of every head's block, plain and transposed, in place in any weight") {
  Rng rng(23);
  const struct {
    int64_t heads, head_rows, row0, rows, cols;
  } shapes[] = {
      {1, 1, 0, 1, 1}, {3, 7, 2, 4, 33}, {4, 10, 0, 6, 130}, {2, 256, 128, 128, 300}, {5, 24, 9, 15, 16}};
  for (const WeightOptions& o : weight_table())
    for (const auto& s : shapes)
      for (const bool transposed : {false, true}) {
        CAPTURE(info(o.dtype).name);
        CAPTURE(o.row0);
        CAPTURE(o.col0);
        CAPTURE(s.heads);
        CAPTURE(transposed);
        const int64_t T = 3, live = 2, n = transposed ? s.rows : s.cols, out = transposed ? s.cols : s.rows,
                      head = n + 2;
        OpHarness h({.tokens = T, .sequences = 1, .blocks = 1, .outputs = 1});
        h.counts(live, 1, 1);
        const std::vector<float> x = rng.normals(T * s.heads * head);
        const Weight w = test::make_weight(rng, s.heads * s.head_rows, s.cols, o);
        const Var a = h.b.view(h.activation(x, s.heads * head), {T, s.heads, head});
        h.keep("y",
               h.b.linear_per_head(h.b.slice(a, 2, n), h.weight(w), s.head_rows, s.row0, s.rows, transposed));
        h.run();
        for (int64_t t = 0; t < live; ++t)
          for (int64_t i = 0; i < s.heads; ++i) {
            const float* from = &x[(t * s.heads + i) * head + 2];
            const int64_t first = i * s.head_rows + s.row0;
            for (int64_t k = 0; k < out; ++k) {
              double y = 0, squares = 0;
              for (int64_t j = 0; j < n; ++j) {
                const double weight = transposed ? w.at(first + j, k) : w.at(first + k, j);
                y += from[j] * weight;
                squares += weight * weight;
              }
              const double bound = test::dot_tolerance(n) * test::norm_of(from, n) * std::sqrt(squares);
              REQUIRE(std::fabs(h.row("y", t, i)[k] - y) <= bound);
            }
          }
      }
}
