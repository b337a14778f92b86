#include "ggml-lite/host.h"
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
    return allocate_host(bytes);
  }

  Status check(const Graph&, const Node&) const override {
    return {};
  }

  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    return ref::workspace_bytes(g, n, n_threads_);
  }

  Status run(const Graph& g, const Segment& segment, const std::atomic<bool>& cancel) override {
    return run_on_host(g, segment, cancel, n_threads_,
                       [&](const Node& n, const Team& team) { ref::run_node(g, n, team); });
  }

 private:
  int n_threads_;
};

}  // namespace

std::unique_ptr<Backend> make_ref_backend(int n_threads) {
  return std::make_unique<RefBackend>(n_threads);
}

namespace ref {

int64_t workspace_bytes(const Graph& g, const Node& n, int threads) {
  switch (n.op) {
    case Op::Linear: return linear_workspace(g, n, threads);
    case Op::LinearPerHead: return linear_per_head_workspace(g, n, threads);
    case Op::AttentionLatent:
    case Op::AttentionExpanded:
    case Op::AttentionGrouped:
    case Op::AttentionMasked: return attention_workspace(g, n, threads);
    case Op::Route: return route_workspace(g, n, threads);
    case Op::MoeFfn: return moe_workspace(g, n, threads);
    default: return 0;
  }
}

void run_node(const Graph& g, const Node& n, const Team& team) {
  switch (n.op) {
    case Op::Embed: return embed(g, n, team);
    case Op::RmsNorm: return rms_norm(g, n, team);
    case Op::LayerNorm: return layer_norm(g, n, team);
    case Op::Linear: return linear(g, n, team);
    case Op::LinearPerHead: return linear_per_head(g, n, team);
    case Op::Rope: return rope(g, n, team);
    case Op::StreamWrite: return stream_write(g, n, team);
    case Op::StreamRead: return stream_read(g, n, team);
    case Op::AttentionLatent: return attention_latent(g, n, team);
    case Op::AttentionExpanded: return attention_expanded(g, n, team);
    case Op::AttentionGrouped: return attention_grouped(g, n, team);
    case Op::AttentionMasked: return attention_masked(g, n, team);
    case Op::Route: return route(g, n, team);
    case Op::MoeFfn: return moe_ffn(g, n, team);
    case Op::SiluMul: return silu_mul(g, n, team);
    case Op::Add: return add(g, n, team);
    case Op::Concat: return concat(g, n, team);
    case Op::SelectRows: return select_rows(g, n, team);
    case Op::Copy: return copy(g, n, team);
    case Op::Stage: return stage(g, n, team);
  }
}

}  // namespace ref
}  // namespace lite
