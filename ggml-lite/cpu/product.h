// Products of activations with rows of a weight matrix, in the ways a step asks for.
//
// Block scales are moved to the activations: x is multiplied by the scales of one row of blocks, once for all weight rows
// that share it, and then meets the bare codes. Where f16 or the matrix unit multiply, activations are prepared once for
// all weight rows, and scales come to the sums of 128 columns instead. Values are the same in every split of the work.
#pragma once

#include "ggml-lite/cpu/kernels.h"
#include "ggml-lite/tensor.h"

namespace lite::cpu {

// How a backend computes.
struct Arithmetic {
  const Kernels* k;
  bool exact;  // f32 activations in every product
};

Elem elem_of(DType dtype);  // of a float type

// One thread's memory for the products of one op with matrices of up to `columns` columns. It keeps what it has prepared of
// activations: a row does not change while an op reads it.
class ProductScratch {
 public:
  static int64_t bytes(int64_t columns);
  ProductScratch(std::byte* memory, int64_t columns);

 private:
  friend void decode_product(const Arithmetic&, const Tensor&, int64_t, int64_t, const float* const*, int64_t,
                             float*, int64_t, ProductScratch&, bool);
  friend void prompt_product(const Arithmetic&, const Tensor&, int64_t, int64_t, const float* const*, int64_t,
                             float*, int64_t, ProductScratch&, bool);
  friend void tile_product(const Arithmetic&, const Tensor&, int64_t, int64_t, const uint16_t*, int64_t,
                           float*, int64_t, ProductScratch&);
  friend void f16_product(const Arithmetic&, const Tensor&, int64_t, int64_t, const float* const*, int64_t,
                          float*, int64_t, ProductScratch&);
  float *row, *prepared;     // decode: one scaled row; up to kGemvTokens of them as gemv reads them
  std::byte *panel, *block;  // prompt: weights and activations of one block
  // Decode in f16: rows as gemv_f16 reads them, which they are, the factors of their blocks, and these times the scales.
  uint16_t* halves;
  const float* held[kGemvTokens];
  int64_t n_held = 0, held_columns = 0;
  float *own_factor, *factor;
};

// y[t * y_stride + i] = w[first + i] . x[t] for i < n, t < tokens; x[t] has w.shape[1] values. Any number of tokens: in
// groups of kGemvTokens. f32 throughout, unless the path has f16 arithmetic and neither `exact` nor `f32` is asked for.
void decode_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const float* const* x,
                    int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch, bool f32 = false);

// The same for many rows: weights are decoded once a panel. With bf16 arithmetic (unless exact or `f32`) scaled
// activations are rounded to bf16 first; F8 and bf16 weights are exact in it, others are computed in f32.
void prompt_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const float* const* x,
                    int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch, bool f32 = false);

// The same on the matrix unit, which a step asks for where tiles_take() the matrix. x: the rows as pack_rows() made them, each
// once for all weights that it meets.
bool tiles_take(const Arithmetic& a, const Tensor& w, bool f32 = false);
void tile_product(const Arithmetic& a, const Tensor& w, int64_t first, int64_t n, const uint16_t* x,
                  int64_t tokens, float* y, int64_t y_stride, ProductScratch& scratch);
// Elements of `tokens` packed rows, and of one group of them: group i of 16 tokens begins at i times that.
int64_t packed_rows(int64_t tokens, int64_t columns);
int64_t packed_group(int64_t columns);
void pack_rows(const Arithmetic& a, const float* const* x, int64_t tokens, int64_t columns, uint16_t* to);

// Tiles in use by this thread while it lives; nothing where `tiles` is false.
class TileUse {
 public:
  TileUse(const Arithmetic& a, bool tiles) : tiles_(tiles ? &a.k->tiles : nullptr) {
    if (tiles_) tiles_->begin();
  }
  ~TileUse() {
    if (tiles_) tiles_->end();
  }
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;

 private:
  const Tiles* tiles_;
};

// Rows [first, first + n), columns [column, column + count) of w as f32, n rows of `count`.
void decode_panel(const Kernels& k, const Tensor& w, int64_t first, int64_t n, int64_t column, int64_t count,
                  float* to);

// Rows of a matrix, or of several side by side, that one task of a decode step takes: many, as each task prepares its
// activations, but enough tasks for every thread; of those that share their scales.
int64_t decode_rows(int64_t rows, int threads);

constexpr int64_t kPanelRows = 128;  // weight rows that a prompt product decodes at once
constexpr int64_t kTileRows = 64;    // and that one on the matrix unit does

}  // namespace lite::cpu
