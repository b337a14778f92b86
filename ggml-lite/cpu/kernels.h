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

struct Kernels {
  // y[t * y_stride + o] = sum_k w[o][k] * x[t][k] for o < n, t < tokens <= kGemvTokens. Decode: every weight is read
  // once, several rows at a time. w_stride in bytes, y_stride in elements; x as gemv_prepare left it.
  void (*gemv)(Elem type, const void* w, int64_t w_stride, int64_t n, int64_t k, const float* x,
               int64_t tokens, float* y, int64_t y_stride);
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

  // What the path can do at most (ceilings.h): `n` rounds of independent products in registers, f32 and bf16 (null without
  // such arithmetic), the multiply-adds they were; and eight rows of `row` bytes (whole vectors) read side by side.
  int64_t (*f32_rounds)(int64_t n);
  int64_t (*bf16_rounds)(int64_t n);
  uint32_t (*read_rows)(const void* p, int64_t row);
};

constexpr int64_t kGemvTokens = 8;

// Null where the build has no such path; never checks the machine.
const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512bf16();
const Kernels* kernels_of(Isa isa);

}  // namespace lite::cpu
