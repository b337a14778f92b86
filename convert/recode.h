// Elements of a weight matrix in another type, and the search for values no weight may have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ggml-lite/dtype.h"

namespace dsv3 {

// Index of the first NaN or infinity among n elements of a float type; -1 when there is none.
int64_t first_non_finite(lite::DType dtype, const std::byte* data, int64_t n);

// Consecutive rows of a matrix, the first at a multiple of 128.
struct MatrixRows {
  lite::DType dtype;
  int64_t rows, cols;
  const std::byte* data;    // [rows, cols]
  const std::byte* scales;  // of F8_E4M3: [ceil(rows / 128), ceil(cols / 128)]; else null
  lite::DType scale_dtype;
};

// The same values, code times scale, as `to`, which is another type than from.dtype: each rounded once, to
// nearest even; what is too large becomes infinite. F8_E4M3 takes new scales, one for each 128x128 block, in
// `to_scales`. `scratch` is grown as needed and holds nothing between calls.
void recode(const MatrixRows& from, lite::DType to, std::byte* to_data, float* to_scales,
            std::vector<float>* scratch);

}  // namespace dsv3
