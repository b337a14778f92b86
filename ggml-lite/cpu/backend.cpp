#include <sched.h>

#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/host.h"
#include "ggml-lite/machine.h"
#include "ggml-lite/ref/ref.h"

namespace lite {
namespace {

// GELU experts and their biases are small and rare: the reference computes them.
bool is_swiglu(const Graph& g, const Node& n) {
  return g.experts[std::get<MoeParams>(n.params).experts].activation == Activation::SwiGlu;
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& o) : options_(o), arithmetic_{cpu::kernels_of(o.isa), o.exact} {
    // The OpenMP runtime makes its threads at the first region of a size; let that be now and not in the first step.
    const std::vector<int> cores = core_processors();
    const bool pin = o.n_threads <= int(cores.size());
#pragma omp parallel num_threads(o.n_threads)
    {
      const int i = omp_get_thread_num();
      if (pin && i > 0) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cores[i], &one);
        sched_setaffinity(0, sizeof one, &one);  // refused: slower, not wrong
      }
    }
  }

  std::string name() const override {
    return str("cpu (", isa_name(options_.isa), options_.exact ? ", exact)" : ")");
  }
  Result<Buffer> allocate(int64_t bytes) override {
    return allocate_host(bytes);
  }
  Status check(const Graph&, const Node&) const override {
    return {};
  }

  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    const int threads = options_.n_threads;
    switch (n.op) {
      case Op::Linear: return cpu::linear_workspace(g, n, threads, arithmetic_);
      case Op::LinearPerHead: return cpu::linear_per_head_workspace(g, n, threads, arithmetic_);
      case Op::AttentionLatent:
      case Op::AttentionExpanded:
      case Op::AttentionGrouped: return cpu::attention_workspace(g, n, threads, arithmetic_);
      case Op::MoeFfn:
        return is_swiglu(g, n) ? cpu::moe_workspace(g, n, threads, arithmetic_)
                               : ref::moe_workspace(g, n, threads);
      default: return ref::workspace_bytes(g, n, threads);
    }
  }

  Status run(const Graph& g, const Segment& segment, const std::atomic<bool>& cancel) override {
    return run_on_host(g, segment, cancel, options_.n_threads,
                       [&](const Node& n, const Team& team) { run_node(g, n, team); });
  }

 private:
  void run_node(const Graph& g, const Node& n, const Team& team) const {
    switch (n.op) {
      case Op::Linear: return cpu::linear(g, n, team, arithmetic_);
      case Op::LinearPerHead: return cpu::linear_per_head(g, n, team, arithmetic_);
      case Op::AttentionLatent: return cpu::attention_latent(g, n, team, arithmetic_);
      case Op::AttentionExpanded: return cpu::attention_expanded(g, n, team, arithmetic_);
      case Op::AttentionGrouped: return cpu::attention_grouped(g, n, team, arithmetic_);
      case Op::SiluMul: return cpu::silu_mul(g, n, team, arithmetic_);
      case Op::MoeFfn:
        return is_swiglu(g, n) ? cpu::moe_ffn(g, n, team, arithmetic_) : ref::moe_ffn(g, n, team);
      default: return ref::run_node(g, n, team);
    }
  }

  CpuOptions options_;
  cpu::Arithmetic arithmetic_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

bool cpu::is_prompt(const Graph& g, const Node& n) {
  return g.tensor(n.counts).row<int32_t>(0)[kPhase] == kPrompt;
}

}  // namespace lite
