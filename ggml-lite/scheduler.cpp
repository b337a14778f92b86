#include "ggml-lite/scheduler.h"

namespace lite {
namespace {

Status start_all(const Graph& graph, const Plan& plan, std::span<Backend* const> backends,
                 const std::atomic<bool>& cancel) {
  for (size_t s = 0; s < plan.segments.size(); ++s) {
    for (const int device : plan.waits[s]) LITE_TRY(backends[device]->wait());
    const Segment& segment = plan.segments[s];
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
