// Products of activations with rows of a weight matrix, in the two ways a step asks for.
//
// Block scales are moved to the activations: x is multiplied by the scales of one row of blocks, once for all weight rows
// that share it, and then meets the bare codes. Values are the same in every split of the work.
#pragma once

#include "ggml-lite/cpu/kernels.h"
#include "ggml-lite/tensor.h"

namespace lite::cpu {

// How a backend computes.
struct Arithmetic {
  const Kernels* k;
  bool exact;  // f32 activations in prompts too
};

Elem elem_of(DType dtype);  // of a float type

// One thread's memory for products with matrices of up to `columns` columns.
class ProductScratch {
 public:
  static int64_t bytes(int64_t columns);
  ProductScratch(std::byte* memory, int64_t columns);

 private:
  friend void decode_product(const Arithmetic&, const Tensor&, int64_t, int64_t, const float* const*, int64_t,
                             float*, int64_t, ProductScratch&);
  friend void prompt_product(const Arithmetic&, const Tensor&, int64_t, int64_t, const float* const*, int64_t,
                             float*, int64_t, ProductScratch&, bool);
  float *row, *prepared;     // decode: one scaled row; up to kGemvTokens of them as gemv reads them
  std::byte *panel, *block;  // prompt: weights and activations of one block
};

// y[t * y_stride + i] = w[first + i] . x[t] for i < n, t < tokens; x[t] has w.shape[1] values. Any number of tokens: in
// groups of kGemvTokens. f32 throughout.
void decode_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const float* const* x,
                    int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch);

// The same for many rows: weights are decoded once a panel. With bf16 arithmetic (unless exact or `f32`) scaled
// activations are rounded to bf16 first; F8 and bf16 weights are exact in it, others are computed in f32.
void prompt_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const float* const* x,
                    int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch, bool f32 = false);

// Rows [first, first + n), columns [column, column + count) of w as f32, n rows of `count`.
void decode_panel(const Kernels& k, const Tensor& w, int64_t first, int64_t n, int64_t column, int64_t count,
                  float* to);

constexpr int64_t kPanelRows = 128;  // weight rows that a prompt product decodes at once

}  // namespace lite::cpu
