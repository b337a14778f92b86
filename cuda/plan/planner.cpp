// A GPU that is only planned with.
#include "cuda/cuda.h"
#include "cuda/plan/planned.h"

namespace lite {
namespace {

class CudaPlanner final : public cuda::Planned {
 public:
  using Planned::Planned;
  std::string name() const override { return "cuda, for planning"; }
  Result<Buffer> allocate(int64_t) override {
    return internal_error("a GPU that is only planned with was asked for memory");
  }
};

}  // namespace

std::unique_ptr<Backend> make_cuda_planner(bool exact) {
  return std::make_unique<CudaPlanner>(exact);
}

}  // namespace lite
