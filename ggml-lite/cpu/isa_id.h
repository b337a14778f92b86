// The instruction-set paths, without a standard header: kernels include it.
#pragma once

namespace lite {

// Each path may use all that the ones before it use.
enum class Isa { Portable, Avx2, Avx512, Avx512Bf16, Avx512Fp16, Amx };
constexpr int kIsas = 6;

}  // namespace lite
