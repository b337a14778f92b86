// What a plan asks of a GPU, the one that computes and the one that is only planned with: their answers are the same code.
#pragma once

#include "cuda/plan/sizes.h"
#include "ggml-lite/backend.h"

namespace lite::cuda {

class Planned : public Backend {
 public:
  explicit Planned(bool exact) : exact_(exact) {}

  Status check(const Graph& g, const Node& n) const override { return check_node(g, n); }
  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    return node_workspace(g, n, exact_);
  }
  bool joins_next(const Graph& g, int32_t node) const override { return cuda::joins_next(g, node); }
  int64_t recording_bytes(const Graph& g, const Plan& plan, int device,
                          std::span<const Phase> phases) const override {
    return cuda::recording_bytes(g, plan, device, phases);
  }

 protected:
  const bool exact_;
};

}  // namespace lite::cuda
