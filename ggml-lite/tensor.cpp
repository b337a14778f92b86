#include "ggml-lite/tensor.h"

#include <algorithm>

namespace lite {

Tensor Tensor::of(DType dtype, std::initializer_list<int64_t> dims) {
  Tensor t;
  t.dtype = dtype;
  t.rank = int(dims.size());
  t.shape.fill(1);
  std::copy(dims.begin(), dims.end(), t.shape.begin());
  int64_t bytes = size_of(dtype);
  for (int i = kMaxRank - 1; i >= 0; --i) {
    t.stride[i] = bytes;
    bytes *= t.shape[i];
  }
  return t;
}

int64_t Tensor::elements() const {
  return shape[0] * shape[1] * shape[2] * shape[3];
}

bool Tensor::contiguous() const {
  int64_t bytes = size_of(dtype);
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != bytes) return false;
    bytes *= shape[i];
  }
  return true;
}

Tensor slice_rows(const Tensor& t, int64_t first, int64_t n) {
  Tensor s = t;
  s.shape[0] = n;
  if (s.data) s.data += first * t.stride[0];
  s.scale.row0 += first;
  return s;
}

Tensor slice_cols(const Tensor& t, int64_t first, int64_t n) {
  Tensor s = t;
  s.shape[t.rank - 1] = n;
  if (s.data) s.data += first * size_of(t.dtype);
  s.scale.col0 += first;
  return s;
}

void decode_row(const Tensor& matrix, int64_t i, float* out) {
  const int64_t cols = matrix.shape[1];
  decode(matrix.dtype, matrix.data + i * matrix.stride[0], out, cols);
  const Scale& s = matrix.scale;
  if (!s.data) return;
  const std::byte* grid_row = s.data + (s.row0 + i) / s.block_rows * s.row_stride;
  for (int64_t j = 0; j < cols;) {
    const int64_t block = (s.col0 + j) / s.block_cols;
    const int64_t end = std::min(cols, (block + 1) * s.block_cols - s.col0);
    float scale;
    decode(s.dtype, grid_row + block * size_of(s.dtype), &scale, 1);
    for (; j < end; ++j) out[j] *= scale;
  }
}

}  // namespace lite
