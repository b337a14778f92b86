// What this machine offers a process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lite {

// One processor of every physical core that this process may run on; at least one.
std::vector<int> core_processors();

// Bytes of memory this process may use: RAM, or the limit of its cgroup or of the process, whichever is least.
int64_t memory_limit();

}  // namespace lite
