#include "ggml-lite/cpu/isa.h"

#include <array>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lite {
namespace {

constexpr const char* kNames[kIsas] = {"portable", "avx2", "avx512", "avx512bf16"};

#if defined(__x86_64__)
struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Cpuid(unsigned leaf, unsigned sub) {
    if (!__get_cpuid_count(leaf, sub, &eax, &ebx, &ecx, &edx)) eax = ebx = ecx = edx = 0;
  }
};

bool bits(unsigned word, std::initializer_list<int> wanted) {
  for (const int bit : wanted)
    if (!(word >> bit & 1)) return false;
  return true;
}

// Register state that the system saves: XCR0.
uint64_t saved_state() {
  if (!bits(Cpuid(1, 0).ecx, {27})) return 0;  // no OSXSAVE
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

bool detect(Isa isa) {
  const Cpuid basic(1, 0), features(7, 0), more(7, 1);
  const uint64_t saved = saved_state();
  const bool avx2 =
      bits(basic.ecx, {12, 28, 29}) /* FMA, AVX, F16C */ && bits(features.ebx, {5}) && (saved & 0x6) == 0x6;
  const bool avx512 = avx2 && bits(features.ebx, {16, 17, 30, 31}) /* F, DQ, BW, VL */ &&
                      bits(features.ecx, {1}) /* VBMI */ && (saved & 0xE6) == 0xE6;
  switch (isa) {
    case Isa::Portable: return true;
    case Isa::Avx2: return avx2;
    case Isa::Avx512: return avx512;
    case Isa::Avx512Bf16: return avx512 && bits(more.eax, {5});
  }
  return false;
}
#else
bool detect(Isa isa) {
  return isa == Isa::Portable;
}
#endif

}  // namespace

const char* isa_name(Isa isa) {
  return kNames[int(isa)];
}

Result<Isa> isa_from_name(std::string_view name) {
  std::string all;
  for (int i = 0; i < kIsas; ++i) {
    if (name == kNames[i]) return Isa(i);
    all += str(i ? ", " : "", kNames[i]);
  }
  return not_found("instruction set \"", name, "\": expected one of ", all);
}

bool isa_usable(Isa isa) {
  static const std::array<bool, kIsas> usable = [] {
    std::array<bool, kIsas> out;
    for (int i = 0; i < kIsas; ++i) out[i] = detect(Isa(i));
    return out;
  }();
  return usable[int(isa)];
}

Isa best_isa() {
  int i = kIsas - 1;
  while (!isa_usable(Isa(i))) --i;
  return Isa(i);
}

}  // namespace lite
