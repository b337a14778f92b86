// Ops that treat each row for itself: embed, norms, rope, streams, silu_mul, add, concat, select_rows.
#include "tests/unit/support.h"

using namespace lite;
using test::OpHarness;
using test::Rng;
using test::row_error;

namespace {

struct Shape {
  int64_t tokens, live, n;
};
const Shape kShapes[] = {{1, 1, 1}, {1, 1, 7}, {5, 3, 33}, {9, 9, 16}, {16, 2, 129}, {7, 7, 1000}};

const DType kFloats[] = {DType::F32, DType::BF16, DType::F16, DType::F8_E4M3};

// A harness of T token rows of which `live` are in use.
struct TokenRows : OpHarness {
  explicit TokenRows(const Shape& s)
      : OpHarness({.tokens = s.tokens, .sequences = 1, .blocks = 1, .outputs = s.tokens}) {
    counts(int32_t(s.live), 1, int32_t(s.live));
  }
};

}  // namespace

TEST_CASE("embed: rows of the table, exactly, of every type and with scales") {
  Rng rng(10);
  for (const DType dtype : kFloats)
    for (const test::Scales scales :
         {test::Scales::None, test::Scales::F32, test::Scales::Bf16, test::Scales::F16}) {
      if (scales != test::Scales::None && dtype != DType::F8_E4M3) continue;
      for (const Shape& s : kShapes) {
        CAPTURE(s.n);
        TokenRows h(s);
        const test::Weight table =
            test::make_weight(rng, 300, s.n, {.dtype = dtype, .scales = scales, .row0 = 2, .col0 = 3});
        for (int32_t& id : h.ids()) id = int32_t(rng.below(300));
        h.keep("y", h.b.embed(h.weight(table), h.in.ids));
        h.run();
        for (int64_t t = 0; t < s.live; ++t)
          for (int64_t i = 0; i < s.n; ++i) REQUIRE(h.row("y", t)[i] == float(table.at(h.ids()[t], i)));
      }
    }
}

TEST_CASE("rms_norm") {
  Rng rng(11);
  for (const DType dtype : kFloats)
    for (const float eps : {1e-6f, 1e-2f})
      for (const Shape& s : kShapes) {
        CAPTURE(s.n);
        TokenRows h(s);
        std::vector<float> x = rng.normals(s.tokens * s.n, 3);
        for (int64_t i = 0; i < s.n; ++i) x[i] *= 1e-3f;  // of the first row: there eps counts
        const test::Weight w = test::make_vector(rng, s.n, dtype);
        h.keep("y", h.b.rms_norm(h.activation(x, s.n), h.weight(w), eps));
        h.run();
        for (int64_t t = 0; t < s.live; ++t) {
          double squares = 0;
          for (int64_t i = 0; i < s.n; ++i) squares += double(x[t * s.n + i]) * x[t * s.n + i];
          std::vector<double> y(s.n);
          for (int64_t i = 0; i < s.n; ++i)
            y[i] = x[t * s.n + i] / std::sqrt(squares / double(s.n) + double(eps)) * w.value[i];
          REQUIRE(row_error(h.row("y", t), y) <= test::kRowTolerance);
        }
      }
}

TEST_CASE("rms_norm: of a slice, of every head, and of the heads in a slice") {
  Rng rng(12);
  const int64_t T = 6, live = 4, n = 40, cut = 24, H = 5;
  OpHarness h({.tokens = T, .sequences = 1, .blocks = 1, .outputs = 1});
  h.counts(live, 1, 1);
  const std::vector<float> x = rng.normals(T * n);
  const test::Weight w = test::make_vector(rng, cut, DType::F32),
                     v = test::make_vector(rng, n / H, DType::BF16);
  const Var a = h.activation(x, n);
  h.keep("slice", h.b.rms_norm(h.b.slice(a, 9, cut), h.weight(w), 1e-6f));
  h.keep("heads", h.b.rms_norm(h.b.view(a, {T, H, n / H}), h.weight(v), 1e-6f));
  h.keep("some", h.b.rms_norm(h.b.view(h.b.slice(a, 5, 2 * (n / H)), {T, 2, n / H}), h.weight(v), 1e-6f));
  h.run();
  const auto normed = [](const float* from, const test::Weight& weight, int64_t size) {
    const double norm = test::norm_of(from, size);
    std::vector<double> y(size);
    for (int64_t i = 0; i < size; ++i)
      y[i] = from[i] / std::sqrt(norm * norm / double(size) + 1e-6) * weight.value[i];
    return y;
  };
  for (int64_t t = 0; t < live; ++t) {
    CHECK(row_error(h.row("slice", t), normed(&x[t * n + 9], w, cut)) <= test::kRowTolerance);
    for (int64_t i = 0; i < H; ++i)
      CHECK(row_error(h.row("heads", t, i), normed(&x[t * n + i * (n / H)], v, n / H)) <=
            test::kRowTolerance);
    for (int64_t i = 0; i < 2; ++i)
      CHECK(row_error(h.row("some", t, i), normed(&x[t * n + 5 + i * (n / H)], v, n / H)) <=
            test::kRowTolerance);
  }
}

TEST_CASE("layer_norm") {
  Rng rng(13);
  for (const DType dtype : {DType::F32, DType::BF16, DType::F16})
    for (const Shape& s : kShapes) {
      CAPTURE(s.n);
      TokenRows h(s);
      std::vector<float> x = rng.normals(s.tokens * s.n);
      for (float& value : x) value += 2;  // a mean to take away
      const test::Weight w = test::make_vector(rng, s.n, dtype), b = test::make_vector(rng, s.n, dtype);
      h.keep("y", h.b.layer_norm(h.activation(x, s.n), h.weight(w), h.weight(b), 1e-5f));
      h.run();
      for (int64_t t = 0; t < s.live; ++t) {
        double mean = 0, variance = 0;
        for (int64_t i = 0; i < s.n; ++i) mean += x[t * s.n + i] / double(s.n);
        for (int64_t i = 0; i < s.n; ++i) variance += std::pow(x[t * s.n + i] - mean, 2) / double(s.n);
        std::vector<double> y(s.n);
        for (int64_t i = 0; i < s.n; ++i)
          y[i] = (x[t * s.n + i] - mean) / std::sqrt(variance + 1e-5) * w.value[i] + b.value[i];
        REQUIRE(row_error(h.row("y", t), y) <= test::kRowTolerance);
      }
    }
}

namespace {

// A rotation in double; the angle is the product rounded to f32, by the contract.
std::vector<double> rotated(const float* x, int64_t n, int32_t position, const std::vector<float>& inv_freq,
                            double scale, bool interleaved) {
  std::vector<double> y(n);
  for (int64_t i = 0; i < n / 2; ++i) {
    const float angle = float(position) * inv_freq[i];
    const double c = std::cos(double(angle)) * scale, s = std::sin(double(angle)) * scale;
    const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + n / 2;
    y[a] = x[a] * c - x[b] * s;
    y[b] = x[a] * s + x[b] * c;
  }
  return y;
}

}  // namespace

TEST_CASE("rope: both pairings, with and without heads, whole and sliced, to the longest context") {
  Rng rng(14);
  for (const bool interleaved : {true, false})
    for (const float scale : {1.0f, 1.2079f})
      for (const int64_t n : {2, 10, 64}) {
        CAPTURE(interleaved);
        CAPTURE(n);
        const int64_t T = 6, live = 5, H = 3, head = n + 5;
        OpHarness h({.tokens = T, .sequences = 1, .blocks = 1, .outputs = 1});
        h.counts(live, 1, 1);
        h.positions() = {0, 1, 4399, 163839, int32_t(rng.below(1 << 20)), -1};
        std::vector<float> inv_freq(n / 2);
        for (int64_t i = 0; i < n / 2; ++i)
          inv_freq[i] = float(std::pow(10000.0, -2.0 * double(i) / double(n)));
        const std::vector<float> x = rng.normals(T * H * head);
        const Var f = h.weight(test::vector_of(inv_freq));
        const Var all = h.activation(x, H * head);      // [T, H * (n + 5)]
        const Var heads = h.b.view(all, {T, H, head});  // [T, H, n + 5]
        h.keep("heads", h.b.rope(h.b.slice(heads, 5, n), h.in.positions, f, scale, interleaved));
        h.keep("row", h.b.rope(h.b.slice(all, 3, n), h.in.positions, f, scale, interleaved));
        h.keep("whole", h.b.rope(h.activation(x, n), h.in.positions, f, scale, interleaved));
        h.run();
        for (int64_t t = 0; t < live; ++t) {
          const auto expected = [&](int64_t at) {
            return rotated(&x[at], n, h.positions()[t], inv_freq, double(scale), interleaved);
          };
          for (int64_t i = 0; i < H; ++i)
            CHECK(row_error(h.row("heads", t, i), expected((t * H + i) * head + 5)) <= test::kRowTolerance);
          CHECK(row_error(h.row("row", t), expected(t * H * head + 3)) <= test::kRowTolerance);
          CHECK(row_error(h.row("whole", t), expected(t * n)) <= test::kRowTolerance);
        }
      }
}

TEST_CASE("stream_write and stream_read: the rows named, rounded once to the stream's type, nothing else") {
  Rng rng(15);
  for (const DType dtype : {DType::F32, DType::BF16}) {
    for (const int64_t b_width : {0, 1, 9}) {
      CAPTURE(b_width);
      const int64_t T = 7, live = 5, a_width = 13, width = a_width + b_width, rows = 64 * 3;
      OpHarness h({.tokens = T, .sequences = 1, .blocks = 1, .outputs = 1});
      h.counts(live, 1, 1);
      h.kv_rows() = {63, 64, 191, 0, 100, -1, -1};
      const std::vector<float> x = rng.normals(T * 40);
      const Var all = h.activation(x, 40), a = h.b.slice(all, 2, a_width);
      const Var b = b_width ? h.b.slice(all, 20, b_width) : Var::none();
      const Var after = h.b.stream_write(h.stream(dtype, width, rows), h.in.kv_rows, a, b);
      h.keep("back", h.b.stream_read(after, h.in.kv_rows));
      const std::vector<std::byte> before(h.stream_bytes(0).size(), std::byte{0xA5});
      h.stream_bytes(0) = before;
      h.run();

      std::vector<std::byte> expected = before;
      for (int64_t t = 0; t < live; ++t)
        for (int64_t i = 0; i < width; ++i) {
          const float value = x[t * 40 + (i < a_width ? 2 + i : 20 + i - a_width)];
          const uint16_t rounded = bf16_from_f32(value);
          const float stored = dtype == DType::F32 ? value : float(test::bf16(rounded));
          CHECK(h.row("back", t)[i] == stored);
          const int64_t at = h.kv_rows()[t] * width + i;
          if (dtype == DType::F32)
            std::memcpy(&expected[at * 4], &value, 4);
          else
            std::memcpy(&expected[at * 2], &rounded, 2);
        }
      CHECK(h.stream_bytes(0) == expected);
    }
  }
}

TEST_CASE("silu_mul") {
  Rng rng(16);
  for (const Shape& s : kShapes) {
    TokenRows h(s);
    std::vector<float> gate = rng.normals(s.tokens * s.n, 4), up = rng.normals(s.tokens * s.n);
    if (s.n >= 7) gate[0] = 200, gate[1] = -200, gate[2] = 0, gate[3] = -87.5f, gate[4] = -1e30f;
    h.keep("y", h.b.silu_mul(h.activation(gate, s.n), h.activation(up, s.n)));
    h.run();
    for (int64_t t = 0; t < s.live; ++t)
      for (int64_t i = 0; i < s.n; ++i) {
        const double z = gate[t * s.n + i], y = z / (1 + std::exp(-z)) * up[t * s.n + i];
        REQUIRE(std::fabs(h.row("y", t)[i] - y) <= test::kRowTolerance * std::fabs(y) + 1e-37);
      }
  }
}

TEST_CASE("add and concat: exact, also of slices") {
  Rng rng(17);
  for (const Shape& s : kShapes) {
    TokenRows h(s);
    const int64_t wide = s.n + 6;
    const std::vector<float> x = rng.normals(s.tokens * wide), y = rng.normals(s.tokens * s.n);
    const Var a = h.activation(x, wide), b = h.activation(y, s.n);
    h.keep("sum", h.b.add(h.b.slice(a, 4, s.n), b));
    h.keep("both", h.b.concat(b, h.b.slice(a, 1, 3)));
    h.run();
    for (int64_t t = 0; t < s.live; ++t) {
      for (int64_t i = 0; i < s.n; ++i) {
        REQUIRE(h.row("sum", t)[i] == x[t * wide + 4 + i] + y[t * s.n + i]);
        REQUIRE(h.row("both", t)[i] == y[t * s.n + i]);
      }
      for (int64_t i = 0; i < 3; ++i) REQUIRE(h.row("both", t)[s.n + i] == x[t * wide + 1 + i]);
    }
  }
}

TEST_CASE("select_rows: any rows in any order, none at all, and what follows sees only those") {
  Rng rng(18);
  for (const int32_t outputs : {0, 1, 3, 5}) {
    const int64_t T = 6, n = 11;
    OpHarness h({.tokens = T, .sequences = 1, .blocks = 1, .outputs = 5});
    h.counts(T, 1, outputs);
    h.out_rows() = {5, 0, 5, 3, 2};
    const std::vector<float> x = rng.normals(T * n);
    const Var picked = h.b.select_rows(h.activation(x, n), h.in.out_rows);
    h.keep("picked", picked);
    h.keep("twice", h.b.add(picked, picked));
    h.run();
    for (int64_t r = 0; r < outputs; ++r)
      for (int64_t i = 0; i < n; ++i) {
        CHECK(h.row("picked", r)[i] == x[h.out_rows()[r] * n + i]);
        CHECK(h.row("twice", r)[i] == 2 * x[h.out_rows()[r] * n + i]);
      }
  }
}

TEST_CASE("a row's bits do not depend on the rows beside it, nor on its place") {
  Rng rng(19);
  const int64_t n = 50;
  const std::vector<float> x = rng.normals(8 * n);
  const test::Weight w = test::make_weight(rng, 30, n, {.dtype = DType::BF16}),
                     g = test::make_vector(rng, n, DType::F32);
  const std::vector<float> inv_freq(rng.normals(n / 2));
  const auto chain = [&](std::vector<int32_t> ids) {
    OpHarness h({.tokens = 8, .sequences = 1, .blocks = 1, .outputs = 1});
    h.counts(int32_t(ids.size()), 1, 0);
    ids.resize(8);
    h.ids() = ids;
    h.positions() = ids;
    const Var a = h.b.rms_norm(h.activation(x, n), h.weight(g), 1e-6f);
    const Var r = h.b.rope(a, h.in.positions, h.weight(test::vector_of(inv_freq)), 1, true);
    h.keep("y", h.b.linear(h.b.silu_mul(r, a), h.weight(w)));
    h.run({2});
    std::vector<std::vector<float>> rows;
    for (int64_t t = 0; t < 8; ++t) rows.emplace_back(h.row("y", t), h.row("y", t) + 30);
    return rows;
  };
  const auto all = chain({0, 1, 2, 3, 4, 5, 6, 7}), some = chain({6, 2}), one = chain({6});
  CHECK(all[6] == some[0]);
  CHECK(all[2] == some[1]);
  CHECK(all[6] == one[0]);
}
