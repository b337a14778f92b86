// Memory and order, decided once: every byte a graph will use is known before any is allocated.
//
// Each device has one arena. A storage occupies it from the node that makes it to the last node that reads it;
// storages whose lifetimes meet get different places (largest first, lowest offset that is free). Inputs and kept
// values live throughout. Weights and streams are not in the arena.
#pragma once

#include <span>
#include <vector>

#include "ggml-lite/backend.h"
#include "ggml-lite/graph.h"

namespace lite {

struct Plan {
  std::vector<int64_t> arena_bytes;  // per device
  std::vector<int64_t> offset;       // per storage, into its device's arena
  std::vector<Segment> segments;
};

// Adds each node's workspace to the graph and lays everything out. `backends` is indexed by device.
Result<Plan> make_plan(Graph* graph, std::span<Backend* const> backends);

// Memory for arenas of so many bytes per device. The host's is memory that the last device reaches too.
Result<std::vector<Buffer>> allocate_arenas(std::span<const int64_t> bytes,
                                            std::span<Backend* const> backends);

// Points every value of the graph at its memory: arenas per device, streams by index.
void bind(Graph* graph, const Plan& plan, std::span<std::byte* const> arenas,
          std::span<std::byte* const> streams);

}  // namespace lite
