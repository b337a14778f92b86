// A GPU that is only planned with.
#include "cuda/cuda.h"
#include "cuda/plan/sizes.h"

namespace lite {
namespace {

class CudaPlanner final : public Backend {
 public:
  explicit CudaPlanner(bool exact) : exact_(exact) {}

  std::string name() const override { return "cuda, for planning"; }
  Result<Buffer> allocate(int64_t) override {
    return internal_error("a GPU that is only planned with was asked for memory");
  }
  Status check(const Graph& g, const Node& n) const override { return cuda::check_node(g, n); }
  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    return cuda::node_workspace(g, n, exact_);
  }
  bool joins_next(const Graph& g, int32_t node) const override { return cuda::joins_next(g, node); }
  int64_t recording_bytes(const Graph& g, const Plan& plan, int device,
                          std::span<const Phase> phases) const override {
    return cuda::recording_bytes(g, plan, device, phases);
  }

 private:
  bool exact_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_planner(bool exact) {
  return std::make_unique<CudaPlanner>(exact);
}

}  // namespace lite
