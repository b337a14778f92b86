// The inner loops of the fast CPU backend: one table of functions per instruction-set path.
//
// A path's file is compiled for its instruction set and includes nothing but this header and simd headers: no standard
// templates, whose instances a linker could choose for older machines too. Every sum has a fixed order that depends on
// its length alone, so a result's bits do not depend on how many rows are computed together.
#pragma once

#include <cstdint>

#include "ggml-lite/cpu/isa_id.h"

namespace lite::cpu {

// Element types a kernel reads. F8 is e4m3; its NaN codes read as 480.
enum class Elem : uint8_t { F32, Bf16, F16, F8 };

// The matrix unit: bf16 products of 16 rows by 16 columns by 32 terms, sums in f32. All null where a path has none.
//
// `packed` activations are tiles of 16 tokens by 32 columns, pairs of columns side by side: [ceil(tokens / 16)][ceil(k / 32)]
// [16 pairs][16 tokens][2], zeros where there is no token or column.
struct Tiles {
  // Between these, in one thread, the others may be called.
  void (*begin)();
  void (*end)();
  // Up to 16 rows of k values become one group of tokens of `packed`.
  void (*pack)(const float* const* x, int64_t tokens, int64_t k, uint16_t* to);
  // sum[i * 16 * groups + t] (+)= sum over blocks b of 128 columns of scale[b] * sum_p w[i][p] * x[t][p], for i < rows, t < 16 *
  // groups; a null scale is 1. w: bf16 rows w_stride bytes apart, both rows (to a multiple of 16) and columns (to one of 32) can be read, and
  // columns beyond k are zero. x: packed groups x_stride elements apart. add: to what is in sum.
  void (*product)(const uint16_t* w, int64_t w_stride, int64_t rows, const uint16_t* x, int64_t x_stride,
                  int64_t groups, int64_t k, const float* scale, float* sum, bool add);
  // to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns; whole pieces of 16 x 16 of `from` can be read.
  void (*transpose)(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                    int64_t to_stride);
  // One step of the online softmax for `groups` times 16 queries and n positions, scores [n][16 * groups]. Query i sees
  // positions [begin[i], end[i]): p[i * kTileSpan + position] = exp(scale * score - top[i]) in bf16 with top[i] raised to the largest, 0 where
  // it sees none and to a multiple of 32 positions; total[i] = total[i] * keep[i] + their sum, and keep[i] is what earlier sums shrink by.
  void (*softmax)(const float* score, int64_t n, int64_t groups, const int32_t* begin, const int32_t* end,
                  float scale, float* top, float* total, float* keep, uint16_t* p);
  // Rows [first, first + n) of `all`, first being even, of `columns` (a multiple of 32) bf16 values, v_stride bytes apart, to tiles of
  // [columns / 32][all / 32 rounded up][2][16 pairs of rows][16][2]; with the last row come the zeros behind it.
  void (*pack_values)(const void* v, int64_t v_stride, int64_t n, int64_t columns, int64_t first, int64_t all,
                      uint16_t* to);
  // y[i * y_stride + c] = y[i * y_stride + c] * keep[i] + sum over positions < n of p[i * kTileSpan + position] * v[position][c], for i < rows.
  void (*mix)(const uint16_t* p, int64_t rows, int64_t n, const uint16_t* v, int64_t columns,
              const float* keep, float* y, int64_t y_stride);
};
constexpr int64_t kTile = 16, kTileColumns = 32;
constexpr int64_t kTileSpan = 256;  // positions of a row of exponentials

struct Kernels {
  // y[t * y_stride + o] (+)= sum_k w[o][k] * x[t][k] for o < n, t < tokens <= kGemvTokens. Decode: every weight is read
  // once, several rows at a time. w_stride in bytes, y_stride in elements; x as gemv_prepare left it. add: to what is in y.
  void (*gemv)(Elem type, const void* w, int64_t w_stride, int64_t n, int64_t k, const float* x,
               int64_t tokens, float* y, int64_t y_stride, bool add);
  // Token t's row of k values to where gemv reads them: x has tokens * round_up(k, 64) places, 64 of one token after 64
  // of the next, so that no two tokens compete for a line of the cache; zeros behind the row's end.
  void (*gemv_prepare)(Elem type, const float* from, int64_t k, int64_t t, int64_t tokens, float* x);

  // c[i * c_stride + j] (+)= sum_k a[i][k] * b[j][k] for i < m, j < n; a[i] and b[j] are pointers to k values in a row,
  // f32 or bf16 (gemm_bf16 is null where a path has no such arithmetic). add: to what is in c.
  void (*gemm_f32)(const float* const* a, int64_t m, const float* const* b, int64_t n, int64_t k, float* c,
                   int64_t c_stride, bool add);
  void (*gemm_bf16)(const uint16_t* const* a, int64_t m, const uint16_t* const* b, int64_t n, int64_t k,
                    float* c, int64_t c_stride, bool add);

  // y[i][j] += sum over p < k, in order, of a[i * a_stride + p] * b_p[j] for i < m, j < n; b_p = b + p * b_stride
  // (bytes), F32 or Bf16.
  void (*accumulate)(Elem type, const float* a, int64_t a_stride, int64_t m, const void* b, int64_t b_stride,
                     int64_t k, float* y, int64_t y_stride, int64_t n);

  // to[i] = from[i] * factor.
  void (*to_f32)(Elem type, const void* from, float factor, float* to, int64_t n);
  // To bf16: from[i] * factor, rounded to nearest even; F8 codes exactly. Null if gemm_bf16 is.
  void (*to_bf16)(const float* from, float factor, uint16_t* to, int64_t n);
  void (*f8_to_bf16)(const uint8_t* from, uint16_t* to, int64_t n);

  // x[i] = exp(x[i] - top) for i < n; returns their sum. Relative error below 2e-7.
  float (*exp_sum)(float* x, float top, int64_t n);
  float (*max)(const float* x, int64_t n);  // -infinity for n = 0
  // x[i] *= factor.
  void (*scale)(float* x, float factor, int64_t n);
  // y[i] = silu(gate[i]) * up[i].
  void (*silu_mul)(const float* gate, const float* up, float* y, int64_t n);

  // FP8 weights that meet activations in f16; null where a path has no f16 arithmetic. x has blocks of 128 columns,
  // [ceil(k / 128)][tokens][128], each brought into f16's range by a power of two; a lane adds four products in f16, then
  // y[t * y_stride + o] = sum over blocks b, in order, of factor[b * tokens + t] * (that block's sum of w / 256 * x).
  void (*gemv_f16)(const uint8_t* w, int64_t w_stride, int64_t n, int64_t k, const uint16_t* x,
                   const float* factor, int64_t tokens, float* y, int64_t y_stride);
  // Token t's row of k values to where gemv_f16 reads them, zeros behind the row's end; and the factor of each block that
  // takes its power of two, and the 256, back.
  void (*gemv_f16_prepare)(const float* from, int64_t k, int64_t t, int64_t tokens, uint16_t* x,
                           float* factor);

  Tiles tiles;

  // What the path can do at most (ceilings.h): `n` rounds of independent products in registers, f32 and bf16 (null without
  // such arithmetic), the multiply-adds they were; and eight rows of `row` bytes (whole vectors) read side by side.
  int64_t (*f32_rounds)(int64_t n);
  int64_t (*bf16_rounds)(int64_t n);
  uint32_t (*read_rows)(const void* p, int64_t row);
};

constexpr int64_t kGemvTokens = 8;
constexpr int64_t kScaleColumns = 128;  // columns that gemv_f16 and Tiles::product add up before a scale

// Null where the build has no such path: all but the portable one are x86-64's. Only to be called where the machine has it
// (isa_usable()): even making the table may take its instructions.
const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512bf16();
const Kernels* kernels_avx512fp16();
const Kernels* kernels_amx();
const Kernels* kernels_of(Isa isa);

}  // namespace lite::cpu
