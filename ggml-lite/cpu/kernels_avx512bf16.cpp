// AVX-512 with BF16 (Zen 4, Cooper Lake and later): twice the products per instruction for prompts.
#if defined(__x86_64__)
#define LITE_CPU_PATH avx512bf16
#include "ggml-lite/cpu/simd_avx512.h"

namespace lite::cpu {
namespace avx512bf16 {

struct Bf16Dot {
  using T = uint16_t;
  using Reg = __m512i;
  static constexpr int kStep = 32;
  static Reg load(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static Reg load_first(const uint16_t* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << n) - 1), p);
  }
  static __m512 fma(Reg a, Reg b, __m512 c) { return _mm512_dpbf16_ps(c, __m512bh(a), __m512bh(b)); }
};

void to_bf16(const float* from, float factor, uint16_t* to, int64_t n) {
  const __m512 f = V::set1(factor);
  each<V>(n, [&](int64_t i, int64_t count) {
    const __m256bh half = _mm512_cvtneps_pbh(_mm512_mul_ps(V::load_first(from + i, count), f));
    _mm256_mask_storeu_epi16(to + i, V::mask(count), __m256i(half));
  });
}

void f8_to_bf16(const uint8_t* from, uint16_t* to, int64_t n) {
  const F8Table codes_to_bf16;
  // unpack works within 128-bit lanes; this order of the codes makes its results consecutive.
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t i = 0; i < n; i += 64) {
    const uint64_t live = n - i < 64 ? (uint64_t(1) << (n - i)) - 1 : ~uint64_t(0);
    const __m512i codes = _mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(live, from + i));
    const Bf16x64 half = codes_to_bf16(codes);
    _mm512_mask_storeu_epi16(to + i, __mmask32(live), half.low);
    _mm512_mask_storeu_epi16(to + i + 32, __mmask32(live >> 32), half.high);
  }
}

int64_t bf16_rounds(int64_t n) {
  constexpr int kChains = 24;
  __m512 sum[kChains];
  for (__m512& s : sum) s = V::zero();
  __m512i x = _mm512_set1_epi16(0x3F80);
  for (int64_t i = 0; i < n; ++i) {
    x = in_register(x, 2);
    for (__m512& s : sum) s = Bf16Dot::fma(x, x, s);
  }
  float out = 0;
  for (const __m512& s : sum) out += sum_of<V>(s);
  return out < 0 ? 0 : n * kChains * Bf16Dot::kStep;
}

}  // namespace avx512bf16

const Kernels* kernels_avx512bf16() {
  static const Kernels table = [] {
    Kernels k = *kernels_avx512();
    k.gemm_bf16 = avx512bf16::gemm<avx512bf16::V, avx512bf16::Bf16Dot>;
    k.to_bf16 = avx512bf16::to_bf16;
    k.f8_to_bf16 = avx512bf16::f8_to_bf16;
    k.bf16_rounds = avx512bf16::bf16_rounds;
    return k;
  }();
  return &table;
}

}  // namespace lite::cpu
#endif
