// A tensor: a view that owns nothing. Whoever made it names the owner of the memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "ggml-lite/dtype.h"

namespace lite {

// Block scales of a weight matrix. Element (i, j) of the tensor has the scale
//   data[(row0 + i) / block_rows][(col0 + j) / block_cols]
// so that any slice of a blocked matrix is again a view: only row0 and col0 change.
struct Scale {
  const std::byte* data = nullptr;  // null: the matrix has no scales
  DType dtype = DType::F32;         // F32, BF16 or F16
  int64_t block_rows = 0, block_cols = 0;
  int64_t row_stride = 0;  // bytes between rows of the grid
  int64_t row0 = 0, col0 = 0;
};

struct Tensor {
  static constexpr int kMaxRank = 4;

  DType dtype = DType::F32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape = {};   // dimensions beyond rank are 1
  std::array<int64_t, kMaxRank> stride = {};  // bytes; the last dimension is always contiguous
  std::byte* data = nullptr;
  Scale scale;

  // Contiguous, without memory yet.
  static Tensor of(DType dtype, std::initializer_list<int64_t> dims);

  int64_t elements() const;
  int64_t row_bytes() const { return shape[rank - 1] * size_of(dtype); }
  bool contiguous() const;

  template <class T>
  T* row(int64_t i, int64_t j = 0, int64_t k = 0) const {
    return reinterpret_cast<T*>(data + i * stride[0] + j * stride[1] + k * stride[2]);
  }
};

// Rows [first, first + n) of a matrix, and columns [first, first + n) of the last dimension; views.
Tensor slice_rows(const Tensor& t, int64_t first, int64_t n);
Tensor slice_cols(const Tensor& t, int64_t first, int64_t n);

// Element i of a vector of any float type.
inline float element(const Tensor& vector, int64_t i) {
  float value;
  decode(vector.dtype, vector.data + i * vector.stride[0], &value, 1);
  return value;
}

// Row i of a weight matrix (any float type, scaled or not) as float[shape[1]]: exact codes times their scales.
void decode_row(const Tensor& matrix, int64_t i, float* out);

}  // namespace lite
