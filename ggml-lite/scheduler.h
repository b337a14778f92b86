// Walks a planned graph's segments, step after step.
//
// Devices that work beside the host are given their whole step at once. From then on everybody waits only for the segments
// that it needs, by the words of Plan::finished; the host runs its segments in order in between.
#pragma once

#include <atomic>
#include <span>

#include "ggml-lite/backend.h"
#include "ggml-lite/plan.h"

namespace lite {

// What went between devices, and what it cost: of any number of steps.
struct Crossings {
  int64_t count = 0;  // waits of one device for another
  int64_t bytes = 0;
  double waited = 0;  // seconds that the host stood still for others, without the end of the step
};

// Makes ready what running steps of these phases takes, of any size that the graph has room for. Once, when the graph is
// bound for good; without it the first step of a kind takes longer.
Status prepare(const Graph& graph, const Plan& plan, std::span<Backend* const> backends,
               std::span<const Phase> phases);

// Runs every segment on its device, each after the ones it depends on, and returns when all is done. Allocates
// nothing. Cancelled or a device's error leaves the activations undefined. Adds to `crossings`, if there are any.
Status run(const Graph& graph, const Plan& plan, std::span<Backend* const> backends,
           const std::atomic<bool>& cancel, Crossings* crossings = nullptr);

}  // namespace lite
