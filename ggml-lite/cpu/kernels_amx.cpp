// AMX with BF16 (Sapphire Rapids and later): prompts on the matrix unit.
//
// Weights are the first operand, 16 rows of 32 columns as they lie in memory; activations, packed once, are the second. So
// products come out transposed, [weight row][token], and so do scores, [position][query]: the softmax runs down the columns
// of sixteen queries side by side. Tiles 0 to 3 have sums, 4 and 5 the first operand, 6 and 7 the second.
#if defined(__x86_64__)
#define LITE_CPU_PATH amx
#include "ggml-lite/cpu/simd_avx512.h"

namespace lite::cpu {
namespace amx {

constexpr int64_t kTileElements = 16 * 32;  // of bf16

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig tile_config;

void begin() {
  _tile_loadconfig(&tile_config);
}
void end() {
  _tile_release();
}

// Tiles 0..3 to four pieces of 16 x 16 sums, in the order (row tile, column tile).
struct Sums {
  alignas(64) float of[4][16][16];
};

// The sums of `steps` products of up to two tiles of rows with up to two of columns: a + step * 32 columns, its rows a_stride
// bytes apart; b + step * b_step tiles, the second of each b_next elements behind the first.
template <int kRows, int kColumns>
void multiply(const uint16_t* a, int64_t a_stride, const uint16_t* b, int64_t b_step, int64_t b_next,
              int64_t steps, Sums* sums) {
  const char* const a1 = reinterpret_cast<const char*>(a) + 16 * a_stride;
  _tile_zero(0);
  if constexpr (kColumns > 1) _tile_zero(1);
  if constexpr (kRows > 1) _tile_zero(2);
  if constexpr (kRows > 1 && kColumns > 1) _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(4, a + s * kTileColumns, a_stride);
    if constexpr (kRows > 1) _tile_loadd(5, a1 + s * kTileColumns * 2, a_stride);
    _tile_loadd(6, b + s * b_step, 64);
    if constexpr (kColumns > 1) _tile_loadd(7, b + s * b_step + b_next, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRows > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kRows > 1 && kColumns > 1) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums->of[0], 64);
  if constexpr (kColumns > 1) _tile_stored(1, sums->of[1], 64);
  if constexpr (kRows > 1) _tile_stored(2, sums->of[2], 64);
  if constexpr (kRows > 1 && kColumns > 1) _tile_stored(3, sums->of[3], 64);
}

// Up to 32 rows and 32 tokens, all columns.
template <int kRows, int kColumns>
void product_block(const uint16_t* w, int64_t w_stride, const uint16_t* x, int64_t x_stride, int64_t k,
                   const float* scale, float* sum, int64_t sum_stride, bool add) {
  for (; k > 0; k -= kScaleColumns, w += kScaleColumns, x += kScaleColumns / kTileColumns * kTileElements,
                add = true) {
    Sums sums;
    const int64_t steps =
        k >= kScaleColumns ? kScaleColumns / kTileColumns : (k + kTileColumns - 1) / kTileColumns;
    multiply<kRows, kColumns>(w, w_stride, x, kTileElements, x_stride, steps, &sums);
    const __m512 s = _mm512_set1_ps(scale ? *scale++ : 1);
    for (int i = 0; i < kRows; ++i)
      for (int r = 0; r < 16; ++r)
        for (int j = 0; j < kColumns; ++j) {
          float* const to = sum + (i * 16 + r) * sum_stride + j * 16;
          const __m512 part = _mm512_load_ps(sums.of[i * 2 + j][r]);
          _mm512_storeu_ps(to, add ? _mm512_fmadd_ps(part, s, _mm512_loadu_ps(to)) : _mm512_mul_ps(part, s));
        }
  }
}

// Rows in the first cache while groups of tokens pass by.
void product(const uint16_t* w, int64_t w_stride, int64_t rows, const uint16_t* x, int64_t x_stride,
             int64_t groups, int64_t k, const float* scale, float* sum, bool add) {
  const int64_t sum_stride = groups * kTile;
  for (int64_t g = 0; g < groups; g += 2)
    for (int64_t i = 0; i < rows; i += 32) {
      const uint16_t* const a = w + i * w_stride / 2;
      const uint16_t* const b = x + g * x_stride;
      float* const to = sum + i * sum_stride + g * kTile;
      if (rows - i > 16 && groups - g > 1)
        product_block<2, 2>(a, w_stride, b, x_stride, k, scale, to, sum_stride, add);
      else if (rows - i > 16)
        product_block<2, 1>(a, w_stride, b, x_stride, k, scale, to, sum_stride, add);
      else if (groups - g > 1)
        product_block<1, 2>(a, w_stride, b, x_stride, k, scale, to, sum_stride, add);
      else
        product_block<1, 1>(a, w_stride, b, x_stride, k, scale, to, sum_stride, add);
    }
}

// Transposes 16 x 16 words.
void transpose_words(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  // r[4 q + c] has, in lane L, column 4 L + c of rows 4 q to 4 q + 3: gather the lanes.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88),
                  high01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xDD);
    const __m512i low23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88),
                  high23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xDD);
    t[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(low01, low23, 0xDD);
    t[4 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xDD);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

void pack(const float* const* x, int64_t tokens, int64_t k, uint16_t* to) {
  for (int64_t c = 0; c < k; c += kTileColumns, to += kTileElements) {
    const int64_t n = k - c;
    __m512i pairs[16];
    for (int t = 0; t < 16; ++t) {
      pairs[t] = _mm512_setzero_si512();
      if (t >= tokens) continue;
      const __m512 low = n >= 16 ? V::load(x[t] + c) : V::load_first(x[t] + c, n);
      const __m512 high = n >= 32  ? V::load(x[t] + c + 16)
                          : n > 16 ? V::load_first(x[t] + c + 16, n - 16)
                                   : V::zero();
      pairs[t] = __m512i(_mm512_cvtne2ps_pbh(high, low));
    }
    transpose_words(pairs);
    for (int p = 0; p < 16; ++p) _mm512_storeu_si512(to + p * 32, pairs[p]);
  }
}

void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
               int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t j = 0; j < columns; j += 16) {
      __m512i piece[16];
      for (int r = 0; r < 16; ++r) piece[r] = _mm512_loadu_si512(from + (i + r) * from_stride + j);
      transpose_words(piece);
      const __mmask16 live = rows - i >= 16 ? __mmask16(0xFFFF) : V::mask(rows - i);
      for (int c = 0; c < 16 && j + c < columns; ++c)
        _mm512_mask_storeu_epi32(to + (j + c) * to_stride + i, live, piece[c]);
    }
}

void softmax(const float* score, int64_t n, int64_t groups, const int32_t* begin, const int32_t* end,
             float scale, float* top, float* total, float* keep, uint16_t* p) {
  const int64_t stride = groups * kTile, padded = (n + kTileColumns - 1) / kTileColumns * kTileColumns;
  const __m512 s = V::set1(scale), never = V::set1(-__builtin_inff());
  for (int64_t g = 0; g < groups; ++g, begin += kTile, end += kTile, p += kTile * kTileSpan) {
    const __m512i first = _mm512_loadu_si512(begin), last = _mm512_loadu_si512(end);
    const float* const column = score + g * kTile;
    const auto seen = [&](int64_t i) {
      const __m512i position = _mm512_set1_epi32(int(i));
      return _mm512_mask_cmplt_epi32_mask(_mm512_cmple_epi32_mask(first, position), position, last);
    };
    const __m512 before = V::load(top + g * kTile);
    __m512 largest = before;
    for (int64_t i = 0; i < n; ++i)
      largest = _mm512_mask_max_ps(largest, seen(i), largest, V::mul(V::load(column + i * stride), s));
    // Where nothing has been seen yet, the largest is no number to subtract.
    const __mmask16 some = _mm512_cmp_ps_mask(largest, never, _CMP_NEQ_UQ);
    const __m512 minus_top = _mm512_maskz_sub_ps(some, V::zero(), largest);
    const __m512 shrink = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(before, largest, _CMP_EQ_OQ),
                                               exp_negative<V>(V::add(before, minus_top)), V::set1(1));
    __m512 sum = V::zero();
    for (int64_t i0 = 0; i0 < padded; i0 += 16) {
      __m512i piece[16];
      for (int r = 0; r < 16; ++r) {
        const __mmask16 live = i0 + r < n ? seen(i0 + r) : __mmask16(0);
        piece[r] = _mm512_setzero_si512();
        if (!live) continue;
        const __m512 e = _mm512_maskz_mov_ps(
            live, exp_negative<V>(V::fma(V::load(column + (i0 + r) * stride), s, minus_top)));
        sum = V::add(sum, e);
        piece[r] = _mm512_castps_si512(e);
      }
      transpose_words(piece);
      for (int q = 0; q < 16; ++q)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + q * kTileSpan + i0),
                            __m256i(_mm512_cvtneps_pbh(_mm512_castsi512_ps(piece[q]))));
    }
    V::store(top + g * kTile, largest);
    V::store(keep + g * kTile, shrink);
    V::store(total + g * kTile, V::fma(V::load(total + g * kTile), shrink, sum));
  }
}

// Two rows word by word, in the lanes' own order: columns 8 L to 8 L + 3 of 32 in the first tile, 8 L + 4 to 8 L + 7 in the
// second, L = 0..3; mix() puts that right.
void pack_values(const void* v, int64_t v_stride, int64_t n, int64_t columns, int64_t first, int64_t all,
                 uint16_t* to) {
  const char* const from = static_cast<const char*>(v);
  const int64_t steps = (all + kTileColumns - 1) / kTileColumns;
  for (int64_t i = 0; i < n; i += 2) {
    const int64_t pair = (first + i) / 2, at = pair / 16 * 2 * kTileElements + pair % 16 * 32;
    for (int64_t c = 0; c < columns; c += 32) {
      const __m512i a = _mm512_loadu_si512(from + i * v_stride + c * 2);
      const __m512i b =
          i + 1 < n ? _mm512_loadu_si512(from + (i + 1) * v_stride + c * 2) : _mm512_setzero_si512();
      uint16_t* const tile = to + c / 32 * steps * 2 * kTileElements + at;
      _mm512_storeu_si512(tile, _mm512_unpacklo_epi16(a, b));
      _mm512_storeu_si512(tile + kTileElements, _mm512_unpackhi_epi16(a, b));
    }
  }
  if (first + n < all) return;
  for (int64_t pair = (all + 1) / 2; pair < steps * 16; ++pair)
    for (int64_t c = 0; c < columns; c += 32) {
      uint16_t* const tile =
          to + c / 32 * steps * 2 * kTileElements + pair / 16 * 2 * kTileElements + pair % 16 * 32;
      _mm512_storeu_si512(tile, _mm512_setzero_si512());
      _mm512_storeu_si512(tile + kTileElements, _mm512_setzero_si512());
    }
}

template <int kRows>
void mix_block(const uint16_t* p, int64_t steps, const uint16_t* v, int64_t live, const float* keep, float* y,
               int64_t y_stride) {
  Sums sums;
  multiply<kRows, 2>(p, kTileSpan * 2, v, 2 * kTileElements, kTileElements, steps, &sums);
  const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i back = _mm512_add_epi32(front, _mm512_set1_epi32(8));
  for (int64_t r = 0; r < live; ++r) {
    const __m512 a = _mm512_load_ps(sums.of[r / 16 * 2][r % 16]),
                 b = _mm512_load_ps(sums.of[r / 16 * 2 + 1][r % 16]);
    const __m512 k = _mm512_set1_ps(keep[r]);
    float* const to = y + r * y_stride;
    V::store(to, V::fma(V::load(to), k, _mm512_permutex2var_ps(a, front, b)));
    V::store(to + 16, V::fma(V::load(to + 16), k, _mm512_permutex2var_ps(a, back, b)));
  }
}

void mix(const uint16_t* p, int64_t rows, int64_t n, const uint16_t* v, int64_t columns, const float* keep,
         float* y, int64_t y_stride) {
  const int64_t steps = (n + kTileColumns - 1) / kTileColumns;
  for (int64_t i = 0; i < rows; i += 32)
    for (int64_t c = 0; c < columns; c += 32) {
      const uint16_t* const tiles = v + c / 32 * steps * 2 * kTileElements;
      if (rows - i > 16)
        mix_block<2>(p + i * kTileSpan, steps, tiles, rows - i < 32 ? rows - i : 32, keep + i,
                     y + i * y_stride + c, y_stride);
      else
        mix_block<1>(p + i * kTileSpan, steps, tiles, rows - i, keep + i, y + i * y_stride + c, y_stride);
    }
}

int64_t bf16_rounds(int64_t n) {
  begin();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < n; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  end();
  return n * 4 * 16 * 16 * 32;
}

}  // namespace amx

const Kernels* kernels_amx() {
  static const Kernels table = [] {
    Kernels k = *kernels_avx512fp16();
    k.tiles = {amx::begin,     amx::end,     amx::pack,        amx::product,
               amx::transpose, amx::softmax, amx::pack_values, amx::mix};
    k.bf16_rounds = amx::bf16_rounds;
    return k;
  }();
  return &table;
}

}  // namespace lite::cpu
#endif
