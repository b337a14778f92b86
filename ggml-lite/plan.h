// Memory and order, decided once: every byte a graph will use is known before any is allocated.
//
// Each device has one arena. A storage occupies it from the node that makes it to the last node that reads it. Storages may
// share a place if all that touches the one is done before anything touches the other: devices work side by side, so
// what orders two nodes is that one device runs both, or that a segment waits. The largest are placed first, each at the lowest
// offset that is free. Inputs and kept values live throughout. Weights and streams are not in the arena.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "ggml-lite/backend.h"
#include "ggml-lite/graph.h"

namespace lite {

// What Plan::finished says of a segment. Stopped: the step has failed, and what the segment should have made is not there.
enum Finished : int32_t { kPending, kDone, kStopped };

struct Plan {
  std::vector<int64_t> arena_bytes;  // per device
  std::vector<int64_t> offset;       // per storage, into its device's arena
  std::vector<Segment> segments;
  // [segments] I32 in memory that all devices reach: Finished of each in this step, by which devices wait for each other.
  // None where no segment comes after another device's.
  Var finished;
  int64_t crossings = 0;  // waits of one device for another in a step
  std::array<int64_t, 3> crossing_bytes =
      {};  // what is copied between them, by Rows: in all, per token, per output
};

// Adds workspaces and Plan::finished to the graph and lays everything out. What copies inputs comes first: it waits for
// nothing. `backends` is indexed by device.
Result<Plan> make_plan(Graph* graph, std::span<Backend* const> backends);

// Memory for arenas of so many bytes per device. The host's is memory that the last device reaches too.
Result<std::vector<Buffer>> allocate_arenas(std::span<const int64_t> bytes,
                                            std::span<Backend* const> backends);

// Points every value of the graph at its memory: arenas per device, streams by index.
void bind(Graph* graph, const Plan& plan, std::span<std::byte* const> arenas,
          std::span<std::byte* const> streams);

}  // namespace lite
