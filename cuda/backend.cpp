#include <bit>
#include <map>
#include <tuple>

#include "cuda/cuda.h"
#include "cuda/kernels.h"
#include "cuda/program.h"
#include "cuda/upload.h"
#include "ggml-lite/plan.h"

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
    case Op::Stage: return;  // refused by check_node
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
    case Op::Stage: return unsupported("stage on a GPU: it is the host's work");
    default: return {};
  }
}

int64_t node_workspace(const Graph& g, const Node& n, bool exact) {
  switch (n.op) {
    case Op::Linear: return cuda::linear_workspace(g, n, exact);
    case Op::AttentionLatent:
    case Op::AttentionExpanded:
    case Op::AttentionGrouped:
    case Op::AttentionMasked: return cuda::attention_workspace(g, n);
    case Op::MoeFfn: return cuda::moe_workspace(g, n, exact);
    default: return 0;
  }
}

// Rows of the largest step that a graph has room for.
int64_t most_rows(const Graph& g) {
  int64_t most = 1;
  for (const Value& v : g.values)
    if (v.rows != Rows::Fixed) most = std::max(most, v.tensor.shape[0]);
  return most;
}

// Steps of so many rows are recorded together.
int64_t recorded_rows(int64_t rows) {
  return int64_t(std::bit_ceil(uint64_t(rows)));
}

// The step's counts as a device's nodes read them; null if they read none.
int32_t* counts_on(const Graph& g, int device) {
  for (const Node& n : g.nodes)
    if (n.counts && g.value(n.counts).device == device && n.device == device)
      return g.tensor(n.counts).row<int32_t>(0);
  return nullptr;
}

// A step is recorded once for each phase and each power of two of its rows, and from then on replayed.
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
  Status upload(std::byte* to, std::span<const Piece> pieces) override {
    return cuda::upload(device_, to, pieces);
  }

  Status check(const Graph& g, const Node& n) const override { return check_node(g, n); }
  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    return node_workspace(g, n, exact_);
  }

  bool asynchronous() const override { return true; }
  Status prepare(const Graph& g, const Plan& plan, int device, std::span<const Phase> phases) override {
    for (const Phase phase : phases)
      for (int64_t rows = 1; rows <= recorded_rows(most_rows(g)); rows *= 2)
        LITE_TRY(recording(g, plan, device, phase, rows).status());
    return {};
  }
  Status start(const Graph& g, const Plan& plan, int device) override {
    const int32_t* counts = g.tensor(g.counts).row<int32_t>(0);
    const int64_t rows = recorded_rows(std::max({counts[kTokens], counts[kOutputs], 1}));
    LITE_ASSIGN(const cuda::Recording step, recording(g, plan, device, Phase(counts[kPhase]), rows));
    return stream_.replay(step);
  }
  Status poll() override { return stream_.poll(); }
  Status wait() override { return stream_.wait(); }

 private:
  // A segment's, and where it lies in the device's memory.
  struct Uploaded {
    cuda::Program program;
    std::byte* memory;
  };

  Result<cuda::Recording> recording(const Graph& g, const Plan& plan, int device, Phase phase, int64_t rows) {
    cuda::Recording& recorded = recordings_[{&g, phase, rows}];
    if (!recorded) {
      for (const Node& n : g.nodes)
        if (n.device == device) LITE_TRY(make_table(g, n));
      LITE_ASSIGN(const std::vector<Uploaded> programs, make_programs(g, plan, device, phase, rows));
      LITE_TRY(stream_.begin_recording());
      give_step(g, plan, device, phase, rows, programs);
      LITE_ASSIGN(recorded, stream_.end_recording());
    }
    return recorded;
  }

  // In the decode phase, for the device's segments in order: memory is taken before anything is recorded.
  Result<std::vector<Uploaded>> make_programs(const Graph& g, const Plan& plan, int device, Phase phase,
                                              int64_t rows) {
    std::vector<Uploaded> programs;
    if (phase == kPrompt) return programs;
    for (const Segment& segment : plan.segments) {
      if (segment.device != device) continue;
      cuda::Program program(rows);
      give_nodes(g, segment, phase, rows, &program);
      LITE_ASSIGN(Buffer memory, program.upload(device_));
      programs.push_back({std::move(program), memory.get()});
      program_memory_.push_back(std::move(memory));
    }
    return programs;
  }

  // All segments of the device, and between them what it waits for and what others wait for.
  void give_step(const Graph& g, const Plan& plan, int device, Phase phase, int64_t rows,
                 const std::vector<Uploaded>& programs) {
    int32_t* const finished = plan.finished ? g.tensor(plan.finished).row<int32_t>(0) : nullptr;
    int32_t* const counts = counts_on(g, device);
    size_t mine = 0;  // of the device's segments
    for (size_t s = 0; s < plan.segments.size(); ++s) {
      const Segment& segment = plan.segments[s];
      if (segment.device != device) continue;
      for (const int32_t needed : segment.after) cuda::await_segment(finished + needed, counts, stream_);
      if (phase == kPrompt)
        give_nodes(g, segment, phase, rows, nullptr);
      else
        programs[mine].program.launch(stream_, programs[mine].memory);
      if (finished) cuda::tell_segment(finished + s, counts, stream_);
      ++mine;
    }
  }

  // To the stream, or to a program.
  void give_nodes(const Graph& g, const Segment& segment, Phase phase, int64_t rows, cuda::Program* program) {
    for (int32_t i = segment.first_node; i < segment.first_node + segment.n_nodes; ++i) {
      const auto table = tables_.find(&g.nodes[i]);
      if (program) program->begin(g, g.nodes[i]);
      launch_node(g, g.nodes[i],
                  {stream_, phase, rows, exact_,
                   table == tables_.end() ? nullptr : reinterpret_cast<cuda::MoeTable*>(table->second.get()),
                   program});
    }
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
  std::vector<Buffer> program_memory_;
  std::map<std::tuple<const Graph*, Phase, int64_t>, cuda::Recording> recordings_;
};

class CudaPlanner final : public Backend {
 public:
  explicit CudaPlanner(bool exact) : exact_(exact) {}

  std::string name() const override { return "cuda, for planning"; }
  Result<Buffer> allocate(int64_t) override {
    return internal_error("a GPU that is only planned with was asked for memory");
  }
  Status check(const Graph& g, const Node& n) const override { return check_node(g, n); }
  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    return node_workspace(g, n, exact_);
  }

 private:
  bool exact_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_planner(bool exact) {
  return std::make_unique<CudaPlanner>(exact);
}

Result<std::unique_ptr<Backend>> make_cuda_backend(int device, bool exact) {
  LITE_ASSIGN(const cuda::DeviceInfo info, cuda::device_info(device));
  if (info.major < 8)
    return unsupported("GPU ", device, " (", info.name, "): it has compute capability ", info.major, ".",
                       info.minor, ", expected 8.0 or newer");
  if (!cuda::has_kernels())
    return unsupported("GPU ", device, " (", info.name, "): this build has no code for compute capability ",
                       info.major, ".", info.minor, "; build with ARCHITECTURES=", info.major, info.minor);
  LITE_ASSIGN(cuda::Stream stream, cuda::Stream::create(device));
  return std::unique_ptr<Backend>(new CudaBackend(device, exact, info.name, std::move(stream)));
}

}  // namespace lite
