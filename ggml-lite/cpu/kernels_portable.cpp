// The path for any processor: four lanes by the compiler's vector extension.
#include <cstring>

#define LITE_CPU_PATH portable
#include "ggml-lite/cpu/simd_loops.h"
#include "ggml-lite/dtype.h"

namespace lite::cpu {
namespace portable {

struct F8Table {
  float value[256];
  F8Table() {
    for (int code = 0; code < 256; ++code)
      value[code] =
          ((code & 0x7F) == 0x7F ? (code == 0x7F ? 480.0f : -480.0f) : f32_from_f8(uint8_t(code))) / 256;
  }
};
const F8Table f8_table;

struct V {
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int kLanes = 4, kRegisters = 16;

  static Reg zero() { return Reg{}; }
  static Reg set1(float x) { return Reg{x, x, x, x}; }
  static Reg load(const float* p) {
    Reg r;
    std::memcpy(&r, p, sizeof r);
    return r;
  }
  static Reg load_first(const float* p, int64_t n) {
    Reg r{};
    std::memcpy(&r, p, size_t(n) * sizeof(float));
    return r;
  }
  static void store(float* p, Reg r) { std::memcpy(p, &r, sizeof r); }
  static void store_first(float* p, Reg r, int64_t n) { std::memcpy(p, &r, size_t(n) * sizeof(float)); }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg mul(Reg a, Reg b) { return a * b; }
  static Reg div(Reg a, Reg b) { return a / b; }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg max(Reg a, Reg b) { return a > b ? a : b; }
  static Reg min(Reg a, Reg b) { return a < b ? a : b; }
  static Reg select_negative(Reg x, Reg a, Reg b) { return x < zero() ? a : b; }
  static void sum4(Reg a, Reg b, Reg c, Reg d, float* out) {
    out[0] = (a[0] + a[2]) + (a[1] + a[3]);
    out[1] = (b[0] + b[2]) + (b[1] + b[3]);
    out[2] = (c[0] + c[2]) + (c[1] + c[3]);
    out[3] = (d[0] + d[2]) + (d[1] + d[3]);
  }
  static Reg round(Reg x) {
    const Reg big = set1(12582912.0f);  // 1.5 * 2^23: nothing behind the point remains
    return (x + big) - big;
  }
  static Reg times_two_to(Reg x, Reg n) {
    const Int bits = (__builtin_convertvector(n, Int) + 127) << 23;
    Reg power;
    std::memcpy(&power, &bits, sizeof power);
    return x * power;
  }
  template <Elem type>
  static Reg load_first_as(const char* p, int64_t n) {
    Reg r{};
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (type == Elem::F8) {
        r[i] = f8_table.value[uint8_t(p[i])];
      } else if constexpr (type == Elem::F32) {
        float x;
        std::memcpy(&x, p + i * 4, 4);
        r[i] = x;
      } else {
        uint16_t half;
        std::memcpy(&half, p + i * 2, 2);
        r[i] = type == Elem::Bf16 ? f32_from_bf16(half) : f32_from_f16(half);
      }
    }
    return r;
  }
  template <Elem type>
  static Reg load_as(const char* p) {
    return load_first_as<type>(p, kLanes);
  }
};

}  // namespace portable

const Kernels* kernels_portable() {
  static const Kernels table = portable::f32_kernels<portable::V, portable::InOrder>();
  return &table;
}

}  // namespace lite::cpu
