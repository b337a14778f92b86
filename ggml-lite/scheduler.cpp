#include "ggml-lite/scheduler.h"

namespace lite {

Status run(const Graph& graph, const Plan& plan, std::span<Backend* const> backends, const std::atomic<bool>& cancel) {
  for (const Segment& segment : plan.segments) {
    for (const int32_t other : segment.after) LITE_TRY(backends[plan.segments[other].device]->wait());
    LITE_TRY(backends[segment.device]->run(graph, segment, cancel));
  }
  for (Backend* backend : backends) LITE_TRY(backend->wait());
  return {};
}

}  // namespace lite
