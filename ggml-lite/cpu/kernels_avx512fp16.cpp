// AVX-512 with FP16 (Sapphire Rapids and later): FP8 weights meet activations in f16, 32 products an instruction.
//
// e4m3 in the bits of an f16 is value / 256, subnormals included, so a code costs two or three instructions for 32 of them
// and no table.
#if defined(__x86_64__)
#define LITE_CPU_PATH avx512fp16
#include "ggml-lite/cpu/simd_avx512.h"

namespace lite::cpu {
namespace avx512fp16 {

// Codes 0, 2, 4, ... of 64, then codes 1, 3, 5, ...
template <int part>
__m512h half_of(__m512i codes) {
  const __m512i at_top = part == 0 ? _mm512_slli_epi16(codes, 8) : codes;
  return _mm512_castsi512_ph(
      _mm512_and_si512(_mm512_srai_epi16(at_top, 1), _mm512_set1_epi16(short(0xBF80))));
}

// One part of 64 codes of R rows with T tokens; the first products of a block begin its sums.
template <int R, int T, int part>
[[gnu::always_inline]] inline void part_of_block(const __m512i (&codes)[R], const char* x, bool first,
                                                 __m512h (&sum)[R][T]) {
  __m512h weight[R];
  for (int r = 0; r < R; ++r) weight[r] = half_of<part>(codes[r]);
  for (int t = 0; t < T; ++t) {
    const __m512h xt = in_register(_mm512_loadu_ph(x + t * kScaleColumns * 2), R);
    for (int r = 0; r < R; ++r)
      sum[r][t] = first ? _mm512_mul_ph(weight[r], xt) : _mm512_fmadd_ph(weight[r], xt, sum[r][t]);
  }
}

// A block of 128 columns: its sums in f16 by lanes, times the factor, to those in f32. load(row, half) gives 64 codes.
template <int R, int T, class Load>
[[gnu::always_inline]] inline void block(Load&& load, const char* x, const float* factor,
                                         __m512 (&sum)[R][T]) {
  __m512h in_f16[R][T];
  for (int half = 0; half < 2; ++half) {
    __m512i codes[R];
    for (int r = 0; r < R; ++r) codes[r] = load(r, half);
    part_of_block<R, T, 0>(codes, x + half * 128, half == 0, in_f16);
    part_of_block<R, T, 1>(codes, x + half * 128 + 64, false, in_f16);
  }
  for (int t = 0; t < T; ++t) {
    const __m512 f = _mm512_set1_ps(factor[t]);
    for (int r = 0; r < R; ++r) {
      const __m512i bits = _mm512_castph_si512(in_f16[r][t]);
      sum[r][t] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(bits)), f, sum[r][t]);
      sum[r][t] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1)), f, sum[r][t]);
    }
  }
}

template <int R, int T>
void rows(const uint8_t* w, int64_t w_stride, int64_t k, const uint16_t* from, const float* factor, float* y,
          int64_t y_stride) {
  __m512 sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::zero();
  const char* x = reinterpret_cast<const char*>(from);
  for (; k >= kScaleColumns;
       k -= kScaleColumns, w += kScaleColumns, x += T * kScaleColumns * 2, factor += T) {
    // The rows after these: short rows end before the machine has seen where they lead.
    for (int r = 0; r < R; ++r)
      for (int half = 0; half < 2; ++half) __builtin_prefetch(w + (R + r) * w_stride + half * 64);
    block<R, T>([&](int r, int half) { return _mm512_loadu_si512(w + r * w_stride + half * 64); }, x, factor,
                sum);
  }
  if (k > 0) {
    const uint64_t live[2] = {k >= 64 ? ~uint64_t(0) : (uint64_t(1) << k) - 1,
                              k > 64 ? (uint64_t(1) << (k - 64)) - 1 : 0};
    block<R, T>(
        [&](int r, int half) { return _mm512_maskz_loadu_epi8(live[half], w + r * w_stride + half * 64); }, x,
        factor, sum);
  }
  float sums[R * T];
  sums_of<V, R * T>(&sum[0][0], sums);
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) y[t * y_stride + r] = sums[r * T + t];
}

template <int T = 1>
void tokens_of(const uint8_t* w, int64_t w_stride, int64_t n, int64_t k, const uint16_t* x,
               const float* factor, int64_t tokens, float* y, int64_t y_stride) {
  if constexpr (T < kGemvTokens)
    if (tokens > T) return tokens_of<T + 1>(w, w_stride, n, k, x, factor, tokens, y, y_stride);
  // As many rows as registers allow, two for each token and row: each row is a stream of memory.
  constexpr int R = T == 1 ? 8 : T == 2 ? 5 : T == 3 ? 4 : T == 4 ? 3 : T <= 6 ? 2 : 1;
  int64_t o = 0;
  for (; o + R <= n; o += R) rows<R, T>(w + o * w_stride, w_stride, k, x, factor, y + o, y_stride);
  for (; o < n; ++o) rows<1, T>(w + o * w_stride, w_stride, k, x, factor, y + o, y_stride);
}

void gemv_f16(const uint8_t* w, int64_t w_stride, int64_t n, int64_t k, const uint16_t* x,
              const float* factor, int64_t tokens, float* y, int64_t y_stride) {
  tokens_of(w, w_stride, n, k, x, factor, tokens, y, y_stride);
}

// 2^e.
float power_of_two(int e) {
  const uint32_t bits = uint32_t(e + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return power;
}

void gemv_f16_prepare(const float* from, int64_t k, int64_t t, int64_t tokens, uint16_t* x, float* factor) {
  // The order of half_of, in two registers of 16.
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
  const __m512 magnitude = _mm512_castsi512_ps(_mm512_set1_epi32(0x7FFFFFFF));
  for (int64_t b = 0; b * kScaleColumns < k; ++b) {
    const int64_t left = k - b * kScaleColumns;
    __m512 value[8], largest = V::zero();
    for (int i = 0; i < 8; ++i) {
      const int64_t n = left - i * 16;
      value[i] = n >= 16 ? V::load(from + b * kScaleColumns + i * 16)
                 : n > 0 ? V::load_first(from + b * kScaleColumns + i * 16, n)
                         : V::zero();
      largest = V::max(_mm512_and_ps(value[i], magnitude), largest);
    }
    // The largest to [2^11, 2^12): four products with codes of at most 480 / 256 stay below f16's end. 2^127 is the largest
    // power there is, and brings subnormal values into f16's range, too.
    const float top = _mm512_reduce_max_ps(largest);
    uint32_t bits;
    __builtin_memcpy(&bits, &top, sizeof bits);
    int e = int(bits >> 23) - 127;
    e = e < -116 ? -116 : e;
    const __m512 power = V::set1(power_of_two(11 - e));
    factor[b * tokens + t] = power_of_two(e - 11 + 8);
    uint16_t* const to = x + (b * tokens + t) * kScaleColumns;
    for (int i = 0; i < 8; i += 2) {
      const __m512 a = V::mul(value[i], power), c = V::mul(value[i + 1], power);
      // Pair i / 2 has 32 columns; of 64 come the 32 even ones, then the odd ones.
      uint16_t* const at = to + i / 4 * 64 + i / 2 % 2 * 16;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at),
                          _mm512_cvtps_ph(_mm512_permutex2var_ps(a, evens, c), _MM_FROUND_TO_NEAREST_INT));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + 32),
                          _mm512_cvtps_ph(_mm512_permutex2var_ps(a, odds, c), _MM_FROUND_TO_NEAREST_INT));
    }
  }
}

}  // namespace avx512fp16

const Kernels* kernels_avx512fp16() {
  static const Kernels table = [] {
    Kernels k = *kernels_avx512bf16();
    k.gemv_f16 = avx512fp16::gemv_f16;
    k.gemv_f16_prepare = avx512fp16::gemv_f16_prepare;
    return k;
  }();
  return &table;
}

}  // namespace lite::cpu
#endif
