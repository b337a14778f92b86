#include "ggml-lite/cpu/kernels.h"

namespace lite::cpu {

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
    case Isa::Portable: return kernels_portable();
#if defined(__x86_64__)
    case Isa::Avx2: return kernels_avx2();
    case Isa::Avx512: return kernels_avx512();
    case Isa::Avx512Bf16: return kernels_avx512bf16();
    case Isa::Avx512Fp16: return kernels_avx512fp16();
    case Isa::Amx: return kernels_amx();
#else
    default: break;
#endif
  }
  return nullptr;
}

}  // namespace lite::cpu
