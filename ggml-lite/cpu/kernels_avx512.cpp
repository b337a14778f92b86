// The path for AVX-512 with VBMI (Ice Lake, Zen 4 and later): sixteen lanes.
#if defined(__x86_64__)
#define LITE_CPU_PATH avx512
#include "ggml-lite/cpu/simd_avx512.h"

namespace lite::cpu {

const Kernels* kernels_avx512() {
  static constexpr Kernels table = avx512::f32_kernels<avx512::V, avx512::Reader>();
  return &table;
}

}  // namespace lite::cpu
#endif
