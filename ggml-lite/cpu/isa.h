// Instruction-set paths of the fast CPU backend, and which of them this machine can really run.
#pragma once

#include <string_view>

#include "ggml-lite/cpu/isa_id.h"
#include "ggml-lite/status.h"

namespace lite {

const char* isa_name(Isa isa);  // "portable", "avx2", "avx512", "avx512bf16", "avx512fp16", "amx"
// NotFound naming the paths there are.
Result<Isa> isa_from_name(std::string_view name);

// Whether processor, hypervisor and system all let this process run the path: CPUID says what the processor has, XCR0
// which registers the system saves, and the system grants tiles when asked (the first call asks). Constant for a process.
bool isa_usable(Isa isa);
// The last usable path.
Isa best_isa();

}  // namespace lite
