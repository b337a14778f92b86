// Benchmarks of single ops with the shapes of DeepSeek-V3 and V2-Lite, each against the ceiling of the same moment:
//   bench-kernels [-t THREADS] [--isa PATH] [--rounds N] [--only TEXT]
// Weights rotate through more than 1 GiB, so that no cache helps. A line is the median over the rounds.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <deque>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "ggml-lite/cpu/ceilings.h"
#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/host.h"
#include "ggml-lite/kv.h"
#include "ggml-lite/machine.h"
#include "ggml-lite/ops.h"
#include "ggml-lite/plan.h"
#include "ggml-lite/scheduler.h"

namespace {

using namespace lite;

struct Options {
  int threads = 0, rounds = 20;
  std::string isa = "auto", only;
};

// Stops the program: this is a tool, and its inputs are its own.
template <class T>
T must(Result<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "bench-kernels: %s\n", result.status().message().c_str());
    std::exit(1);
  }
  return std::move(*result);
}
void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "bench-kernels: %s\n", status.message().c_str());
  std::exit(1);
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

// FP8 matrices with 128x128 scales, one after the other in memory of more than 1 GiB, then from its beginning again.
class Weights {
 public:
  static constexpr int64_t kBytes = (int64_t(1) << 30) + (int64_t(256) << 20);

  explicit Weights(int threads) : memory_(must(allocate_host(kBytes))) {
    uint64_t* const words = reinterpret_cast<uint64_t*>(memory_.get());
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < kBytes / 8; ++i)  // codes below 1.0 of any sign: bit 6 is off
      words[i] = (uint64_t(i) * 0x9E3779B97F4A7C15u ^ uint64_t(i) >> 7) & 0xBFBFBFBFBFBFBFBFu;
    scales_.assign(1 << 20, 0.01f);
  }

  Tensor matrix(int64_t rows, int64_t cols) {
    if (next_ + rows * cols > kBytes) next_ = 0;
    Tensor t = Tensor::of(DType::F8_E4M3, {rows, cols});
    t.data = memory_.get() + next_;
    next_ = round_up(next_ + rows * cols, 4096);
    t.scale = {reinterpret_cast<const std::byte*>(scales_.data()),
               DType::F32,
               128,
               128,
               ceil_div(cols, 128) * 4,
               0,
               0};
    return t;
  }

 private:
  Buffer memory_;
  std::vector<float> scales_;
  int64_t next_ = 0;
};

struct Work {
  double bytes = 0, flop = 0;  // of one run
};

// One graph, run again and again between two measurements of the ceilings.
class Bench {
 public:
  Bench(const Options& o, Isa isa)
      : o_(o),
        backend_(make_cpu_backend({o.threads, isa})),
        meter_(must(CeilingMeter::create(o.threads, isa))) {}

  template <class Build>
  void run(const std::string& name, const StepLimits& limits, int64_t tokens, int64_t length, Phase phase,
           Build&& build) {
    if (name.find(o_.only) == std::string::npos) return;
    Graph graph;
    Builder b(&graph);
    const StepInputs in = b.step_inputs(limits);
    streams_.clear();
    const Work work = build(b, in, *this);
    must(b.status());
    Backend* const backends[] = {backend_.get()};
    const Plan plan = must(make_plan(&graph, backends));
    const Buffer arena = must(backend_->allocate(plan.arena_bytes[0]));
    std::byte* const arenas[] = {arena.get()};
    std::vector<std::byte*> streams;
    for (const Buffer& s : streams_) streams.push_back(s.get());
    lite::bind(&graph, plan, arenas, streams);
    const auto input = [&](Var v) { return graph.tensor(v).row<int32_t>(0); };
    input(in.counts)[kTokens] = int32_t(tokens);
    input(in.counts)[kSequences] = 1;
    input(in.counts)[kOutputs] = 0;
    input(in.counts)[kPhase] = phase;
    for (int64_t t = 0; t < tokens; ++t)
      input(in.ids)[t] = int32_t(t), input(in.positions)[t] = int32_t(length - tokens + t);
    const int32_t seq[] = {0, int32_t(tokens), int32_t(length)};
    std::copy_n(seq, 3, input(in.seqs));
    for (int64_t i = 0; i < limits.blocks; ++i) input(in.blocks)[i] = int32_t(i);

    const std::atomic<bool> cancel = false;
    std::vector<double> read, matrix, seconds;
    for (int round = 0; round <= o_.rounds; ++round) {
      const Ceilings before = meter_->measure();
      const double start = now();
      int runs = 0;
      do {
        must(lite::run(graph, plan, backends, cancel));
        ++runs;
      } while (now() - start < 0.05);
      const double t = (now() - start) / runs;
      const Ceilings after = meter_->measure();
      if (round == 0) continue;
      seconds.push_back(t);
      read.push_back(work.bytes / t / 1e9 / ((before.read_GBps + after.read_GBps) / 2));
      const double products = phase == kPrompt ? before.matrix_GFLOPS + after.matrix_GFLOPS
                                               : before.f32_GFLOPS + after.f32_GFLOPS;
      matrix.push_back(work.flop / t / 1e9 / (products / 2));
    }
    const double t = median(seconds);
    std::printf("| %s | %.1f | %.2f | %.0f %% | %.3f | %.0f %% |\n", name.c_str(), t * 1e6,
                work.bytes / t / 1e9, 100 * median(read), work.flop / t / 1e12, 100 * median(matrix));
    std::fflush(stdout);
  }

  Var stream(Builder& b, int64_t width, int64_t rows) {
    streams_.push_back(must(backend_->allocate(rows * width * 2)));
    return b.stream(int32_t(streams_.size()) - 1, {"cache", DType::BF16, width, 0});
  }

 private:
  static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
  }

  const Options& o_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<CeilingMeter> meter_;
  std::vector<Buffer> streams_;
};

// An activation [m, n].
Var activation(Builder& b, const StepInputs& in, int64_t m, int64_t n, std::deque<std::vector<float>>* kept) {
  std::vector<float>& values = kept->emplace_back(size_t(m * n));
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(int(i * 7 % 13) - 6) / 6;
  Tensor t = Tensor::of(DType::F32, {m, n});
  t.data = reinterpret_cast<std::byte*>(values.data());
  return b.embed(b.weight(t), in.ids);
}

struct Shape {
  int64_t out, in;
};

void linears(Bench& bench, Weights& weights, const char* what, const std::vector<Shape>& shapes,
             const std::vector<int64_t>& tokens, Phase phase) {
  for (const Shape& s : shapes)
    for (const int64_t m : tokens) {
      std::deque<std::vector<float>> kept;
      bench.run(str(what, " ", s.out, "x", s.in, ", ", m, " tokens"), {m, 1, 1, 1}, m, m, phase,
                [&](Builder& b, const StepInputs& in, Bench&) {
                  const Var x = activation(b, in, m, s.in, &kept);
                  // Different matrices for about a tenth of the memory, so that a run is long and the next one cold.
                  const int64_t n =
                      phase == kPrompt ? 1 : std::max<int64_t>(1, Weights::kBytes / 10 / (s.out * s.in));
                  for (int64_t i = 0; i < n; ++i) b.linear(x, b.weight(weights.matrix(s.out, s.in)));
                  return Work{double(n) * double(s.out * s.in), 2.0 * double(n * m) * double(s.out * s.in)};
                });
    }
}

struct MoeShape {
  const char* name;
  int64_t d, width, experts, k, shared;
};

void experts(Bench& bench, Weights& weights, const MoeShape& s, const std::vector<int64_t>& tokens,
             Phase phase) {
  for (const int64_t m : tokens) {
    std::deque<std::vector<float>> kept;
    bench.run(
        str("MoE ", s.name, ", ", m, " tokens"), {m, 1, 1, 1}, m, m, phase,
        [&](Builder& b, const StepInputs& in, Bench&) {
          const Var x = activation(b, in, m, s.d, &kept);
          // Router logits that send a token to k experts by a stride prime to their number.
          std::vector<bool> used(size_t(s.experts));
          kept.emplace_back(size_t(m * s.experts), 0.0f);
          for (int64_t t = 0; t < m; ++t)
            for (int64_t j = 0; j < s.k; ++j) {
              const int64_t e = (t * 29 + j * 11) % s.experts;
              kept.back()[size_t(t * s.experts + e)] = 1;
              used[size_t(e)] = true;
            }
          Tensor logits = Tensor::of(DType::F32, {m, s.experts});
          logits.data = reinterpret_cast<std::byte*>(kept.back().data());
          const auto [ids, shares] = b.route(b.embed(b.weight(logits), in.ids), Var::none(),
                                             {Scoring::Softmax, GroupScore::None, 1, 1, s.k, true, 1});
          const auto network = [&](int64_t width) {
            return FfnWeights{
                weights.matrix(width, s.d), weights.matrix(width, s.d), weights.matrix(s.d, width), {}, {}};
          };
          ExpertSet set;
          for (int64_t e = 0; e < s.experts; ++e) {
            set.slot_of_expert.push_back(int32_t(e));
            set.slots.push_back(network(s.width));
          }
          set.has_shared = s.shared > 0;
          if (s.shared) set.shared = network(s.shared * s.width);
          b.moe_ffn(x, ids, shares, std::move(set), Rounding::None);
          const double active = double(std::count(used.begin(), used.end(), true) + s.shared);
          const double one = 3.0 * double(s.d * s.width);
          return Work{active * one, 2 * double(m) * double(s.k + s.shared) * one};
        });
  }
}

void absorbed(Bench& bench, int64_t heads, const std::vector<int64_t>& lengths) {
  for (const int64_t length : lengths) {
    std::deque<std::vector<float>> kept;
    const int64_t blocks = ceil_div(length, kBlockRows);
    bench.run(str("MLA absorbed, ", heads, " heads, ", length, " positions"), {1, 1, blocks, 1}, 1, length,
              kDecode, [&](Builder& b, const StepInputs& in, Bench& owner) {
                constexpr int64_t r = 512, dr = 64;
                const Var q = b.view(activation(b, in, 1, heads * r, &kept), {1, heads, r});
                const Var rope = b.view(activation(b, in, 1, heads * dr, &kept), {1, heads, dr});
                b.attention_latent(q, rope, owner.stream(b, r + dr, blocks * kBlockRows), in, 0.1f, length);
                return Work{double(length * (r + dr) * 2), 2.0 * double(heads * length * (2 * r + dr))};
              });
  }
}

void run(Options o) {
  if (o.threads == 0) o.threads = int(core_processors().size());
  const Isa isa = o.isa == "auto" ? best_isa() : must(isa_from_name(o.isa));
  if (!isa_usable(isa)) must(unsupported("this machine has no ", o.isa));
  std::printf(
      "%d threads, path %s; shares of ceilings measured before and after each round; medians of %d rounds\n\n"
      "| work | us | GB/s | of read | TFLOPS | of products |\n|---|---|---|---|---|---|\n",
      o.threads, isa_name(isa), o.rounds);
  Bench bench(o, isa);
  Weights weights(o.threads);
  const std::vector<Shape> v3 = {{2048, 7168}, {7168, 2048}, {24576, 1536}, {7168, 16384}, {512, 32768}};
  linears(bench, weights, "FP8 GEMV", v3, {1, 2, 4, 8}, kDecode);
  linears(bench, weights, "FP8 GEMM", {{2048, 7168}, {7168, 2048}}, {16, 64, 256, 512, 2048}, kPrompt);
  const MoeShape lite = {"V2-Lite", 2048, 1408, 64, 6, 2}, large = {"V3 (24 experts)", 7168, 2048, 24, 8, 1};
  for (const MoeShape& s : {lite, large}) {
    experts(bench, weights, s, {1, 4}, kDecode);
    experts(bench, weights, s, {128, 512, 2048}, kPrompt);
  }
  absorbed(bench, 16, {1024, 4096, 32768});
  absorbed(bench, 128, {1024, 4096});
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App program("Benchmarks of single ops against the ceilings of the same moment");
  program.add_option("-t,--threads", o.threads, "threads (default: the physical cores)");
  program.add_option("--isa", o.isa, "instruction-set path")->capture_default_str();
  program.add_option("--rounds", o.rounds, "rounds of each line")->capture_default_str();
  program.add_option("--only", o.only, "only lines whose name contains this");
  CLI11_PARSE(program, argc, argv);
  run(o);
}
