#include "ggml-lite/scheduler.h"

namespace lite {
namespace {

Status start_all(const Graph& graph, const Plan& plan, std::span<Backend* const> backends,
                 const std::atomic<bool>& cancel) {
  for (const Segment& segment : plan.segments) {
    for (const int32_t other : segment.after) LITE_TRY(backends[plan.segments[other].device]->wait());
    LITE_TRY(backends[segment.device]->run(graph, segment, cancel));
  }
  return {};
}

}  // namespace

Status run(const Graph& graph, const Plan& plan, std::span<Backend* const> backends,
           const std::atomic<bool>& cancel) {
  Status status = start_all(graph, plan, backends, cancel);
  // Also after an error every device must be done with the memory, which is the caller's again.
  for (Backend* backend : backends) {
    Status waited = backend->wait();
    if (status.ok()) status = std::move(waited);
  }
  return status;
}

}  // namespace lite
