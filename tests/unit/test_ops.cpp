// Rounding of activations, and what the builder refuses. The ops themselves: test_ops_*.cpp.
#include "tests/unit/support.h"

using namespace lite;
using test::Rng;

// ---- rounding of activations (round_row) ------------------------------------------------------------------

TEST_CASE("round_row: goldens") {
  std::vector<float> v(128, 0.0f), out(128);
  const float start[] = {0.5f, -1.25f, 3, 0.01f, 0, -2.7f};
  std::copy(std::begin(start), std::end(start), v.begin());
  const struct {
    Rounding rounding;
    float scale;
    uint8_t codes[6];
  } goldens[] = {{Rounding::F8, 0.00669642864f, {0x69, 0xF4, 0x7E, 0x3C, 0x00, 0xFD}},
                 {Rounding::F8PowerOfTwo, 0.0078125f, {0x68, 0xF2, 0x7C, 0x3A, 0x00, 0xFB}}};
  for (const auto& g : goldens) {
    ref::round_row(g.rounding, v.data(), out.data(), 128);
    for (int i = 0; i < 6; ++i) CHECK(out[i] == float(test::e4m3(g.codes[i]) * g.scale));
    for (int i = 6; i < 128; ++i) CHECK(out[i] == 0);
  }
}

TEST_CASE(
    "round_row: a power-of-two scale is the smallest that is large enough, so what it can hold is kept") {
  // 448 * 2^k beside the smallest code times 2^k: one binade more in the scale would lose the latter.
  for (int k = -20; k <= 100; ++k) {
    CAPTURE(k);
    std::vector<float> v(128);
    for (int i = 0; i < 127; ++i) v[i] = float(std::ldexp(test::e4m3(uint8_t(i)) * (i % 4 == 1 ? -1 : 1), k));
    v[127] = std::ldexp(0x1p-9f, k);
    std::vector<float> out(128);
    ref::round_row(Rounding::F8PowerOfTwo, v.data(), out.data(), 128);
    CHECK(out == v);
    // One float more in the largest needs the next power of two.
    v[126] = std::nextafter(v[126], INFINITY);
    ref::round_row(Rounding::F8PowerOfTwo, v.data(), out.data(), 128);
    CHECK(out[127] == 0);  // 2^-10 of the new scale: a tie, to the even code
    CHECK(out[126] == std::ldexp(448.0f, k));
  }
}

TEST_CASE("round_row: every group has its own scale, the last one may be short, zeros stay zeros") {
  Rng rng(3);
  for (const Rounding rounding : {Rounding::F8, Rounding::F8PowerOfTwo})
    for (const int64_t n : {1, 5, 127, 128, 129, 300, 384}) {
      CAPTURE(n);
      std::vector<float> v = rng.normals(n), out(n + 1, 7.0f);
      for (int64_t i = 0; i < n; ++i) v[i] *= std::ldexp(1.0f, int(i / 128) * 9);
      if (n >= 384) std::fill_n(v.begin() + 128, 128, 0.0f);
      ref::round_row(rounding, v.data(), out.data(), n);
      CHECK(out[n] == 7.0f);
      for (int64_t first = 0; first < n; first += 128) {
        const int64_t end = std::min(n, first + 128);
        float largest = 1e-4f;
        for (int64_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(v[i]));
        double scale = largest / 448.0f;
        if (rounding == Rounding::F8PowerOfTwo) {
          int k = -149;
          while (std::ldexp(1.0, k) < scale) ++k;
          scale = std::ldexp(1.0, k);
        }
        for (int64_t i = first; i < end; ++i) {
          const double expected = test::e4m3(test::nearest_e4m3(double(float(v[i] / float(scale))))) * scale;
          REQUIRE(out[i] == float(expected));
        }
      }
      std::vector<float> in_place = v;
      ref::round_row(rounding, in_place.data(), in_place.data(), n);
      out.resize(n);
      CHECK(in_place == out);
    }
  std::vector<float> zeros(200, 0.0f), out(200, 1.0f);
  ref::round_row(Rounding::F8, zeros.data(), out.data(), 200);
  CHECK(out == zeros);
  // The guard: an amax below 1e-4 counts as 1e-4, so values under half the smallest code of that scale
  // vanish.
  std::vector<float> tiny(128, 1e-10f);
  ref::round_row(Rounding::F8, tiny.data(), tiny.data(), 128);
  CHECK(tiny == std::vector<float>(128, 0.0f));
}

// ---- the builder ------------------------------------------------------------------------------------------

namespace {

// A builder with an activation x [4, 6] and some weights; `call` must be refused with `text` in the message.
void refused(const std::string& text, const std::function<void(test::OpHarness&, Var)>& call) {
  CAPTURE(text);
  test::OpHarness h({.tokens = 4, .sequences = 1, .blocks = 1, .outputs = 2});
  const Var x = h.activation(std::vector<float>(24, 1.0f), 6);
  REQUIRE(h.b.status().ok());
  call(h, x);
  CHECK(h.b.status().code() == Code::Internal);
  CHECK_MESSAGE(h.b.status().message().find(text) != std::string::npos, h.b.status().message());
  // The first mistake is kept, and later calls do nothing.
  const std::string message = h.b.status().message();
  const size_t nodes = h.graph.nodes.size();
  CHECK_FALSE(h.b.add(x, x));
  h.b.select_rows(Var::none(), x);
  CHECK(h.graph.nodes.size() == nodes);
  CHECK(h.b.status().message() == message);
}

test::Weight zeros(int64_t rows, int64_t cols) {
  return test::matrix_of(std::vector<float>(rows * cols), rows, cols);
}
test::Weight zeros(int64_t n) {
  return test::vector_of(std::vector<float>(n));
}

void moe(test::OpHarness& h, Var x, std::vector<int32_t> slot_of_expert, std::vector<FfnWeights> slots) {
  ExpertSet set;
  set.slot_of_expert = std::move(slot_of_expert);
  set.slots = std::move(slots);
  h.b.moe_ffn(x, h.integers(std::vector<int32_t>(8), 4, 2), h.weight(zeros(4, 2)), set, Rounding::None);
}

}  // namespace

TEST_CASE("the builder refuses operands that do not fit") {
  refused("rms_norm", [](auto& h, Var x) { h.b.rms_norm(x, h.weight(zeros(5)), 1e-6f); });
  refused("layer_norm",
          [](auto& h, Var x) { h.b.layer_norm(x, h.weight(zeros(6)), h.weight(zeros(5)), 1e-5f); });
  refused("linear", [](auto& h, Var x) { h.b.linear(x, h.weight(zeros(3, 5))); });
  refused("linear", [](auto& h, Var x) { h.b.linear(x, h.weight(zeros(3, 6)), h.weight(zeros(4))); });
  refused("linear_per_head", [](auto& h, Var x) {
    h.b.linear_per_head(h.b.view(x, {4, 2, 3}), h.weight(zeros(8, 3)), 4, 2, 3, false);  // rows 2..4 of 4
  });
  refused("linear_per_head", [](auto& h, Var x) {
    h.b.linear_per_head(h.b.view(x, {4, 2, 3}), h.weight(zeros(9, 3)), 4, 0, 3,
                        false);  // 2 heads of 4 rows are 8
  });
  refused("linear_per_head", [](auto& h, Var x) {
    h.b.linear_per_head(h.b.view(x, {4, 2, 3}), h.weight(zeros(8, 3)), 4, 0, 4,
                        true);  // transposed: n is rows
  });
  refused("rope", [](auto& h, Var x) { h.b.rope(x, h.in.positions, h.weight(zeros(2)), 1, true); });
  refused("stream_write",
          [](auto& h, Var x) { h.b.stream_write(h.stream(DType::F32, 7, 64), h.in.kv_rows, x); });
  refused("attention_latent", [](auto& h, Var x) {
    const Var q = h.b.view(x, {4, 2, 3});
    h.b.attention_latent(q, q, h.stream(DType::F32, 7, 64), h.in, 1, 64);
  });
  refused("attention_expanded", [](auto& h, Var x) {
    const Var q = h.b.view(x, {4, 2, 3});
    h.b.attention_expanded(q, q, h.weight(zeros(6, 5)), h.stream(DType::F32, 8, 64), h.in, 1, 64);  // dv = 0
  });
  refused("attention_grouped", [](auto& h, Var x) {  // 2 heads on 3 / 2 groups
    h.b.attention_grouped(h.b.view(x, {4, 2, 3}), h.stream(DType::F32, 9, 64), h.in, 1, 64, 0);
  });
  refused("attention_masked", [](auto& h, Var x) {
    const Var q = h.b.view(x, {4, 2, 3});
    h.b.attention_masked(q, q, h.b.view(x, {4, 3, 2}), Var::none(), h.in, 1);
  });
  const RouteParams r = {Scoring::Sigmoid, GroupScore::TwoLargest, 1, 1, 2, true, 1};
  refused("route", [&](auto& h, Var x) {
    RouteParams p = r;
    p.n_experts_per_token = 7;
    h.b.route(x, Var::none(), p);
  });
  refused("route", [&](auto& h, Var x) {
    RouteParams p = r;
    p.n_group = 4;
    h.b.route(x, Var::none(), p);
  });
  refused("route", [&](auto& h, Var x) { h.b.route(x, h.weight(zeros(5)), r); });
  refused("moe_ffn", [&](auto& h, Var x) {
    moe(h, x, {0, 1},
        {{zeros(3, 6).tensor, zeros(3, 6).tensor, zeros(6, 3).tensor, {}, {}}});  // there is no slot 1
  });
  refused("moe_ffn", [&](auto& h, Var x) {
    moe(h, x, {0}, {{zeros(3, 6).tensor, zeros(3, 6).tensor, zeros(6, 4).tensor, {}, {}}});
  });
  refused("silu_mul", [](auto& h, Var x) { h.b.silu_mul(x, h.b.slice(x, 0, 5)); });
  refused("add", [](auto& h, Var x) { h.b.add(h.b.slice(x, 1, 5), x); });
  refused("concat", [](auto& h, Var x) { h.b.concat(x, h.b.view(x, {4, 2, 3})); });
  refused("select_rows", [](auto& h, Var x) { h.b.select_rows(h.b.view(x, {4, 2, 3}), h.in.out_rows); });
  refused("slice", [](auto& h, Var x) { h.b.slice(x, 3, 4); });
  refused("slice", [](auto& h, Var x) { h.b.slice(x, 0, 0); });
  refused("view", [](auto& h, Var x) { h.b.view(h.b.slice(h.b.view(x, {4, 2, 3}), 0, 2), {4, 4}); });
  refused("view", [](auto& h, Var x) { h.b.view(x, {2, 12}); });
  refused("operand", [](auto& h, Var x) { h.b.add(x, Var::none()); });
}
