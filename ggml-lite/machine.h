// What this machine offers a process.
#pragma once

#include <cstdint>
#include <string>

namespace lite {

// Physical cores among the processors this process may run on; at least 1.
int physical_cores();

// Bytes of memory this process may use: RAM, or the limit of its cgroup or of the process, whichever is least.
int64_t memory_limit();

// "x86-64: avx2 avx512f ...": instruction sets the processor and the system offer.
std::string instruction_sets();

}  // namespace lite
