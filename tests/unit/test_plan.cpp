// The memory plan, segments, runs on several devices, and block tables.
#include <algorithm>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "cuda/cuda.h"
#include "ggml-lite/kv.h"
#include "tests/unit/support.h"

using namespace lite;
using test::Rng;

namespace {

constexpr int64_t kTokenRows = 6, kLiveTokens = 4;

// A random graph over token activations, on one or two devices, with some values kept.
class RandomGraph {
 public:
  RandomGraph(uint64_t seed, int devices) : devices_(devices), rng_(seed), b_(&graph) {
    in = b_.step_inputs({.tokens = kTokenRows, .sequences = 1, .blocks = 1, .outputs = 2});
    pool_.push_back(b_.embed(matrix(20, rng_.between(1, 40)), in.ids));
    const int nodes = int(rng_.between(4, 40));
    for (int i = 0; i < nodes; ++i) {
      b_.set_device(int(rng_.below(devices)));
      pool_.push_back(random_op());
      if (rng_.below(6) == 0) keep(pool_.back());
    }
    keep(pool_.back());
    REQUIRE_MESSAGE(b_.status().ok(), b_.status().message());
  }

  Graph graph;
  StepInputs in;
  std::vector<Var> kept;

 private:
  Var random_op() {
    const Var x = any(), y = any();
    const int64_t n = width(x);
    switch (rng_.below(8)) {
      case 0: return b_.embed(matrix(20, rng_.between(1, 60)), in.ids);
      case 1: return b_.rms_norm(x, vector(n), 1e-6f);
      case 2: return b_.linear(x, matrix(rng_.between(1, 70), n));
      case 3: return b_.silu_mul(x, x);
      case 4: return b_.add(x, b_.linear(y, matrix(n, width(y)), vector(n)));
      case 5: return b_.concat(x, y);
      case 6: {  // a slice is used where the whole is: only whole values are copied to another device
        b_.set_device(graph.value(x).device);
        const int64_t first = rng_.below(n);
        return b_.rms_norm(b_.slice(x, first, n - first), vector(n - first), 1e-6f);
      }
      default: return experts(x, n);
    }
  }
  Var experts(Var x, int64_t n) {
    const auto [ids, weights] = b_.route(b_.linear(x, matrix(6, n)), Var::none(),
                                         {Scoring::Sigmoid, GroupScore::None, 1, 1, 2, true, 1});
    ExpertSet set;
    const int64_t wide = rng_.between(1, 30);
    for (int e = 0; e < 6; ++e) {
      set.slot_of_expert.push_back(e);
      set.slots.push_back({make(wide, n), make(wide, n), make(n, wide), {}, {}});
    }
    if (rng_.below(3) == 0 && devices_ > 1) return streamed(x, ids, weights, set);
    b_.set_device(rng_.below(3) ? graph.value(x).device : 0);
    return b_.moe_ffn(x, ids, weights, set, Rounding::None);
  }
  // The set in groups of two, each brought to device 1 when its turn comes.
  Var streamed(Var x, Var ids, Var weights, const ExpertSet& all) {
    Var sum;
    for (int e = 0; e < 6; e += 2) {
      ExpertSet group;
      group.slot_of_expert.assign(6, -1);
      for (int k = 0; k < 2; ++k) {
        group.slot_of_expert[size_t(e + k)] = k;
        group.slots.push_back(all.slots[size_t(e + k)]);
      }
      const Var staged = b_.stage(group, 1);
      b_.set_device(1);
      const Var part = b_.moe_ffn(x, ids, weights, group, Rounding::None, staged);
      sum = sum ? b_.add(sum, part) : part;
    }
    return sum;
  }
  void keep(Var v) { kept.push_back(b_.keep(v)); }
  Var any() { return pool_[rng_.below(int64_t(pool_.size()))]; }
  int64_t width(Var v) const { return graph.tensor(v).shape[1]; }
  Tensor make(int64_t rows, int64_t cols) {
    weights_.push_back(test::make_weight(rng_, rows, cols, {.magnitude = 1 / std::sqrt(double(cols))}));
    return weights_.back().tensor;
  }
  Var matrix(int64_t rows, int64_t cols) { return b_.weight(make(rows, cols)); }
  Var vector(int64_t n) {
    weights_.push_back(test::make_vector(rng_, n, DType::F32));
    return b_.weight(weights_.back().tensor);
  }

  int devices_;
  Rng rng_;
  Builder b_;
  std::vector<Var> pool_;
  std::deque<test::Weight> weights_;
};

// The first and last node that a storage must hold its bytes for; inputs and kept values to the end.
struct Life {
  int64_t first = INT64_MAX, last = -1;
  bool meets(const Life& other) const { return first <= other.last && other.first <= last; }
};
std::vector<Life> lives(const Graph& g) {
  std::vector<Life> life(g.storages.size());
  for (int64_t i = 0; i < int64_t(g.nodes.size()); ++i) {
    const Node& n = g.nodes[i];
    std::vector<Var> touched = n.in;
    touched.insert(touched.end(), n.out.begin(), n.out.end());
    touched.push_back(n.counts);
    touched.push_back(n.workspace);
    for (const Var v : touched) {
      if (!v) continue;
      Life& l = life[g.value(v).storage];
      l.first = std::min(l.first, i);
      l.last = std::max(l.last, i);
    }
  }
  for (size_t s = 0; s < life.size(); ++s) {
    if (g.storages[s].kind == Kind::Input) life[s] = {0, int64_t(g.nodes.size())};
    if (g.storages[s].kind == Kind::Kept) life[s].last = int64_t(g.nodes.size());
  }
  return life;
}

bool in_arena(const Storage& s) {
  return s.kind != Kind::Weight && s.kind != Kind::Stream;
}

// Arenas for a plan, poisoned; `guard` bytes after each stay poison.
struct Memory {
  static constexpr size_t kGuard = 1 << 14;
  static constexpr std::byte kPoison{0xFF};
  std::vector<std::vector<std::byte>> arenas;
  std::vector<std::byte*> starts;

  explicit Memory(const Plan& plan) {
    for (const int64_t bytes : plan.arena_bytes) arenas.emplace_back(size_t(bytes) + 64 + kGuard, kPoison);
    for (auto& arena : arenas) starts.push_back(arena.data() + (64 - uintptr_t(arena.data()) % 64) % 64);
  }
  bool guards_intact(const Plan& plan) const {
    for (size_t d = 0; d < arenas.size(); ++d)
      for (size_t i = 0; i < kGuard; ++i)
        if (starts[d][size_t(plan.arena_bytes[d]) + i] != kPoison) return false;
    return true;
  }
};

void write_inputs(const Graph& g, const StepInputs& in, uint64_t seed) {
  Rng rng(seed);
  int32_t* counts = g.tensor(in.counts).row<int32_t>(0);
  counts[Count::kTokens] = kLiveTokens;
  counts[Count::kSequences] = 1;
  counts[Count::kOutputs] = 0;
  counts[Count::kPhase] = seed % 2 ? kDecode : kPrompt;
  for (int64_t t = 0; t < kLiveTokens; ++t) g.tensor(in.ids).row<int32_t>(0)[t] = int32_t(rng.below(20));
}

using Bits = std::vector<std::vector<std::byte>>;

Bits live_bits(const Graph& g, const std::vector<Var>& kept) {
  Bits bits;
  for (const Var v : kept)
    bits.emplace_back(g.tensor(v).data, g.tensor(v).data + kLiveTokens * g.tensor(v).stride[0]);
  return bits;
}

// Another plan of the same graph in which nothing shares memory.
Plan spread(const Graph& g, Plan plan) {
  std::fill(plan.arena_bytes.begin(), plan.arena_bytes.end(), 0);
  for (size_t s = 0; s < g.storages.size(); ++s) {
    int64_t& end = plan.arena_bytes[g.storages[s].device];
    plan.offset[s] = end;
    end = round_up(end + g.storages[s].bytes, 64);
  }
  return plan;
}

const std::atomic<bool> kNever = false;

Bits run_plan(RandomGraph& r, const Plan& plan, const std::vector<Backend*>& backends, uint64_t seed) {
  Memory memory(plan);
  bind(&r.graph, plan, memory.starts, {});
  write_inputs(r.graph, r.in, seed);
  const Status status = run(r.graph, plan, backends, kNever);
  CHECK_MESSAGE(status.ok(), status.message());
  CHECK(memory.guards_intact(plan));
  return live_bits(r.graph, r.kept);
}

// A device beside the host that does its work only when the host stands still for it, as slow as a contract allows.
class LateBackend final : public Backend {
 public:
  LateBackend() : inner_(make_ref_backend(1)) {}
  std::string name() const override { return "late"; }
  Result<Buffer> allocate(int64_t bytes) override { return inner_->allocate(bytes); }
  Status check(const Graph& g, const Node& n) const override { return inner_->check(g, n); }
  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    return inner_->workspace_bytes(g, n);
  }
  bool asynchronous() const override { return true; }
  std::unique_lock<std::recursive_mutex> alone() override { return std::unique_lock(mutex_); }
  // Whether no other thread is alone with it.
  bool free() {
    bool taken = false;
    std::thread([&] {
      if ((taken = mutex_.try_lock())) mutex_.unlock();
    }).join();
    return taken;
  }
  Status start(const Graph& g, const Plan& plan, int device) override {
    CHECK(work_.empty());
    g_ = &g;
    finished_ = plan.finished ? g.tensor(plan.finished).row<int32_t>(0) : nullptr;
    CHECK(free() == !finished_);
    for (size_t s = 0; s < plan.segments.size(); ++s)
      if (plan.segments[s].device == device) work_.emplace_back(s, plan.segments[s]);
    return {};
  }
  Status poll() override {
    if (work_.empty()) return {};
    const auto [number, segment] = work_.front();
    bool stopped = false;
    for (const int32_t needed : segment.after) {
      if (finished_[needed] == kPending) return {};
      stopped = stopped || finished_[needed] == kStopped;
    }
    work_.pop_front();
    if (!stopped) LITE_TRY(inner_->run(*g_, segment, kNever));
    if (finished_) finished_[number] = stopped ? kStopped : kDone;
    return {};
  }
  Status wait() override {
    CHECK(free() == !finished_);
    for (size_t left = work_.size(); left; left = work_.size()) {
      LITE_TRY(poll());
      REQUIRE(work_.size() < left);  // all that it may still wait for has been said
    }
    return {};
  }
  size_t unfinished() const { return work_.size(); }

 private:
  std::unique_ptr<Backend> inner_;
  std::recursive_mutex mutex_;
  const Graph* g_ = nullptr;
  int32_t* finished_ = nullptr;
  std::deque<std::pair<size_t, Segment>> work_;
};

// A device beside the host that never finishes anything.
class SilentBackend final : public Backend {
 public:
  explicit SilentBackend(std::function<Status()> polled) : polled_(std::move(polled)) {}
  std::string name() const override { return "silent"; }
  Result<Buffer> allocate(int64_t) override { return internal_error("no memory here"); }
  Status check(const Graph&, const Node&) const override { return {}; }
  int64_t workspace_bytes(const Graph&, const Node&) const override { return 0; }
  bool asynchronous() const override { return true; }
  Status start(const Graph&, const Plan&, int) override { return {}; }
  Status poll() override { return polled_(); }

 private:
  std::function<Status()> polled_;
};

// Fails at its n-th segment.
class FailingBackend final : public Backend {
 public:
  explicit FailingBackend(int good_segments) : inner_(make_ref_backend(1)), left_(good_segments) {}
  std::string name() const override { return "failing"; }
  Result<Buffer> allocate(int64_t bytes) override { return inner_->allocate(bytes); }
  Status check(const Graph&, const Node& n) const override {
    return n.op == Op::Concat ? unsupported("no ", op_name(n.op), " here") : Status();
  }
  int64_t workspace_bytes(const Graph& g, const Node& n) const override {
    return inner_->workspace_bytes(g, n);
  }
  Status run(const Graph& g, const Segment& segment, const std::atomic<bool>& cancel) override {
    return left_-- > 0 ? inner_->run(g, segment, cancel) : Status(Code::Device, "broken");
  }

 private:
  std::unique_ptr<Backend> inner_;
  int left_;
};

std::vector<int32_t> segments_of(const Graph& g, const Plan& plan) {
  std::vector<int32_t> segment_of(g.nodes.size());
  for (size_t k = 0; k < plan.segments.size(); ++k)
    std::fill_n(segment_of.begin() + plan.segments[k].first_node, plan.segments[k].n_nodes, int32_t(k));
  return segment_of;
}

// [k][i]: segment i is done when segment k begins, by every way of waits and of devices that do one after the other.
std::vector<std::vector<bool>> done_before(const Plan& plan) {
  const size_t n = plan.segments.size();
  std::vector<std::vector<bool>> done(n, std::vector<bool>(n, false));
  for (size_t k = 0; k < n; ++k)
    for (size_t i = 0; i < k; ++i) {
      const std::vector<int32_t>& after = plan.segments[k].after;
      if (plan.segments[i].lane() != plan.segments[k].lane() &&
          std::count(after.begin(), after.end(), int32_t(i)) == 0)
        continue;
      done[k][i] = true;
      for (size_t before = 0; before < i; ++before) done[k][before] = done[k][before] || done[i][before];
    }
  return done;
}

// Whether devices that run side by side touch a shared place one after the other, whatever their speed.
bool reuse_waits(const Graph& g, const Plan& plan) {
  const std::vector<int32_t> segment_of = segments_of(g, plan);
  const auto done = done_before(plan);
  std::vector<std::vector<int32_t>> touched(g.storages.size());  // by which nodes
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    const Node& n = g.nodes[i];
    for (const std::vector<Var>& values : {n.in, n.out, {n.counts, n.workspace}})
      for (const Var v : values)
        if (v && in_arena(g.storages[g.value(v).storage])) touched[g.value(v).storage].push_back(int32_t(i));
  }
  for (size_t a = 0; a < touched.size(); ++a)
    for (size_t b = 0; b < touched.size(); ++b) {
      const Storage &x = g.storages[a], &y = g.storages[b];
      if (a == b || x.device != y.device || plan.offset[a] + x.bytes <= plan.offset[b] ||
          plan.offset[b] + y.bytes <= plan.offset[a])
        continue;
      for (const int32_t i : touched[a])
        for (const int32_t j : touched[b])
          if (i < j && plan.segments[segment_of[i]].lane() != plan.segments[segment_of[j]].lane() &&
              !done[segment_of[j]][segment_of[i]])
            return false;
    }
  return true;
}

constexpr int kGraphs = 60;

}  // namespace

TEST_CASE("plan: what lives at the same time never shares memory, on any device") {
  int smaller = 0;
  for (uint64_t seed = 100; seed < 100 + kGraphs; ++seed) {
    CAPTURE(seed);
    for (const int devices : {1, 2}) {
      RandomGraph r(seed, devices);
      const std::unique_ptr<Backend> backends[] = {make_ref_backend(2), make_ref_backend(1)};
      Backend* const all[] = {backends[0].get(), backends[1].get()};
      const auto plan = make_plan(&r.graph, std::span(all).first(size_t(devices)));
      REQUIRE(plan.ok());
      REQUIRE(plan->arena_bytes.size() == size_t(devices));
      const Graph& g = r.graph;
      const std::vector<Life> life = lives(g);
      std::vector<int64_t> sum(devices, 0);
      for (size_t a = 0; a < g.storages.size(); ++a) {
        const Storage& s = g.storages[a];
        if (!in_arena(s) || life[a].last < 0) continue;
        const int64_t from = plan->offset[a], to = from + s.bytes;
        CHECK(from % 64 == 0);
        CHECK(to <= plan->arena_bytes[s.device]);
        sum[s.device] += round_up(s.bytes, 64);
        for (size_t b = 0; b < a; ++b) {
          if (!in_arena(g.storages[b]) || g.storages[b].device != s.device || !life[a].meets(life[b]))
            continue;
          REQUIRE((to <= plan->offset[b] || plan->offset[b] + g.storages[b].bytes <= from));
        }
      }
      for (int d = 0; d < devices; ++d) {
        CHECK(plan->arena_bytes[d] <= sum[d]);
        smaller += plan->arena_bytes[d] < sum[d];
      }
    }
  }
  CHECK(smaller > kGraphs);  // of 3 * kGraphs arenas: the rest is too short to share anything
}

TEST_CASE(
    "plan: shared memory gives the bits that separate memory gives, also when all that is dead is "
    "overwritten") {
  for (uint64_t seed = 100; seed < 100 + kGraphs; ++seed) {
    CAPTURE(seed);
    RandomGraph r(seed, 1);
    const std::unique_ptr<Backend> backend = make_ref_backend(2);
    const std::vector<Backend*> backends = {backend.get()};
    const auto plan = make_plan(&r.graph, backends);
    REQUIRE(plan.ok());
    const Bits apart = run_plan(r, spread(r.graph, *plan), backends, seed);
    CHECK(run_plan(r, *plan, backends, seed) == apart);

    // Node by node, with garbage between.
    Memory memory(*plan);
    bind(&r.graph, *plan, memory.starts, {});
    write_inputs(r.graph, r.in, seed);
    const std::vector<Life> life = lives(r.graph);
    for (int32_t i = 0; i < int32_t(r.graph.nodes.size()); ++i) {
      REQUIRE(backend->run(r.graph, {0, i, 1, {}}, kNever).ok());
      std::vector<bool> alive(size_t(plan->arena_bytes[0]));
      for (size_t s = 0; s < r.graph.storages.size(); ++s)
        if (in_arena(r.graph.storages[s]) && life[s].first <= i && life[s].last > i)
          std::fill_n(alive.begin() + plan->offset[s], r.graph.storages[s].bytes, true);
      for (size_t at = 0; at < alive.size(); ++at)
        if (!alive[at]) memory.starts[0][at] = std::byte{0x7F};
    }
    CHECK(live_bits(r.graph, r.kept) == apart);
    // Inputs persist: a second step needs only what changes.
    CHECK(run(r.graph, *plan, backends, kNever).ok());
    CHECK(live_bits(r.graph, r.kept) == apart);
  }
}

TEST_CASE(
    "segments: consecutive nodes of a device, each after the segments it reads from; operands are copied "
    "there") {
  for (uint64_t seed = 100; seed < 100 + kGraphs; ++seed) {
    CAPTURE(seed);
    RandomGraph r(seed, 2);
    const std::unique_ptr<Backend> backends[] = {make_ref_backend(1), make_ref_backend(1)};
    Backend* const all[] = {backends[0].get(), backends[1].get()};
    const auto plan = make_plan(&r.graph, all);
    REQUIRE(plan.ok());
    const Graph& g = r.graph;
    std::set<std::pair<int32_t, int>> copied;
    for (const Node& n : g.nodes)
      if (n.op == Op::Copy) CHECK(copied.emplace(n.in[0].id, g.value(n.out[0]).device).second);  // once
    int32_t next = 0;
    std::vector<int32_t> segment_of(g.nodes.size());
    const auto done = done_before(*plan);
    for (size_t k = 0; k < plan->segments.size(); ++k) {
      const Segment& s = plan->segments[k];
      CHECK(s.first_node == next);
      CHECK(s.n_nodes > 0);
      // Another lane, or the same one after copies for others.
      const auto sends = [&](int32_t i) {
        return g.nodes[i].op == Op::Copy && g.value(g.nodes[i].out[0]).device != g.nodes[i].device;
      };
      if (k && s.lane() == plan->segments[k - 1].lane())
        CHECK((sends(s.first_node - 1) && !sends(s.first_node)));
      std::set<int32_t> after;
      for (int32_t i = next; i < next + s.n_nodes; ++i) {
        const Node& n = g.nodes[i];
        segment_of[i] = int32_t(k);
        CHECK(n.device == s.device);
        CHECK((n.op != Op::Copy || n.device != 0));  // the other side copies, as it reaches both
        // A device that is stopped while it waits must not get its counts after that.
        if (n.op == Op::Copy && n.in[0].id == g.counts.id) CHECK(s.after.empty());
        for (const Var v : n.out) CHECK((n.op == Op::Copy || g.value(v).device == n.device));
        std::vector<Var> read = n.in;
        if (n.op != Op::Copy) read.push_back(n.counts);
        for (const Var v : read) {
          if (!v) continue;
          const bool here =
              g.value(v).device == n.device || g.storages[g.value(v).storage].kind == Kind::Weight;
          CHECK((here || n.op == Op::Copy));
          for (int32_t j = 0; j < i; ++j)  // who made it
            for (const Var made : g.nodes[j].out)
              if (g.value(made).storage == g.value(v).storage &&
                  plan->segments[segment_of[j]].lane() != s.lane())
                after.insert(segment_of[j]);
        }
      }
      for (const int32_t other : after) CHECK(done[k][other]);
      for (const int32_t other : s.after) {
        CHECK(other < int32_t(k));
        CHECK(plan->segments[other].lane() != s.lane());
      }
      next += s.n_nodes;
    }
    CHECK(next == int32_t(g.nodes.size()));
  }
}

TEST_CASE("two devices give the bits of one") {
  for (uint64_t seed = 200; seed < 200 + kGraphs; ++seed) {
    CAPTURE(seed);
    const std::unique_ptr<Backend> backends[] = {make_ref_backend(2), make_ref_backend(1)};
    const std::vector<Backend*> both = {backends[0].get(), backends[1].get()};
    RandomGraph two(seed, 2), one(seed, 2);
    const auto plan = make_plan(&two.graph, both);
    REQUIRE(plan.ok());
    const Bits bits = run_plan(two, *plan, both, seed);

    // The same graph with every device number made 0.
    for (Node& n : one.graph.nodes) n.device = 0;
    for (Storage& s : one.graph.storages) s.device = 0;
    for (Value& v : one.graph.values) v.device = 0;
    const std::vector<Backend*> first = {backends[0].get()};
    const auto flat = make_plan(&one.graph, first);
    REQUIRE(flat.ok());
    CHECK(run_plan(one, *flat, first, seed) == bits);
  }
}

TEST_CASE("a device may be late: what reads its results waits for it") {
  for (uint64_t seed = 200; seed < 200 + kGraphs; ++seed) {
    CAPTURE(seed);
    const std::unique_ptr<Backend> host = make_ref_backend(1), prompt = make_ref_backend(1);
    LateBackend late;
    const std::vector<Backend*> in_time = {host.get(), prompt.get()}, delayed = {host.get(), &late};
    RandomGraph r(seed, 2);
    const auto plan = make_plan(&r.graph, in_time);
    REQUIRE(plan.ok());
    const Bits bits = run_plan(r, *plan, in_time, seed);
    CHECK(run_plan(r, spread(r.graph, *plan), delayed, seed) == bits);
    CHECK(late.unfinished() == 0);
    CHECK(late.free());
  }
}

TEST_CASE("a device may be late: what it has yet to read is not overwritten") {
  for (uint64_t seed = 200; seed < 200 + kGraphs; ++seed) {
    CAPTURE(seed);
    const std::unique_ptr<Backend> host = make_ref_backend(1), prompt = make_ref_backend(1);
    LateBackend late;
    const std::vector<Backend*> in_time = {host.get(), prompt.get()}, delayed = {host.get(), &late};
    RandomGraph r(seed, 2);
    const auto plan = make_plan(&r.graph, in_time);
    REQUIRE(plan.ok());
    REQUIRE(reuse_waits(r.graph, *plan));  // or the run below would read garbage
    const Bits bits = run_plan(r, *plan, in_time, seed);
    CHECK(run_plan(r, *plan, delayed, seed) == bits);
  }
}

TEST_CASE("devices beside the host: any memory plan gives the bits of separate memory, with two GPUs") {
  for (uint64_t seed = 300; seed < 300 + kGraphs; ++seed) {
    CAPTURE(seed);
    const std::unique_ptr<Backend> host = make_ref_backend(1);
    auto first = make_cuda_backend(0, true), second = make_cuda_backend(1, true);
    REQUIRE((first.ok() && second.ok()));
    const std::vector<Backend*> all = {host.get(), first->get(), second->get()};
    RandomGraph r(seed, 3);
    const auto plan = make_plan(&r.graph, all);
    REQUIRE(plan.ok());
    REQUIRE(reuse_waits(r.graph, *plan));
    const Bits bits = run_plan(r, spread(r.graph, *plan), all, seed);
    for (int repeat = 0; repeat < 2; ++repeat) {
      // What has been recorded holds for one place in memory.
      auto again = make_cuda_backend(0, true), other = make_cuda_backend(1, true);
      CHECK(run_plan(r, *plan, {host.get(), again->get(), other->get()}, seed) == bits);
    }
  }
}

TEST_CASE(
    "a host that stops in the middle of a step lets the devices beside it end, and the next step is whole") {
  for (uint64_t seed = 300; seed < 320; ++seed)
    for (int good = 0; good < 3; ++good) {
      CAPTURE(seed);
      CAPTURE(good);
      FailingBackend failing(good);
      const std::unique_ptr<Backend> host = make_ref_backend(1);
      auto first = make_cuda_backend(0, true), second = make_cuda_backend(1, true);
      REQUIRE((first.ok() && second.ok()));
      const std::vector<Backend*> whole = {host.get(), first->get(), second->get()},
                                  broken = {&failing, first->get(), second->get()};
      RandomGraph r(seed, 3);
      const auto plan = make_plan(&r.graph, whole);
      REQUIRE(plan.ok());
      Memory memory(*plan);  // of poison: no id that a GPU reads too early is one
      bind(&r.graph, *plan, memory.starts, {});
      write_inputs(r.graph, r.in, seed);
      const Status status = run(r.graph, *plan, broken, kNever);
      if (!status.ok()) CHECK(status.message() == "broken");
      CHECK(memory.guards_intact(*plan));
      CHECK(run(r.graph, *plan, whole, kNever).ok());
      const Bits bits = live_bits(r.graph, r.kept);
      auto again = make_cuda_backend(0, true), other = make_cuda_backend(1, true);
      CHECK(run_plan(r, spread(r.graph, *plan), {host.get(), again->get(), other->get()}, seed) == bits);
    }
}

TEST_CASE("a device that fails or is cancelled while the host waits for it ends the step") {
  Graph g;
  Builder b(&g);
  const StepInputs in = b.step_inputs({.tokens = 4, .sequences = 1, .blocks = 1, .outputs = 1});
  const Var x = b.input(DType::F32, {4, 8}, Rows::Tokens);
  b.set_device(1);
  const Var y = b.add(x, x);
  b.set_device(0);
  b.keep(b.add(y, y));
  std::atomic<bool> cancel = false;
  const std::unique_ptr<Backend> host = make_ref_backend(1);
  SilentBackend fails([] { return Status(Code::Device, "GPU 0: run kernels: illegal address"); }),
      is_cancelled([&] {
        cancel = true;
        return Status();
      });
  Backend* const failing[] = {host.get(), &fails};
  const auto plan = make_plan(&g, failing);
  REQUIRE(plan.ok());
  Memory memory(*plan);
  bind(&g, *plan, memory.starts, {});
  g.tensor(in.counts).row<int32_t>(0)[Count::kTokens] = 0;
  CHECK(run(g, *plan, failing, kNever).message() == "GPU 0: run kernels: illegal address");
  Backend* const cancelled[] = {host.get(), &is_cancelled};
  Crossings crossings;
  CHECK(run(g, *plan, cancelled, cancel, &crossings).code() == Code::Cancelled);
  CHECK(cancel);
  for (size_t s = 0; s < plan->segments.size(); ++s)
    CHECK(g.tensor(plan->finished).row<int32_t>(0)[s] == kStopped);
}

TEST_CASE("what is sent early lets two devices work side by side") {
  const auto host = make_ref_backend(1), other = make_ref_backend(1);
  Graph g;
  Builder b(&g);
  b.step_inputs({.tokens = 4, .sequences = 1, .blocks = 1, .outputs = 1});
  const Var x = b.input(DType::F32, {4, 8}, Rows::Tokens);
  b.set_device(1);
  const Var y = b.add(x, x);
  b.send({y}, 0);
  const Var theirs = b.add(y, y);
  b.set_device(0);
  const Var ours = b.add(y, y);
  b.set_device(1);
  b.keep(b.add(theirs, ours));
  REQUIRE(b.status().ok());
  const std::vector<Backend*> both = {host.get(), other.get()};
  const auto plan = make_plan(&g, both);
  REQUIRE(plan.ok());
  std::vector<int> devices;
  for (const Segment& s : plan->segments) devices.push_back(s.device);
  CHECK(devices == std::vector<int>{1, 1, 0, 1});
  // The host needs what device 1 does first, and device 1 needs the host only at the end.
  std::vector<std::vector<int32_t>> after;
  for (const Segment& segment : plan->segments) after.push_back(segment.after);
  CHECK(after == std::vector<std::vector<int32_t>>{{}, {}, {0}, {2}});
  CHECK(plan->crossings == 2);
  // x and y for each token, counts as a whole; ours and the result come on top.
  CHECK(plan->crossing_bytes == std::array<int64_t, 3>{4 * kCounts, 4 * 8 * 4, 0});
}

TEST_CASE("a slice of a single row is refused by another device or arrives there alone") {
  Graph g;
  Builder b(&g);
  const StepInputs in = b.step_inputs({.tokens = 1, .sequences = 1, .blocks = 1, .outputs = 1});
  const test::Weight table = test::matrix_of(std::vector<float>(4000, 1.5f), 1, 4000),
                     one = test::vector_of({1, 1, 1});
  const Var x = b.embed(b.weight(table.tensor), in.ids);
  const Var part = b.slice(x, 5, 3);
  b.set_device(1);
  const Var y = b.rms_norm(part, b.weight(one.tensor), 1e-6f);
  if (!b.status().ok()) return;
  b.keep(y);
  const std::unique_ptr<Backend> backends[] = {make_ref_backend(1), make_ref_backend(1)};
  Backend* const both[] = {backends[0].get(), backends[1].get()};
  const auto plan = make_plan(&g, both);
  REQUIRE(plan.ok());
  Memory memory(*plan);
  bind(&g, *plan, memory.starts, {});
  int32_t* counts = g.tensor(in.counts).row<int32_t>(0);
  counts[Count::kTokens] = 1;
  g.tensor(in.ids).row<int32_t>(0)[0] = 0;
  CHECK(run(g, *plan, both, kNever).ok());
  CHECK(memory.guards_intact(*plan));
  for (int i = 0; i < 3; ++i) CHECK(g.tensor(y).row<float>(0)[i] == doctest::Approx(1));
}

TEST_CASE("plan: a graph that a device cannot run is refused") {
  Graph g;
  Builder b(&g);
  const StepInputs in = b.step_inputs({.tokens = 2, .sequences = 1, .blocks = 1, .outputs = 1});
  const test::Weight table = test::matrix_of({1, 2}, 1, 2);
  const Var x = b.embed(b.weight(table.tensor), in.ids);
  b.set_device(1);
  b.concat(x, x);
  const std::unique_ptr<Backend> host = make_ref_backend(1);
  FailingBackend other(9);
  Backend* const both[] = {host.get(), &other};
  const auto plan = make_plan(&g, both);
  CHECK(plan.status().code() == Code::Unsupported);
  CHECK(plan.status().message().find("concat") != std::string::npos);
}

TEST_CASE("run: cancelled between nodes, before the next one starts") {
  for (const int threads : test::kThreads)
    for (int repeat = 0; repeat < 20; ++repeat) {
      test::OpHarness h({.tokens = 5, .sequences = 1, .blocks = 1, .outputs = 1});
      const Var x = h.activation(std::vector<float>(5 * 7, 1.0f), 7), y = h.b.add(x, x), z = h.b.add(y, y);
      for (const Var v : {x, y, z}) h.b.keep(v);
      const std::unique_ptr<Backend> backend = make_ref_backend(threads);
      Backend* const backends[] = {backend.get()};
      const auto plan = make_plan(&h.graph, backends);
      REQUIRE(plan.ok());
      Memory memory(*plan);
      bind(&h.graph, *plan, memory.starts, {});
      int32_t* counts = h.graph.tensor(h.in.counts).row<int32_t>(0);
      counts[Count::kTokens] = 5;
      for (int t = 0; t < 5; ++t) h.graph.tensor(h.in.ids).row<int32_t>(0)[t] = t;
      const std::atomic<bool> cancel = true;
      CHECK(run(h.graph, *plan, backends, cancel).code() == Code::Cancelled);
      for (int t = 0; t < 5; ++t) {
        CHECK(h.graph.tensor(x).row<float>(t)[6] == 1);
        CHECK(std::isnan(h.graph.tensor(y).row<float>(t)[6]));
        CHECK(std::isnan(h.graph.tensor(z).row<float>(t)[6]));
      }
      // The next run is not affected.
      CHECK(run(h.graph, *plan, backends, kNever).ok());
      CHECK(h.graph.tensor(z).row<float>(4)[6] == 4);
    }
}

TEST_CASE("run: a device's failure is returned, when nothing is running any more") {
  Graph g;
  Builder b(&g);
  const StepInputs in = b.step_inputs({.tokens = 2, .sequences = 1, .blocks = 1, .outputs = 1});
  const test::Weight table = test::matrix_of({1, 2}, 1, 2);
  const Var x = b.embed(b.weight(table.tensor), in.ids);  // host
  b.set_device(1);
  const Var y = b.add(x, x);  // late
  b.set_device(0);
  b.keep(b.add(x, x));  // host: does not read what the other device makes, and fails
  b.set_device(1);
  b.keep(b.add(y, y));
  FailingBackend host(1);
  LateBackend late;
  Backend* const both[] = {&host, &late};
  const auto plan = make_plan(&g, both);
  REQUIRE(plan.ok());
  Memory memory(*plan);
  bind(&g, *plan, memory.starts, {});
  g.tensor(in.counts).row<int32_t>(0)[Count::kTokens] = 0;
  const Status status = run(g, *plan, both, kNever);
  CHECK(status.code() == Code::Device);
  CHECK(status.message() == "broken");
  CHECK(late.unfinished() == 0);  // or it would go on writing into memory that the caller now owns
  CHECK(late.free());
}

// ---- block tables -----------------------------------------------------------------------------------------

TEST_CASE("sequences: no row belongs to two, truncation gives blocks back, the capacity is exact") {
  Rng rng(50);
  for (const auto& size :
       std::vector<std::pair<int32_t, int64_t>>{{1, 1}, {1, 64}, {3, 65}, {5, 1000}, {2, 127}}) {
    const auto& n = size.first;
    const auto& context = size.second;
    CAPTURE(n);
    CAPTURE(context);
    Sequences kv(n, context);
    CHECK(kv.count() == n);
    CHECK(kv.context() == context);
    CHECK(kv.pool_rows() >= n * context);
    CHECK(kv.pool_rows() < n * (context + kBlockRows));
    CHECK(kv.blocks_per_sequence() == (context + kBlockRows - 1) / kBlockRows);
    std::vector<std::vector<int32_t>> rows(n);  // of every position, as first seen
    for (int step = 0; step < 400; ++step) {
      const int32_t s = int32_t(rng.below(n));
      const int64_t length = rng.below(4) == 0   ? rng.between(0, context)
                             : rng.below(3) == 0 ? context
                                                 : std::min(context, kv.length(s) + 1);
      kv.resize(s, length);
      REQUIRE(kv.length(s) == length);
      rows[s].resize(std::min<size_t>(rows[s].size(), size_t(length)));
      for (int64_t p = 0; p < length; ++p) {
        if (p == int64_t(rows[s].size())) rows[s].push_back(kv.row(s, p));
        REQUIRE(kv.row(s, p) == rows[s][p]);  // growing and truncating never move a row
        REQUIRE(kv.row(s, p) == kv.block_table(s)[p / kBlockRows] * kBlockRows + p % kBlockRows);
      }
      std::set<int32_t> blocks;
      int64_t owned = 0;
      for (int32_t q = 0; q < n; ++q)
        for (int64_t i = 0; i < ceil_div(kv.length(q), kBlockRows); ++i, ++owned) {
          const int32_t block = kv.block_table(q)[i];
          REQUIRE(block >= 0);
          REQUIRE(block < kv.pool_rows() / kBlockRows);
          blocks.insert(block);
        }
      REQUIRE(int64_t(blocks.size()) == owned);
    }
    // All of them full at once, then all given back and full again.
    for (int round = 0; round < 2; ++round) {
      for (int32_t s = 0; s < n; ++s) kv.resize(s, context);
      std::set<int32_t> all;
      for (int32_t s = 0; s < n; ++s)
        for (int64_t p = 0; p < context; ++p) all.insert(kv.row(s, p));
      CHECK(int64_t(all.size()) == n * context);
      for (int32_t s = 0; s < n; ++s) kv.resize(s, 0);
    }
  }
}
