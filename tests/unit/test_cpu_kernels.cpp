// The kernels of the fast CPU backend by themselves: those that only some paths have. The op tests go through all others.
#include "ggml-lite/cpu/kernels.h"

#include "tests/unit/support.h"

using namespace lite;
using lite::cpu::Kernels;
using test::Rng;

namespace {

// The paths of this machine that have what is asked for; says which paths are left out.
std::vector<const Kernels*> paths_with(bool (*has)(const Kernels&)) {
  std::vector<const Kernels*> found;
  for (int i = 0; i < kIsas; ++i) {
    if (!isa_usable(Isa(i)))
      std::printf("not tested: this machine has no %s\n", isa_name(Isa(i)));
    else if (const Kernels* k = cpu::kernels_of(Isa(i)); has(*k))
      found.push_back(k);
  }
  return found;
}

// n values between guards.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n) : memory_(size_t(n + 2 * kGuard), T(77)) {}
  T* data() { return memory_.data() + kGuard; }
  bool intact() const {
    const auto is_guard = [](T x) { return x == T(77); };
    return std::all_of(memory_.begin(), memory_.begin() + kGuard, is_guard) &&
           std::all_of(memory_.end() - kGuard, memory_.end(), is_guard);
  }

 private:
  static constexpr int64_t kGuard = 64;
  std::vector<T> memory_;
};

constexpr int64_t kBlock = cpu::kScaleColumns;

// y [tokens][n] of gemv_f16, scales 1.
std::vector<float> products_in_f16(const Kernels& k, const std::vector<uint8_t>& w, int64_t n,
                                   int64_t columns, const std::vector<std::vector<float>>& x) {
  const int64_t tokens = int64_t(x.size()), blocks = ceil_div(columns, kBlock);
  Guarded<uint16_t> prepared(blocks * tokens * kBlock);
  Guarded<float> factor(blocks * tokens), y(tokens * n);
  for (int64_t t = 0; t < tokens; ++t)
    k.gemv_f16_prepare(x[t].data(), columns, t, tokens, prepared.data(), factor.data());
  k.gemv_f16(w.data(), columns, n, columns, prepared.data(), factor.data(), tokens, y.data(), n);
  CHECK(prepared.intact());
  CHECK(factor.intact());
  CHECK(y.intact());
  return {y.data(), y.data() + tokens * n};
}

uint8_t finite_code(Rng& rng) {
  uint8_t code = 0x7F;
  while ((code & 0x7F) == 0x7F) code = uint8_t(rng.below(256));
  return code;
}

}  // namespace

TEST_CASE("products in f16: every code of e4m3 at every place, exactly") {
  for (const Kernels* k : paths_with([](const Kernels& p) { return p.gemv_f16 != nullptr; }))
    for (const int64_t columns : {1, 63, 64, 65, 128, 254, 300}) {
      CAPTURE(columns);
      // Row i has code (i + j) % 254 at column j; one column at a time is 1, or a power of two of any size.
      const int64_t n = 254;
      std::vector<uint8_t> w(n * columns);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          const int64_t code = (i + j) % 254;
          w[i * columns + j] = uint8_t(code < 127 ? code : code + 1);
        }
      for (int64_t first = 0; first < columns; first += cpu::kGemvTokens) {
        std::vector<std::vector<float>> x;
        for (int64_t j = first; j < std::min(columns, first + cpu::kGemvTokens); ++j) {
          x.emplace_back(columns, 0.0f);
          x.back()[j] = std::ldexp(j % 2 ? 1.0f : -1.0f, int(j % 80) - 40);
        }
        const auto y = products_in_f16(*k, w, n, columns, x);
        for (size_t t = 0; t < x.size(); ++t)
          for (int64_t i = 0; i < n; ++i)
            REQUIRE(y[t * n + i] ==
                    float(test::e4m3(w[i * columns + first + int64_t(t)]) * x[t][first + int64_t(t)]));
      }
    }
}

TEST_CASE("products in f16: against float64, the same bits for any number of tokens and rows") {
  Rng rng(71);
  for (const Kernels* k : paths_with([](const Kernels& p) { return p.gemv_f16 != nullptr; }))
    for (const int64_t columns : {5, 128, 577, 7168}) {
      CAPTURE(columns);
      const int64_t n = 19;
      std::vector<uint8_t> w(n * columns);
      for (uint8_t& code : w) code = finite_code(rng);
      std::vector<std::vector<float>> x;
      for (int64_t t = 0; t < cpu::kGemvTokens; ++t)
        x.push_back(rng.normals(columns, std::ldexp(1, int(t * 12 - 40))));
      x[2].assign(columns, 0.0f);
      x[3].assign(columns, 1e-42f);  // next to nothing
      const auto all = products_in_f16(*k, w, n, columns, x);
      for (size_t t = 0; t < x.size(); ++t)
        for (int64_t i = 0; i < n; ++i) {
          double y = 0, squares = 0;
          for (int64_t j = 0; j < columns; ++j) {
            const double code = test::e4m3(w[i * columns + j]);
            y += code * x[t][j];
            squares += code * code;
          }
          const double bound = test::norm_of(x[t].data(), columns) * std::sqrt(squares);
          REQUIRE(std::fabs(all[t * n + i] - y) <= 0x1p-10 * bound + 1e-38);
        }
      for (int64_t tokens = 1; tokens < cpu::kGemvTokens; ++tokens) {
        const auto some = products_in_f16(*k, w, n, columns, {x.begin(), x.begin() + tokens});
        CHECK(std::equal(some.begin(), some.end(), all.begin()));
      }
      const auto few = products_in_f16(*k, w, 3, columns, x);
      for (size_t t = 0; t < x.size(); ++t) CHECK(std::equal(&few[t * 3], &few[t * 3] + 3, &all[t * n]));
    }
}

TEST_CASE("the matrix unit: products of bf16 against float64, of lengths and counts that no tile divides") {
  Rng rng(72);
  const struct {
    int64_t rows, tokens, columns;
  } shapes[] = {{1, 1, 1}, {16, 16, 32}, {17, 33, 129}, {40, 70, 250}, {64, 5, 96}};
  for (const Kernels* k : paths_with([](const Kernels& p) { return p.tiles.product != nullptr; }))
    for (const auto& s : shapes) {
      CAPTURE(s.rows);
      CAPTURE(s.tokens);
      CAPTURE(s.columns);
      const int64_t rows = round_up(s.rows, 16), groups = ceil_div(s.tokens, 16),
                    steps = ceil_div(s.columns, 32);
      std::vector<uint16_t> w(rows * 256, 0x7FC0);  // NaN where there is no row
      std::vector<std::vector<float>> x;
      std::vector<const float*> row;
      const auto rounded = [](float v) { return bf16_from_f32(v); };
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < steps * 32; ++j)
          w[i * 256 + j] = j < s.columns ? rounded(rng.normal()) : uint16_t(0);
      for (int64_t t = 0; t < s.tokens; ++t) {
        x.push_back(rng.normals(s.columns));
        for (float& v : x.back()) v = f32_from_bf16(rounded(v));
        row.push_back(x.back().data());
      }
      const float scale[] = {1.5f, 0.37f};
      Guarded<uint16_t> packed(groups * steps * 512);
      Guarded<float> sum(rows * groups * 16), y(s.tokens * s.rows);
      k->tiles.begin();
      for (int64_t g = 0; g < groups; ++g)
        k->tiles.pack(&row[g * 16], std::min<int64_t>(16, s.tokens - g * 16), s.columns,
                      packed.data() + g * steps * 512);
      for (const bool add : {false, true})
        k->tiles.product(w.data(), 512, s.rows, packed.data(), steps * 512, groups, s.columns, scale,
                         sum.data(), add);
      k->tiles.end();
      k->tiles.transpose(sum.data(), groups * 16, s.rows, s.tokens, y.data(), s.rows);
      CHECK(packed.intact());
      CHECK(sum.intact());
      CHECK(y.intact());
      for (int64_t t = 0; t < s.tokens; ++t)
        for (int64_t i = 0; i < s.rows; ++i) {
          double expected = 0, squares = 0;
          for (int64_t j = 0; j < s.columns; ++j) {
            const double v = test::bf16(w[i * 256 + j]) * double(scale[j / 128]);
            expected += 2 * v * x[t][j];
            squares += v * v;
          }
          REQUIRE(std::fabs(y.data()[t * s.rows + i] - expected) <=
                  1e-6 * test::norm_of(x[t].data(), s.columns) * std::sqrt(squares));
        }
    }
}
