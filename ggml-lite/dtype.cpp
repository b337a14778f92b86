#include "ggml-lite/dtype.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace lite {
namespace {

constexpr DTypeInfo kTable[kDTypes] = {
    {"F32", 4, true},     {"BF16", 2, true}, {"F16", 2, true},
    {"F8_E4M3", 1, true}, {"I32", 4, false}, {"I64", 8, false},
};

// Value of an e4m3 code by its fields; the 256 results are looked up afterwards.
float f8_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 0x7F) == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude =
      exponent == 0 ? std::ldexp(float(mantissa), -9) : std::ldexp(1.0f + mantissa / 8.0f, exponent - 7);
  return code & 0x80 ? -magnitude : magnitude;
}

const std::array<float, 256>& f8_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> v;
    for (int code = 0; code < 256; ++code) v[code] = f8_value(uint8_t(code));
    return v;
  }();
  return values;
}

}  // namespace

const DTypeInfo& info(DType dtype) {
  return kTable[int(dtype)];
}

Result<DType> dtype_from_name(std::string_view name) {
  for (int i = 0; i < kDTypes; ++i)
    if (name == kTable[i].name) return DType(i);
  return unsupported("element type \"", name, "\": expected one of F32, BF16, F16, F8_E4M3, I32, I64");
}

Result<DType> dtype_from_code(uint8_t code) {
  if (code < kDTypes) return DType(code);
  return unsupported("element type number ", int(code), ": expected 0..", kDTypes - 1,
                     "; try a newer version");
}

float f32_from_bf16(uint16_t bits) {
  return std::bit_cast<float>(uint32_t(bits) << 16);
}

float f32_from_f16(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3FF;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = std::ldexp(float(mantissa), -24);
  return sign ? -magnitude : magnitude;
}

float f32_from_f8(uint8_t code) {
  return f8_values()[code];
}

uint16_t bf16_from_f32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

uint16_t f16_from_f32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if (std::isnan(value)) return sign | 0x7E00;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7C00;  // halfway to the next power of two rounds to infinity
  if (magnitude < std::ldexp(1.0f, -14))            // subnormal: a multiple of 2^-24
    return sign | uint16_t(std::nearbyint(std::ldexp(magnitude, 24)));
  const uint32_t m = std::bit_cast<uint32_t>(magnitude) - (112u << 23);
  return sign | uint16_t((m + 0xFFF + (m >> 13 & 1)) >> 13);
}

uint8_t f8_from_f32(float value) {
  if (std::isnan(value)) return 0x7F;
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::min(std::fabs(value), 448.0f);
  if (magnitude <
      std::ldexp(1.0f, -6))  // subnormal: a multiple of 2^-9; 8 of them are the first normal number
    return sign | uint8_t(std::nearbyint(std::ldexp(magnitude, 9)));
  const uint32_t m = std::bit_cast<uint32_t>(magnitude) - (120u << 23);
  return sign | uint8_t((m + 0x7FFFF + (m >> 20 & 1)) >> 20);
}

void decode(DType dtype, const void* from, float* to, int64_t n) {
  switch (dtype) {
    case DType::F32: std::memcpy(to, from, size_t(n) * 4); return;
    case DType::BF16:
      for (int64_t i = 0; i < n; ++i) to[i] = f32_from_bf16(static_cast<const uint16_t*>(from)[i]);
      return;
    case DType::F16:
      for (int64_t i = 0; i < n; ++i) to[i] = f32_from_f16(static_cast<const uint16_t*>(from)[i]);
      return;
    case DType::F8_E4M3: {
      const std::array<float, 256>& values = f8_values();
      for (int64_t i = 0; i < n; ++i) to[i] = values[static_cast<const uint8_t*>(from)[i]];
      return;
    }
    case DType::I32:
    case DType::I64: return;  // not a float type; see DTypeInfo::is_float
  }
}

void encode(DType dtype, const float* from, void* to, int64_t n) {
  switch (dtype) {
    case DType::F32: std::memcpy(to, from, size_t(n) * 4); return;
    case DType::BF16:
      for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = bf16_from_f32(from[i]);
      return;
    case DType::F16:
      for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = f16_from_f32(from[i]);
      return;
    case DType::F8_E4M3:
      for (int64_t i = 0; i < n; ++i) static_cast<uint8_t*>(to)[i] = f8_from_f32(from[i]);
      return;
    case DType::I32:
    case DType::I64: return;
  }
}

void quantize_f8(const float* from, int64_t rows, int64_t cols, uint8_t* codes, float* scales) {
  const int64_t block_cols = ceil_div(cols, kScaleBlock);
  for (int64_t r0 = 0; r0 < rows; r0 += kScaleBlock)
    for (int64_t c0 = 0; c0 < cols; c0 += kScaleBlock) {
      const int64_t r1 = std::min(rows, r0 + kScaleBlock), c1 = std::min(cols, c0 + kScaleBlock);
      float largest = 0;
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t c = c0; c < c1; ++c) largest = std::max(largest, std::fabs(from[r * cols + c]));
      const float exact = largest / 448.0f;  // 0 also for numbers near the smallest float
      const float scale = exact > 0 ? exact : 1.0f;
      scales[r0 / kScaleBlock * block_cols + c0 / kScaleBlock] = scale;
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t c = c0; c < c1; ++c) codes[r * cols + c] = f8_from_f32(from[r * cols + c] / scale);
    }
}

}  // namespace lite
