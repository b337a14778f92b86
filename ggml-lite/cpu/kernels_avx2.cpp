// The path for AVX2 with FMA and F16C: eight lanes. Built with those instruction sets switched on.
#if defined(__x86_64__)
#include <immintrin.h>

#define LITE_CPU_PATH avx2
#include "ggml-lite/cpu/simd_loops.h"

namespace lite::cpu {
namespace avx2 {

struct V {
  using Reg = __m256;
  static constexpr int kLanes = 8, kRegisters = 16;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set1(float x) { return _mm256_set1_ps(x); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Reg load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store(float* p, Reg r) { _mm256_storeu_ps(p, r); }
  static void store_first(float* p, Reg r, int64_t n) { _mm256_maskstore_ps(p, mask(n), r); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg select_negative(Reg x, Reg a, Reg b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, zero(), _CMP_LT_OQ));
  }
  static void sum4(Reg a, Reg b, Reg c, Reg d, float* out) {
    const Reg ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const Reg cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const Reg all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
  static Reg round(Reg x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Reg times_two_to(Reg x, Reg n) {
    const __m256i bits =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(bits));
  }
  // e4m3 in the bits of an f16 is value / 256, subnormals included.
  static Reg from_f8(__m128i codes) {
    const __m128i half =
        _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(codes), 7), _mm_set1_epi16(short(0xBF80)));
    return _mm256_cvtph_ps(half);
  }
  static Reg from_bf16(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  template <Elem type>
  static Reg load_as(const char* p) {
    if constexpr (type == Elem::F32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    if constexpr (type == Elem::F8) return from_f8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    if constexpr (type == Elem::Bf16) return from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    if constexpr (type == Elem::F16)
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <Elem type>
  static Reg load_first_as(const char* p, int64_t n) {
    alignas(32) char bytes[32] = {};
    for (int64_t i = 0; i < n * bytes_of(type); ++i) bytes[i] = p[i];
    return load_as<type>(bytes);
  }
};

}  // namespace avx2

const Kernels* kernels_avx2() {
  static constexpr Kernels table = avx2::f32_kernels<avx2::V, avx2::InOrder>();
  return &table;
}

}  // namespace lite::cpu
#endif
