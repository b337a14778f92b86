// Sixteen lanes of AVX-512 (F, BW, DQ, VL), for the paths that have it.
#pragma once

#include <immintrin.h>

#include "ggml-lite/cpu/simd_loops.h"

namespace lite::cpu::LITE_CPU_PATH {

struct V {
  using Reg = __m512;
  static constexpr int kLanes = 16, kRegisters = 32;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set1(float x) { return _mm512_set1_ps(x); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static __mmask16 mask(int64_t n) { return __mmask16((1u << n) - 1); }
  static Reg load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store(float* p, Reg r) { _mm512_storeu_ps(p, r); }
  static void store_first(float* p, Reg r, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), r); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg select_negative(Reg x, Reg a, Reg b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_LT_OQ), b, a);
  }
  static void sum4(Reg a, Reg b, Reg c, Reg d, float* out) {
    const Reg ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Reg cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const Reg all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  static Reg round(Reg x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Reg times_two_to(Reg x, Reg n) { return _mm512_scalef_ps(x, n); }

  // e4m3 in the bits of an f16 is value / 256, subnormals included.
  static Reg from_f8(__m128i codes) {
    const __m256i half =
        _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7), _mm256_set1_epi16(short(0xBF80)));
    return _mm512_cvtph_ps(half);
  }
  static Reg from_bf16(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  template <Elem type>
  static Reg load_as(const char* p) {
    if constexpr (type == Elem::F32) return _mm512_loadu_ps(p);
    if constexpr (type == Elem::F8) return from_f8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    if constexpr (type == Elem::Bf16)
      return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    if constexpr (type == Elem::F16)
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <Elem type>
  static Reg load_first_as(const char* p, int64_t n) {
    if constexpr (type == Elem::F32) return _mm512_maskz_loadu_ps(mask(n), p);
    if constexpr (type == Elem::F8) return from_f8(_mm_maskz_loadu_epi8(mask(n), p));
    if constexpr (type == Elem::Bf16) return from_bf16(_mm256_maskz_loadu_epi16(mask(n), p));
    if constexpr (type == Elem::F16) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p));
  }
};

// ---- 64 weights at a time (VBMI)

// The two bytes of the bf16 of every e4m3 magnitude, exact.
struct F8Bytes {
  alignas(64) uint8_t high[128], low[128];
  constexpr F8Bytes() : high(), low() {
    for (int code = 0; code < 128; ++code) {
      const int exponent = code >> 3, mantissa = code & 7;
      int e = 127 - 7 + exponent, m = mantissa << 4;
      if (exponent == 0) {
        // A subnormal mantissa / 8 * 2^-6: shift until its highest bit is the hidden one.
        int shift = 0;
        while (mantissa && !((mantissa << shift) & 8)) ++shift;
        e = mantissa ? 127 - 6 - shift : 0;
        m = (mantissa << shift & 7) << 4;
      }
      const int bits = e << 7 | m;
      high[code] = uint8_t(bits >> 8);
      low[code] = uint8_t(bits);
    }
  }
};
constexpr F8Bytes f8_bytes;

struct Bf16x64 {
  __m512i low, high;
};

// Looks 64 codes up. Unpacking works inside 128-bit lanes: of every 16 codes the first 8 come out in `low`, the others
// in `high`.
struct F8Table {
  __m512i h0 = _mm512_load_si512(f8_bytes.high), h1 = _mm512_load_si512(f8_bytes.high + 64);
  __m512i l0 = _mm512_load_si512(f8_bytes.low), l1 = _mm512_load_si512(f8_bytes.low + 64);
  Bf16x64 operator()(__m512i codes) const {
    const __m512i low = _mm512_permutex2var_epi8(l0, codes, l1);
    // Bit 7, the sign, from the code; the other bits from the table.
    const __m512i high = _mm512_ternarylogic_epi64(_mm512_set1_epi8(char(0x80)), codes,
                                                   _mm512_permutex2var_epi8(h0, codes, h1), 0xCA);
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }
};

// A register of 32 bf16 is two of f32: the even ones shifted up, the odd ones with the rest masked away.
inline __m512 even(__m512i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(half, 16));
}
inline __m512 odd(__m512i half) {
  return _mm512_castsi512_ps(_mm512_and_si512(half, _mm512_set1_epi32(int(0xFFFF0000))));
}

template <class Vector, Elem type>
struct Reader : InOrder<Vector, type> {};

template <class Vector>
struct Reader<Vector, Elem::Bf16> {
  static constexpr int kStep = 32, kParts = 2;
  using Raw = __m512i;
  static Raw load(const char* p) { return _mm512_loadu_si512(p); }
  static Raw load_first(const char* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << n) - 1), p);
  }
  template <int part>
  static __m512 part_of(Raw raw) {
    return part == 0 ? even(raw) : odd(raw);
  }
  static void arrange(const float* from, float* to) {
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
    for (int i = 0; i < 64; i += 32) {
      const __m512 a = _mm512_loadu_ps(from + i), b = _mm512_loadu_ps(from + i + 16);
      _mm512_storeu_ps(to + i, _mm512_permutex2var_ps(a, evens, b));
      _mm512_storeu_ps(to + i + 16, _mm512_permutex2var_ps(a, odds, b));
    }
  }
};

template <class Vector>
struct Reader<Vector, Elem::F8> {
  static constexpr int kStep = 64, kParts = 4;
  using Raw = Bf16x64;
  static Raw load(const char* p) { return F8Table()(_mm512_loadu_si512(p)); }
  static Raw load_first(const char* p, int64_t n) {
    return F8Table()(_mm512_maskz_loadu_epi8((uint64_t(1) << n) - 1, p));
  }
  template <int part>
  static __m512 part_of(Raw raw) {
    const __m512i half = part < 2 ? raw.low : raw.high;
    return part % 2 == 0 ? even(half) : odd(half);
  }
  // Word 4 L + w of register 2 h + o meets code 16 L + 8 h + 2 w + o.
  static void arrange(const float* from, float* to) {
    const __m512 x0 = _mm512_loadu_ps(from), x1 = _mm512_loadu_ps(from + 16), x2 = _mm512_loadu_ps(from + 32),
                 x3 = _mm512_loadu_ps(from + 48);
    for (int part = 0; part < 4; ++part) {
      const __m512i first = _mm512_set1_epi32(part / 2 * 8 + part % 2);
      const __m512i at =
          _mm512_add_epi32(first, _mm512_setr_epi32(0, 2, 4, 6, 16, 18, 20, 22, 0, 2, 4, 6, 16, 18, 20, 22));
      const __m512 low = _mm512_permutex2var_ps(x0, at, x1), high = _mm512_permutex2var_ps(x2, at, x3);
      _mm512_storeu_ps(to + part * 16, _mm512_shuffle_f32x4(low, high, 0x44));
    }
  }
};

}  // namespace lite::cpu::LITE_CPU_PATH
