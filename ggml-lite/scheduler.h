// Walks a planned graph's segments, step after step.
#pragma once

#include <atomic>
#include <span>

#include "ggml-lite/backend.h"
#include "ggml-lite/plan.h"

namespace lite {

// Runs every segment on its device, each after the ones it depends on, and returns when all is done. Allocates
// nothing. Cancelled or a device's error leaves the activations undefined.
Status run(const Graph& graph, const Plan& plan, std::span<Backend* const> backends,
           const std::atomic<bool>& cancel);

}  // namespace lite
