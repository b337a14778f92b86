// What backends on the host's processors share: memory, and one OpenMP region for a segment.
#pragma once

#include <omp.h>

#include "ggml-lite/backend.h"
#include "ggml-lite/team.h"

namespace lite {

// Zeroed pages of the system's. OutOfMemory with the number of bytes.
Result<Buffer> allocate_host(int64_t bytes);

// Walks a segment's nodes with a team of n_threads: every thread calls run_node(node, team) for each, and all meet after
// each. Cancelled if `cancel` is set between two nodes.
template <class RunNode>
Status run_on_host(const Graph& graph, const Segment& segment, const std::atomic<bool>& cancel, int n_threads,
                   RunNode&& run_node) {
  TeamState state;
  // Thread 0 looks at `cancel` and tells the others through the barrier that ends a node. Two cells take turns, so that
  // a slow thread still finds the answer for its node when thread 0 is already writing the next.
  bool stop[2] = {false, false};
#pragma omp parallel num_threads(n_threads)
  {
    const Team team{omp_get_thread_num(), omp_get_num_threads(), &state};
    for (int32_t i = 0; i < segment.n_nodes; ++i) {
      run_node(graph.nodes[segment.first_node + i], team);
      if (team.index == 0) stop[i % 2] = cancel.load(std::memory_order_relaxed);
      team.barrier();
      if (stop[i % 2]) break;
    }
  }
  if (stop[0] || stop[1]) return Status(Code::Cancelled, "evaluation cancelled");
  return {};
}

}  // namespace lite
