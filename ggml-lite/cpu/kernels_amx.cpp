#include "ggml-lite/cpu/kernels.h"

const lite::cpu::Kernels* lite::cpu::kernels_amx() {
  return nullptr;
}
