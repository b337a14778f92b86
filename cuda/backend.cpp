#include <bit>
#include <map>
#include <tuple>

#include "cuda/cuda.h"
#include "cuda/kernels.h"

namespace lite {
namespace {

using cuda::Step;

void launch_node(const Graph& g, const Node& n, const Step& step) {
  switch (n.op) {
    case Op::Embed: return cuda::embed(g, n, step);
    case Op::RmsNorm: return cuda::rms_norm(g, n, step);
    case Op::LayerNorm: return cuda::layer_norm(g, n, step);
    case Op::Linear: return cuda::linear(g, n, step);
    case Op::LinearPerHead: return cuda::linear_per_head(g, n, step);
    case Op::Rope: return cuda::rope(g, n, step);
    case Op::StreamWrite: return cuda::stream_write(g, n, step);
    case Op::StreamRead: return cuda::stream_read(g, n, step);
    case Op::AttentionLatent: return cuda::attention_latent(g, n, step);
    case Op::AttentionExpanded: return cuda::attention_expanded(g, n, step);
    case Op::AttentionGrouped: return cuda::attention_grouped(g, n, step);
    case Op::AttentionMasked: return cuda::attention_masked(g, n, step);
    case Op::Route: return cuda::route(g, n, step);
    case Op::MoeFfn: return cuda::moe_ffn(g, n, step);
    case Op::SiluMul: return cuda::silu_mul(g, n, step);
    case Op::Add: return cuda::add(g, n, step);
    case Op::Concat: return cuda::concat(g, n, step);
    case Op::SelectRows: return cuda::select_rows(g, n, step);
    case Op::Copy: return cuda::copy(g, n, step);
  }
}

// Blocks of a grid's second direction hold 8 rows or 256 columns each.
constexpr int64_t kLargest = 500000;

Status check_node(const Graph& g, const Node& n) {
  for (const std::vector<Var>* values : {&n.in, &n.out})
    for (const Var v : *values)
      for (int i = 0; v && i < g.tensor(v).rank; ++i)
        if (g.tensor(v).shape[i] > kLargest)
          return unsupported(op_name(n.op), " on a GPU: a dimension of ", g.tensor(v).shape[i],
                             ", expected at most ", kLargest);
  switch (n.op) {
    case Op::AttentionLatent:
    case Op::AttentionExpanded:
    case Op::AttentionGrouped:
    case Op::AttentionMasked: return cuda::check_attention(g, n);
    case Op::Route: return cuda::check_route(g, n);
    case Op::MoeFfn: return cuda::check_moe(g, n);
    default: return {};
  }
}

int64_t node_workspace(const Graph& g, const Node& n) {
  switch (n.op) {
    case Op::Linear: return cuda::linear_workspace(g, n);
    case Op::AttentionLatent:
    case Op::AttentionExpanded:
    case Op::AttentionGrouped:
    case Op::AttentionMasked: return cuda::attention_workspace(g, n);
    case Op::MoeFfn: return cuda::moe_workspace(g, n);
    default: return 0;
  }
}

// A segment is recorded once for each phase and each power of two of its rows, and from then on replayed.
class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, bool exact, std::string name, cuda::Stream stream)
      : device_(device), exact_(exact), name_(std::move(name)), stream_(std::move(stream)) {}

  std::string name() const override { return str("cuda:", device_, " (", name_, ")"); }
  Result<Buffer> allocate(int64_t bytes) override { return cuda::allocate(device_, bytes); }
  Result<Buffer> allocate_shared(int64_t bytes) override { return cuda::allocate_pinned(device_, bytes); }
  Status copy(std::byte* to, const std::byte* from, int64_t bytes) override {
    LITE_TRY(stream_.wait());
    return cuda::copy(device_, to, from, bytes);
  }

  Status check(const Graph& g, const Node& n) const override { return check_node(g, n); }
  int64_t workspace_bytes(const Graph& g, const Node& n) const override { return node_workspace(g, n); }

  Status run(const Graph& g, const Segment& segment, const std::atomic<bool>& cancel) override {
    if (cancel.load(std::memory_order_relaxed)) return Status(Code::Cancelled, "evaluation cancelled");
    const int32_t* counts = g.tensor(g.counts).row<int32_t>(0);
    const auto rows = int64_t(std::bit_ceil(uint64_t(std::max({counts[kTokens], counts[kOutputs], 1}))));
    const Phase phase = Phase(counts[kPhase]);
    cuda::Recording& recording = recordings_[{&g, segment.first_node, phase, rows}];
    if (!recording) {
      LITE_ASSIGN(recording, record(g, segment, phase, rows));
    }
    return stream_.replay(recording);
  }
  Status wait() override { return stream_.wait(); }

 private:
  Result<cuda::Recording> record(const Graph& g, const Segment& segment, Phase phase, int64_t rows) {
    const int32_t end = segment.first_node + segment.n_nodes;
    for (int32_t i = segment.first_node; i < end; ++i) LITE_TRY(make_table(g, g.nodes[i]));
    LITE_TRY(stream_.begin_recording());
    for (int32_t i = segment.first_node; i < end; ++i) {
      const auto table = tables_.find(&g.nodes[i]);
      launch_node(
          g, g.nodes[i],
          {stream_, phase, rows, exact_,
           table == tables_.end() ? nullptr : reinterpret_cast<cuda::MoeTable*>(table->second.get())});
    }
    return stream_.end_recording();
  }

  Status make_table(const Graph& g, const Node& n) {
    if (n.op != Op::MoeFfn || tables_.contains(&n)) return {};
    const ExpertSet& experts = g.experts[std::get<MoeParams>(n.params).experts];
    std::vector<std::byte> table(size_t(cuda::moe_table_bytes(experts)));
    LITE_ASSIGN(Buffer memory, cuda::allocate(device_, int64_t(table.size())));
    cuda::write_moe_table(experts, table.data(), memory.get());
    LITE_TRY(cuda::copy(device_, memory.get(), table.data(), int64_t(table.size())));
    tables_[&n] = std::move(memory);
    return {};
  }

  int device_;
  bool exact_;
  std::string name_;
  cuda::Stream stream_;
  std::map<const Node*, Buffer> tables_;
  std::map<std::tuple<const Graph*, int32_t, Phase, int64_t>, cuda::Recording> recordings_;
};

class CudaPlanner final : public Backend {
 public:
  std::string name() const override { return "cuda, for planning"; }
  Result<Buffer> allocate(int64_t) override { return runs_nothing(); }
  Status check(const Graph& g, const Node& n) const override { return check_node(g, n); }
  int64_t workspace_bytes(const Graph& g, const Node& n) const override { return node_workspace(g, n); }
  Status run(const Graph&, const Segment&, const std::atomic<bool>&) override { return runs_nothing(); }
  Status wait() override { return {}; }

 private:
  static Status runs_nothing() { return internal_error("a GPU that is only planned with was given work"); }
};

}  // namespace

std::unique_ptr<Backend> make_cuda_planner() {
  return std::make_unique<CudaPlanner>();
}

Result<std::unique_ptr<Backend>> make_cuda_backend(int device, bool exact) {
  LITE_ASSIGN(const cuda::DeviceInfo info, cuda::device_info(device));
  if (info.major < 8)
    return unsupported("GPU ", device, " (", info.name, "): it has compute capability ", info.major, ".",
                       info.minor, ", expected 8.0 or newer");
  LITE_ASSIGN(cuda::Stream stream, cuda::Stream::create(device));
  return std::unique_ptr<Backend>(new CudaBackend(device, exact, info.name, std::move(stream)));
}

}  // namespace lite
