// Element types against their definitions: every code of every small type, every rounding boundary.
#include <doctest/doctest.h>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "ggml-lite/dtype.h"
#include "ggml-lite/tensor.h"

using namespace lite;

namespace {

// The value of a binary format by its definition: sign, exponent, mantissa, with subnormals. No infinities or
// NaN.
double value_of(uint32_t code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = int(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = double(code & ((1u << mantissa_bits) - 1)) / double(1u << mantissa_bits);
  const double magnitude =
      exponent ? std::ldexp(1 + mantissa, exponent - bias) : std::ldexp(mantissa, 1 - bias);
  return code >> (exponent_bits + mantissa_bits) & 1 ? -magnitude : magnitude;
}

// Encoding at and around the middle between each code of [0, last] and the next one, which need not be
// finite.
template <class Encode>
void check_rounding(uint32_t last, int exponent_bits, int mantissa_bits, Encode encode) {
  const uint32_t sign = 1u << (exponent_bits + mantissa_bits);
  int wrong = 0;
  for (uint32_t code = 0; code < last; ++code) {
    const double low = value_of(code, exponent_bits, mantissa_bits),
                 high = value_of(code + 1, exponent_bits, mantissa_bits);
    const float middle = float((low + high) / 2);
    REQUIRE(double(middle) == (low + high) / 2);
    const uint32_t even = code % 2 ? code + 1 : code;
    const float below = std::nextafter(middle, -INFINITY), above = std::nextafter(middle, INFINITY);
    wrong += encode(middle) != even;
    wrong += encode(-middle) != (sign | even);
    wrong += encode(below) != code;
    wrong += encode(-below) != (sign | code);
    wrong += encode(above) != code + 1;
    wrong += encode(-above) != (sign | (code + 1));
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("dtype: every e4m3 code") {
  for (uint32_t code = 0; code < 256; ++code) {
    CAPTURE(code);
    const float got = f32_from_f8(uint8_t(code));
    if ((code & 0x7F) == 0x7F) {
      CHECK(std::isnan(got));
      continue;
    }
    CHECK(double(got) == value_of(code, 4, 3));
    CHECK(std::signbit(got) == (code >= 0x80));
    CHECK(f8_from_f32(got) == code);
  }
  check_rounding(0x7E, 4, 3, f8_from_f32);
  CHECK(f8_from_f32(NAN) == 0x7F);
  CHECK(f8_from_f32(INFINITY) == 0x7E);
  CHECK(f8_from_f32(-INFINITY) == 0xFE);
  CHECK(f8_from_f32(std::numeric_limits<float>::max()) == 0x7E);
  CHECK(f8_from_f32(std::numeric_limits<float>::denorm_min()) == 0);
}

TEST_CASE("dtype: golden e4m3 codes") {
  const std::pair<double, int> decoded[] = {{0.001953125, 0x01}, {0.013671875, 0x07}, {0.015625, 0x08},
                                            {1.0, 0x38},         {416, 0x7D},         {448, 0x7E}};
  for (const auto& [value, code] : decoded) CHECK(double(f32_from_f8(uint8_t(code))) == value);
  const std::pair<double, int> encoded[] = {{std::ldexp(1, -10), 0x00},
                                            {1.0001 * std::ldexp(1, -10), 0x01},
                                            {1.5 * std::ldexp(1, -9), 0x02},
                                            {0.0146484375, 0x08},
                                            {0.3, 0x2A},
                                            {1.0625, 0x38},
                                            {1.1875, 0x3A},
                                            {17, 0x58},
                                            {19, 0x5A},
                                            {447.9, 0x7E},
                                            {464, 0x7E},
                                            {500, 0x7E},
                                            {-3.14159, 0xC5},
                                            {-0.0, 0x80}};
  for (const auto& row : encoded) {
    const double value = row.first;
    const int code = row.second;
    CAPTURE(value);
    CHECK(int(f8_from_f32(float(value))) == code);
  }
}

TEST_CASE("dtype: every f16 and bf16 code") {
  int wrong = 0;
  for (uint32_t code = 0; code < 65536; ++code) {
    const float half = f32_from_f16(uint16_t(code)), brain = f32_from_bf16(uint16_t(code));
    if ((code & 0x7C00) == 0x7C00) {
      wrong += code & 0x3FF ? !std::isnan(half) || !std::isnan(f32_from_f16(f16_from_f32(half)))
                            : half != (code & 0x8000 ? -INFINITY : INFINITY) || f16_from_f32(half) != code;
    } else {
      wrong += double(half) != value_of(code, 5, 10) || f16_from_f32(half) != code;
    }
    if ((code & 0x7F80) == 0x7F80) {
      wrong += code & 0x7F ? !std::isnan(brain) || !std::isnan(f32_from_bf16(bf16_from_f32(brain)))
                           : brain != (code & 0x8000 ? -INFINITY : INFINITY) || bf16_from_f32(brain) != code;
    } else {
      wrong += double(brain) != value_of(code, 8, 7) || bf16_from_f32(brain) != code;
    }
  }
  CHECK(wrong == 0);
  check_rounding(0x7BFF, 5, 10, f16_from_f32);
  check_rounding(0x7F7F, 8, 7, bf16_from_f32);
  // Beyond the largest number: half a step further is infinite, less is not.
  CHECK(f16_from_f32(65504) == 0x7BFF);
  CHECK(f16_from_f32(65519.996f) == 0x7BFF);
  CHECK(f16_from_f32(65520) == 0x7C00);
  CHECK(f16_from_f32(-1e30f) == 0xFC00);
  const float largest = std::numeric_limits<float>::max();
  CHECK(bf16_from_f32(largest) == 0x7F80);
  CHECK(bf16_from_f32(-largest) == 0xFF80);
  CHECK(bf16_from_f32(f32_from_bf16(0x7F7F)) == 0x7F7F);
}

TEST_CASE("dtype: NaN stays NaN whatever its bits") {
  for (const uint32_t bits : {0x7F800001u, 0x7FC00000u, 0xFF800001u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    float nan;
    std::memcpy(&nan, &bits, 4);
    CHECK(std::isnan(f32_from_bf16(bf16_from_f32(nan))));
    CHECK(std::isnan(f32_from_f16(f16_from_f32(nan))));
    CHECK(std::isnan(f32_from_f8(f8_from_f32(nan))));
  }
}

TEST_CASE("dtype: names, numbers, sizes") {
  const std::pair<const char*, int64_t> types[] = {{"F32", 4},     {"BF16", 2}, {"F16", 2},
                                                   {"F8_E4M3", 1}, {"I32", 4},  {"I64", 8}};
  for (int i = 0; i < kDTypes; ++i) {
    CHECK(std::string(info(DType(i)).name) == types[i].first);
    CHECK(size_of(DType(i)) == types[i].second);
    CHECK(info(DType(i)).is_float == (i < 4));
    CHECK(*dtype_from_name(types[i].first) == DType(i));
    CHECK(*dtype_from_code(uint8_t(i)) == DType(i));
  }
  for (const char* name : {"F64", "F8_E5M2", "f32", "", "F8_E4M3FNUZ"}) {
    CHECK(dtype_from_name(name).status().code() == Code::Unsupported);
  }
  CHECK(dtype_from_name("I8").status().message().find("\"I8\"") != std::string::npos);
  for (const int code : {6, 7, 128, 255})
    CHECK(dtype_from_code(uint8_t(code)).status().code() == Code::Unsupported);
}

TEST_CASE("dtype: arrays as their elements") {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> from(777);
  for (float& v : from) v = normal(random) * 100;
  for (const DType dtype : {DType::F32, DType::BF16, DType::F16, DType::F8_E4M3}) {
    CAPTURE(info(dtype).name);
    std::vector<uint8_t> bytes(from.size() * size_t(size_of(dtype)));
    std::vector<float> to(from.size());
    encode(dtype, from.data(), bytes.data(), int64_t(from.size()));
    decode(dtype, bytes.data(), to.data(), int64_t(from.size()));
    for (size_t i = 0; i < from.size(); ++i) {
      const float v = from[i];
      const float expected = dtype == DType::BF16      ? f32_from_bf16(bf16_from_f32(v))
                             : dtype == DType::F16     ? f32_from_f16(f16_from_f32(v))
                             : dtype == DType::F8_E4M3 ? f32_from_f8(f8_from_f32(v))
                                                       : v;
      REQUIRE(to[i] == expected);
    }
  }
}

TEST_CASE("dtype: FP8 blocks") {
  std::mt19937 random(12);
  std::normal_distribution<float> normal;
  for (const auto& size : {std::pair<int64_t, int64_t>{1, 1}, {128, 128}, {129, 127}, {300, 257}}) {
    const int64_t rows = size.first, cols = size.second;
    CAPTURE(rows);
    CAPTURE(cols);
    const int64_t grid_cols = ceil_div(cols, kScaleBlock), grid_rows = ceil_div(rows, kScaleBlock);
    std::vector<float> from(size_t(rows * cols)), scales(size_t(grid_rows * grid_cols)),
        row(static_cast<size_t>(cols));
    std::vector<uint8_t> codes(from.size());
    for (float& v : from) v = normal(random);
    if (rows > 200)
      for (int64_t i = 0; i < 128; ++i)
        std::fill_n(from.begin() + i * cols + 128, 128, 0.0f);  // one block of zeros
    quantize_f8(from.data(), rows, cols, codes.data(), scales.data());

    Tensor t = Tensor::of(DType::F8_E4M3, {rows, cols});
    t.data = reinterpret_cast<std::byte*>(codes.data());
    t.scale.data = reinterpret_cast<const std::byte*>(scales.data());
    t.scale.block_rows = t.scale.block_cols = kScaleBlock;
    t.scale.row_stride = grid_cols * 4;
    for (int64_t i = 0; i < rows; ++i) {
      decode_row(t, i, row.data());
      for (int64_t j = 0; j < cols; ++j) {
        float largest = 0;
        if (i % 128 == 0 && j % 128 == 0) {
          for (int64_t r = i; r < std::min(rows, i + 128); ++r)
            for (int64_t c = j; c < std::min(cols, j + 128); ++c)
              largest = std::max(largest, std::fabs(from[size_t(r * cols + c)]));
          REQUIRE(scales[size_t(i / 128 * grid_cols + j / 128)] == (largest > 0 ? largest / 448 : 1));
        }
        const float scale = scales[size_t(i / 128 * grid_cols + j / 128)], value = from[size_t(i * cols + j)];
        REQUIRE(row[size_t(j)] == f32_from_f8(codes[size_t(i * cols + j)]) * scale);
        // Half a step: 2^-4 of a normal number, 2^-10 scales of a subnormal one.
        REQUIRE(std::fabs(row[size_t(j)] - value) <=
                std::max(std::fabs(value) / 16, scale * 0x1p-10f) * 1.000001f);
      }
    }
  }
}

TEST_CASE("dtype: FP8 blocks of numbers too small for a scale stay finite") {
  for (const float tiny : {1e-45f, 1e-43f, 1e-38f}) {
    const float from[4] = {tiny, 0, -tiny, tiny};
    uint8_t codes[4];
    float scale;
    quantize_f8(from, 2, 2, codes, &scale);
    CHECK(std::isfinite(scale));
    for (const uint8_t code : codes) CHECK((code & 0x7F) != 0x7F);
  }
}

TEST_CASE("dtype: a slice keeps its elements' scales") {
  const int64_t rows = 300, cols = 280;
  std::mt19937 random(13);
  std::vector<uint8_t> codes(size_t(rows * cols));
  for (uint8_t& c : codes) c = uint8_t(random() % 0x7F);
  for (const DType scale_dtype : {DType::F32, DType::BF16, DType::F16}) {
    std::vector<float> values(9);
    for (size_t i = 0; i < 9; ++i) values[i] = float(i + 1) / 8;
    std::vector<uint8_t> scales(9 * size_t(size_of(scale_dtype)));
    encode(scale_dtype, values.data(), scales.data(), 9);
    Tensor t = Tensor::of(DType::F8_E4M3, {rows, cols});
    t.data = reinterpret_cast<std::byte*>(codes.data());
    t.scale = {reinterpret_cast<const std::byte*>(scales.data()),
               scale_dtype,
               128,
               128,
               3 * size_of(scale_dtype),
               0,
               0};
    const Tensor slice = slice_cols(slice_rows(t, 100, 150), 77, 190);
    std::vector<float> row(190);
    for (int64_t i = 0; i < 150; ++i) {
      decode_row(slice, i, row.data());
      for (int64_t j = 0; j < 190; ++j) {
        const int64_t r = 100 + i, c = 77 + j;
        REQUIRE(row[size_t(j)] ==
                f32_from_f8(codes[size_t(r * cols + c)]) * values[size_t(r / 128 * 3 + c / 128)]);
      }
    }
  }
}
