#include <omp.h>
#include <sys/mman.h>

#include "ggml-lite/ref/ref.h"

namespace lite {
namespace {

class RefBackend final : public Backend {
 public:
  explicit RefBackend(int n_threads) : n_threads_(n_threads) {
    // The OpenMP runtime makes its threads at the first region of a size; let that be now and not in the
    // first step.
#pragma omp parallel num_threads(n_threads_)
    {
#pragma omp barrier
    }
  }

  std::string name() const override {
    return "ref";
  }

  Result<Buffer> allocate(int64_t bytes) override {
    const size_t size = size_t(round_up(std::max<int64_t>(bytes, 1), 4096));
    void* memory =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
      return out_of_memory("allocate ", bytes, " bytes of memory: the system has not got them");
    return Buffer(static_cast<std::byte*>(memory), [size](std::byte* p) { munmap(p, size); });
  }

  Status check(const Graph&, const Node&) const override {
    return {};
  }

  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    switch (n.op) {
      case Op::Linear: return ref::linear_workspace(g, n, n_threads_);
      case Op::LinearPerHead: return ref::linear_per_head_workspace(g, n, n_threads_);
      case Op::AttentionLatent:
      case Op::AttentionExpanded:
      case Op::AttentionGrouped:
      case Op::AttentionMasked: return ref::attention_workspace(g, n, n_threads_);
      case Op::Route: return ref::route_workspace(g, n, n_threads_);
      case Op::MoeFfn: return ref::moe_workspace(g, n, n_threads_);
      default: return 0;
    }
  }

  Status run(const Graph& g, const Segment& segment, const std::atomic<bool>& cancel) override {
    // Thread 0 looks at `cancel` and tells the others through the barrier that ends a node. Two cells take
    // turns, so that a slow thread still finds the answer for its node when thread 0 is already writing the
    // next.
    bool stop[2] = {false, false};
#pragma omp parallel num_threads(n_threads_)
    {
      const ref::Team team{omp_get_thread_num(), omp_get_num_threads()};
      for (int32_t i = 0; i < segment.n_nodes; ++i) {
        run_node(g, g.nodes[segment.first_node + i], team);
        if (team.index == 0) stop[i % 2] = cancel.load(std::memory_order_relaxed);
        team.barrier();
        if (stop[i % 2]) break;
      }
    }
    if (stop[0] || stop[1]) return Status(Code::Cancelled, "evaluation cancelled");
    return {};
  }

  Status wait() override {
    return {};
  }

 private:
  static void run_node(const Graph& g, const Node& n, const ref::Team& team) {
    switch (n.op) {
      case Op::Embed: return ref::embed(g, n, team);
      case Op::RmsNorm: return ref::rms_norm(g, n, team);
      case Op::LayerNorm: return ref::layer_norm(g, n, team);
      case Op::Linear: return ref::linear(g, n, team);
      case Op::LinearPerHead: return ref::linear_per_head(g, n, team);
      case Op::Rope: return ref::rope(g, n, team);
      case Op::StreamWrite: return ref::stream_write(g, n, team);
      case Op::StreamRead: return ref::stream_read(g, n, team);
      case Op::AttentionLatent: return ref::attention_latent(g, n, team);
      case Op::AttentionExpanded: return ref::attention_expanded(g, n, team);
      case Op::AttentionGrouped: return ref::attention_grouped(g, n, team);
      case Op::AttentionMasked: return ref::attention_masked(g, n, team);
      case Op::Route: return ref::route(g, n, team);
      case Op::MoeFfn: return ref::moe_ffn(g, n, team);
      case Op::SiluMul: return ref::silu_mul(g, n, team);
      case Op::Add: return ref::add(g, n, team);
      case Op::Concat: return ref::concat(g, n, team);
      case Op::SelectRows: return ref::select_rows(g, n, team);
      case Op::Copy: return ref::copy(g, n, team);
    }
  }

  int n_threads_;
};

}  // namespace

std::unique_ptr<Backend> make_ref_backend(int n_threads) {
  return std::make_unique<RefBackend>(n_threads);
}

void ref::Team::barrier() const {
#pragma omp barrier
}

}  // namespace lite
