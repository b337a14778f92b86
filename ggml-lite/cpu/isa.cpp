#include "ggml-lite/cpu/isa.h"

#include <array>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lite {
namespace {

constexpr const char* kNames[kIsas] = {"portable", "avx2", "avx512", "avx512bf16", "avx512fp16", "amx"};

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

// Tiles are 8 KiB of state for every thread, which Linux gives a process that asks (arch/x86: xstate "tile data").
bool tiles_granted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool detect(Isa isa) {
  const Cpuid basic(1, 0), features(7, 0), more(7, 1);
  const uint64_t saved = saved_state();
  const bool avx2 =
      bits(basic.ecx, {12, 28, 29}) /* FMA, AVX, F16C */ && bits(features.ebx, {5}) && (saved & 0x6) == 0x6;
  const bool avx512 = avx2 && bits(features.ebx, {16, 17, 30, 31}) /* F, DQ, BW, VL */ &&
                      bits(features.ecx, {1}) /* VBMI */ && (saved & 0xE6) == 0xE6;
  const bool bf16 = avx512 && bits(more.eax, {5}), fp16 = bf16 && bits(features.edx, {23});
  switch (isa) {
    case Isa::Portable: return true;
    case Isa::Avx2: return avx2;
    case Isa::Avx512: return avx512;
    case Isa::Avx512Bf16: return bf16;
    case Isa::Avx512Fp16: return fp16;
    case Isa::Amx:
      return fp16 && bits(features.edx, {22, 24}) /* AMX-BF16, AMX-TILE */ && (saved & 0x60000) == 0x60000 &&
             tiles_granted();
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
