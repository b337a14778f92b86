#include <map>
#include <tuple>

#include "cuda/cuda.h"
#include "cuda/kernels.h"
#include "cuda/plan/planned.h"
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

// The step's counts as a device's nodes read them; null if they read none.
int32_t* counts_on(const Graph& g, int device) {
  for (const Node& n : g.nodes)
    if (n.counts && g.value(n.counts).device == device && n.device == device)
      return g.tensor(n.counts).row<int32_t>(0);
  return nullptr;
}

// A step is recorded once for each phase and each power of two of its rows, and from then on replayed.
class CudaBackend final : public cuda::Planned {
 public:
  CudaBackend(int device, bool exact, std::string name, cuda::Stream stream, cuda::Stream aside)
      : Planned(exact),
        device_(device),
        name_(std::move(name)),
        stream_(std::move(stream)),
        aside_(std::move(aside)) {}

  std::string name() const override { return str("cuda:", device_, " (", name_, ")"); }
  Result<Buffer> allocate(int64_t bytes) override { return cuda::allocate(device_, bytes); }
  Result<Buffer> allocate_shared(int64_t bytes) override { return cuda::allocate_pinned(device_, bytes); }
  Status copy(std::byte* to, const std::byte* from, int64_t bytes) override {
    LITE_TRY(stream_.wait());
    const auto alone = cuda::alone_with_driver();  // of some kinds the first one loads a kernel
    return cuda::copy(device_, to, from, bytes);
  }
  Status upload(std::byte* to, std::span<const Piece> pieces) override {
    return cuda::upload(device_, to, pieces);
  }

  bool asynchronous() const override { return true; }
  Status prepare(const Graph& g, const Plan& plan, int device, std::span<const Phase> phases) override {
    const auto alone = cuda::alone_with_driver();  // to record loads kernels
    const int64_t bytes = recording_bytes(g, plan, device, phases);
    LITE_ASSIGN(Buffer memory, cuda::allocate(device_, bytes));
    Carver carve(memory.get());
    recording_memory_.push_back(std::move(memory));
    for (const Node& n : g.nodes)
      if (n.device == device && n.op == Op::MoeFfn) LITE_TRY(make_table(g, n, &carve));
    for (const Phase phase : phases)
      for (int64_t rows = 1; rows <= cuda::recorded_rows(cuda::most_rows(g)); rows *= 2) {
        LITE_ASSIGN(cuda::Recording step, record(g, plan, device, phase, rows, &carve));
        recordings_[{&g, phase, rows}] = std::move(step);
      }
    return {};
  }
  Status start(const Graph& g, const Plan& plan, int device) override {
    const int32_t* counts = g.tensor(g.counts).row<int32_t>(0);
    const auto phase = Phase(counts[kPhase]);
    const int64_t rows = cuda::recorded_rows(std::max({counts[kTokens], counts[kOutputs], 1}));
    cuda::Recording& step = recordings_[{&g, phase, rows}];
    if (!step) LITE_TRY(prepare(g, plan, device, {&phase, 1}));
    return stream_.replay(step);
  }
  Status poll() override { return stream_.poll(); }
  Status wait() override { return stream_.wait(); }
  std::unique_lock<std::recursive_mutex> alone() override { return cuda::alone_with_driver(); }

 private:
  // A segment's, and where it lies in the device's memory.
  struct Uploaded {
    cuda::Program program;
    std::byte* memory;
  };

  Result<cuda::Recording> record(const Graph& g, const Plan& plan, int device, Phase phase, int64_t rows,
                                 Carver* carve) {
    LITE_ASSIGN(const std::vector<Uploaded> programs, make_programs(g, plan, device, phase, rows, carve));
    LITE_TRY(stream_.begin_recording());
    std::vector<cuda::Mark> marks(
        plan.segments.size());  // at the ends of segments; they live as long as it is recorded
    const Status given = give_step(g, plan, device, phase, rows, programs, &marks);
    Result<cuda::Recording> recorded = stream_.end_recording();  // also after an error: it must end
    LITE_TRY(given);
    return recorded;
  }

  // In the decode phase, for the device's segments in order.
  Result<std::vector<Uploaded>> make_programs(const Graph& g, const Plan& plan, int device, Phase phase,
                                              int64_t rows, Carver* carve) {
    std::vector<Uploaded> programs;
    if (phase == kPrompt) return programs;
    for (const Segment& segment : plan.segments) {
      if (segment.device != device || segment.aside) continue;
      cuda::Program program(rows);
      give_nodes(g, segment, phase, rows, &program);
      const int64_t room = cuda::program_bytes(g, segment, rows);
      std::byte* const memory = carve->take<std::byte>(room);
      LITE_TRY(program.upload(device_, memory, room));
      programs.push_back({std::move(program), memory});
    }
    return programs;
  }

  // All segments of the device, and between them what it waits for and what others wait for. What is brought aside has a stream
  // of its own, which leaves the other when the step begins and comes back at its end.
  Status give_step(const Graph& g, const Plan& plan, int device, Phase phase, int64_t rows,
                   const std::vector<Uploaded>& programs, std::vector<cuda::Mark>* marks) {
    int32_t* const finished = plan.finished ? g.tensor(plan.finished).row<int32_t>(0) : nullptr;
    int32_t* const counts = counts_on(g, device);
    bool forks = false;
    for (const Segment& segment : plan.segments) forks = forks || (segment.device == device && segment.aside);
    const auto join = [&](cuda::Stream& first, cuda::Stream& then) -> Status {
      LITE_ASSIGN(cuda::Mark mark, first.mark());
      marks->push_back(std::move(mark));
      return then.await(marks->back());
    };
    if (forks) LITE_TRY(join(stream_, aside_));
    size_t mine = 0;  // of the device's programs
    for (size_t s = 0; s < plan.segments.size(); ++s) {
      const Segment& segment = plan.segments[s];
      if (segment.device != device) continue;
      cuda::Stream& stream = segment.aside ? aside_ : stream_;
      // The counts are the other stream's to change.
      int32_t* const told = segment.aside ? nullptr : counts;
      // First for its own device: so whoever waits for the host has nothing behind it that the host may need to come so far.
      for (const int32_t needed : segment.after)
        if (plan.segments[needed].device == device) LITE_TRY(stream.await((*marks)[needed]));
      for (const int32_t needed : segment.after)
        if (plan.segments[needed].device != device) cuda::await_segment(finished + needed, told, stream);
      if (segment.aside)
        LITE_TRY(bring(g, segment));
      else if (phase == kPrompt)
        give_nodes(g, segment, phase, rows, nullptr);
      else
        programs[mine].program.launch(stream_, programs[mine].memory), ++mine;
      if (finished) cuda::tell_segment(finished + s, told, stream);
      if (forks) {
        LITE_ASSIGN(cuda::Mark end, stream.mark());
        (*marks)[s] = std::move(end);
      }
    }
    return forks ? join(aside_, stream_) : Status();
  }

  // By copying whole, for which a GPU needs no processor.
  Status bring(const Graph& g, const Segment& segment) {
    for (int32_t i = segment.first_node; i < segment.first_node + segment.n_nodes; ++i) {
      const Tensor &from = g.tensor(g.nodes[i].in[0]), &to = g.tensor(g.nodes[i].out[0]);
      LITE_TRY(aside_.copy(to.data, from.data, to.elements() * size_of(to.dtype)));
    }
    return {};
  }

  // To the stream, or to a program.
  void give_nodes(const Graph& g, const Segment& segment, Phase phase, int64_t rows, cuda::Program* program) {
    for (int32_t i = segment.first_node; i < segment.first_node + segment.n_nodes; ++i) {
      const auto table = tables_.find(&g.nodes[i]);
      const bool joined = program && cuda::joins_next(g, i);
      if (program) program->begin(g, std::span(g.nodes).subspan(size_t(i), joined ? 2 : 1));
      const cuda::MoeTable* experts =
          table == tables_.end() ? nullptr : reinterpret_cast<cuda::MoeTable*>(table->second);
      launch_node(g, g.nodes[i],
                  {stream_, phase, rows, exact_, experts, program, joined ? &g.nodes[i + 1] : nullptr});
      if (joined) ++i;
    }
  }

  Status make_table(const Graph& g, const Node& n, Carver* carve) {
    const ExpertSet& experts = cuda::experts_of(g, n);
    std::vector<std::byte> table(size_t(cuda::moe_table_bytes(experts)));
    std::byte* const memory = carve->take<std::byte>(int64_t(table.size()));
    cuda::write_moe_table(experts, table.data(), memory);
    tables_[&n] = memory;
    return cuda::copy(device_, memory, table.data(), int64_t(table.size()));
  }

  int device_;
  std::string name_;
  cuda::Stream stream_, aside_;
  std::vector<Buffer> recording_memory_;  // tables of experts and programs
  std::map<const Node*, std::byte*> tables_;
  std::map<std::tuple<const Graph*, Phase, int64_t>, cuda::Recording> recordings_;
};

}  // namespace

Result<int> count_cuda_gpus() {
  return cuda::device_count();
}

Result<std::unique_ptr<Backend>> make_cuda_backend(int device, bool exact) {
  const auto alone = cuda::alone_with_driver();
  LITE_ASSIGN(const cuda::DeviceInfo info, cuda::device_info(device));
  if (info.major < 8)
    return unsupported("GPU ", device, " (", info.name, "): it has compute capability ", info.major, ".",
                       info.minor, ", expected 8.0 or newer");
  if (!cuda::has_kernels())
    return unsupported("GPU ", device, " (", info.name, "): this build has no code for compute capability ",
                       info.major, ".", info.minor, "; build with ARCHITECTURES=", info.major, info.minor);
  LITE_ASSIGN(cuda::Stream stream, cuda::Stream::create(device));
  LITE_ASSIGN(cuda::Stream aside, cuda::Stream::create(device));
  return std::unique_ptr<Backend>(
      new CudaBackend(device, exact, info.name, std::move(stream), std::move(aside)));
}

}  // namespace lite
