#include "convert/recode.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

namespace dsv3 {
namespace {

using lite::DType;
using lite::kScaleBlock;

// First of n numbers with all bits of `mask` set. Whole blocks are searched without a branch, so that the
// compiler can use vector instructions.
template <class Bits>
int64_t first_with(const std::byte* data, int64_t n, Bits mask) {
  constexpr int64_t kBlock = 4096;
  const Bits* p = reinterpret_cast<const Bits*>(data);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    bool found = end - begin < kBlock;  // the last, short block is searched one by one
    if (!found) {
      Bits any = 0;
      for (int64_t i = 0; i < kBlock; ++i) any |= Bits((p[begin + i] & mask) == mask);
      found = any != 0;
    }
    for (int64_t i = begin; found && i < end; ++i)
      if ((p[i] & mask) == mask) return i;
  }
  return -1;
}

// The nearest float, or, between two floats, the one whose last bit is set: rounding this once more to a type
// of fewer bits gives what rounding the double would have.
float round_to_odd(double value) {
  const float nearest = float(value);
  if (double(nearest) == value || std::isinf(nearest)) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (bits & 1) return nearest;
  const bool too_large = std::fabs(double(nearest)) > std::fabs(value);
  bits = too_large ? bits - 1 : bits + 1;  // the neighbour on the other side of the value
  return std::bit_cast<float>(bits);
}

// Up to 128 rows of FP8 in a type of the size of Bits; `scales` has one for each 128 columns. In a block only
// 256 values are possible: each is computed once. A product of code and scale is exact in double.
template <class Bits>
void recode_scaled(const uint8_t* codes, const float* scales, int64_t rows, int64_t cols, DType to,
                   std::byte* to_data) {
  Bits* out = reinterpret_cast<Bits*>(to_data);
  for (int64_t begin = 0; begin < cols; begin += kScaleBlock) {
    const int64_t end = std::min(cols, begin + kScaleBlock);
    float values[256];
    Bits table[256];
    for (int code = 0; code < 256; ++code) {
      const double value = double(lite::f32_from_f8(uint8_t(code))) * double(scales[begin / kScaleBlock]);
      values[code] = to == DType::F32 ? float(value) : round_to_odd(value);
    }
    lite::encode(to, values, table, 256);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = begin; j < end; ++j) out[i * cols + j] = table[codes[i * cols + j]];
  }
}

}  // namespace

int64_t first_non_finite(DType dtype, const std::byte* data, int64_t n) {
  switch (dtype) {
    case DType::F32: return first_with<uint32_t>(data, n, 0x7F800000);
    case DType::BF16: return first_with<uint16_t>(data, n, 0x7F80);
    case DType::F16: return first_with<uint16_t>(data, n, 0x7C00);
    case DType::F8_E4M3: return first_with<uint8_t>(data, n, 0x7F);
    case DType::I32:
    case DType::I64: break;  // every integer is finite
  }
  return -1;
}

void recode(const MatrixRows& from, DType to, std::byte* to_data, float* to_scales,
            std::vector<float>* scratch) {
  const int64_t blocks = lite::ceil_div(from.rows, kScaleBlock),
                block_cols = lite::ceil_div(from.cols, kScaleBlock);
  std::vector<float> scales(from.scales ? size_t(blocks * block_cols) : 0);
  if (from.scales) lite::decode(from.scale_dtype, from.scales, scales.data(), blocks * block_cols);
  if (!from.scales) scratch->resize(size_t(from.rows * from.cols));
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kScaleBlock * from.cols;  // element
    const int64_t rows = std::min(kScaleBlock, from.rows - block * kScaleBlock), n = rows * from.cols;
    const std::byte* data = from.data + first * lite::size_of(from.dtype);
    std::byte* out = to_data + first * lite::size_of(to);
    if (from.scales) {
      const uint8_t* codes = reinterpret_cast<const uint8_t*>(data);
      const float* row_scales = scales.data() + block * block_cols;
      if (to == DType::F32)
        recode_scaled<uint32_t>(codes, row_scales, rows, from.cols, to, out);
      else
        recode_scaled<uint16_t>(codes, row_scales, rows, from.cols, to, out);
      continue;
    }
    float* values = scratch->data() + first;
    lite::decode(from.dtype, data, values, n);
    if (to == DType::F8_E4M3)
      lite::quantize_f8(values, rows, from.cols, reinterpret_cast<uint8_t*>(out),
                        to_scales + block * block_cols);
    else
      lite::encode(to, values, out, n);
  }
}

}  // namespace dsv3
