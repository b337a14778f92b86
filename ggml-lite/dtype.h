// The one table of element types, and their conversion to and from float.
//
// F8_E4M3 is OCP e4m3fn: no infinities, NaN only 0x7F and 0xFF, largest value 448. Names are those of safetensors.
#pragma once

#include <cstdint>
#include <string_view>

#include "ggml-lite/status.h"

namespace lite {

enum class DType : uint8_t {
  F32 = 0,
  BF16 = 1,
  F16 = 2,
  F8_E4M3 = 3,
  I32 = 4,
  I64 = 5
};  // numbers are stored in files
constexpr int kDTypes = 6;

struct DTypeInfo {
  const char* name;  // as in safetensors: "F32", "BF16", ...
  int64_t bytes;     // of one element
  bool is_float;     // decode() and encode() take it
};

const DTypeInfo& info(DType dtype);
inline int64_t size_of(DType dtype) {
  return info(dtype).bytes;
}
Result<DType> dtype_from_name(std::string_view name);  // "F32"; Unsupported for anything else
Result<DType> dtype_from_code(uint8_t code);           // the number in a file

float f32_from_bf16(uint16_t bits);
float f32_from_f16(uint16_t bits);
float f32_from_f8(uint8_t code);      // both NaN codes give NaN
uint16_t bf16_from_f32(float value);  // round to nearest even; NaN stays NaN
uint16_t f16_from_f32(float value);   // round to nearest even; too large becomes infinite
uint8_t f8_from_f32(float value);     // round to nearest even, saturating at +-448; NaN gives 0x7F

// n elements of a float type, exactly, to float; and back, each rounded to nearest even.
void decode(DType dtype, const void* from, float* to, int64_t n);
void encode(DType dtype, const float* from, void* to, int64_t n);

// A matrix [rows, cols] as e4m3 codes and one f32 scale per 128x128 block (the last of a row or column may be
// smaller): scale = largest magnitude / 448, or 1 for a block of zeros; value = code * scale.
constexpr int64_t kScaleBlock = 128;
void quantize_f8(const float* from, int64_t rows, int64_t cols, uint8_t* codes, float* scales);

}  // namespace lite
