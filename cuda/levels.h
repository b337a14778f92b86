// Levels of stages (program.h) as they lie in a device's memory, and the launch that walks through them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/runtime.h"

namespace lite::cuda {

enum class StageKind : int32_t;

struct Entry {
  StageKind kind;
  int32_t blocks, x, y;  // all of them, and those in the first two directions
  int64_t arguments;     // bytes from the first one's
};
struct Level {
  int32_t first, end;  // entries
  int32_t blocks;      // of all
};

// All of a program's levels; blocks: of each. kTokens: how many a stage takes at once, 1 or 8, each compiled in a file of its
// own, as it takes minutes.
template <int kTokens>
void launch_program(const std::vector<int64_t>& blocks, int64_t shared, Stream& stream, const Level* levels,
                    const Entry* entries, const std::byte* arguments);

}  // namespace lite::cuda
