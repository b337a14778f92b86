// Benchmarks of single ops with the shapes of DeepSeek-V3 and V2-Lite, each against the ceiling of the same moment:
//   bench-kernels [-t THREADS] [--isa PATH] [--gpu N] [--rounds N] [--only TEXT]
// Weights rotate through more than 1 GiB, on a GPU 4 GiB, so that no cache helps. A line is the median over the rounds.
#include <algorithm>
#include <cstdio>
#include <ctime>
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

#ifdef DSV3_CUDA
#include "cuda/cuda.h"
#endif

namespace {

using namespace lite;

struct Options {
  int threads = 0, rounds = 20, gpu = -1;  // -1: the host
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

// What is measured, and the host, which is always device 0 and feeds a GPU its inputs.
struct Devices {
  std::vector<std::unique_ptr<Backend>> backends;
  std::unique_ptr<Meter> meter;

  explicit Devices(const Options& o, Isa isa) {
    backends.push_back(make_cpu_backend({o.threads, isa}));
    if (o.gpu < 0) {
      meter = must(make_cpu_meter(o.threads, isa));
      return;
    }
#ifdef DSV3_CUDA
    backends.push_back(must(make_cuda_backend(o.gpu, false)));
    meter = must(make_cuda_meter(o.gpu));
#else
    must(unsupported("--gpu: this build has no CUDA backend"));
#endif
  }
  int number() const {
    return int(backends.size()) - 1;
  }
  Backend& backend() const {
    return *backends.back();
  }

  // A copy in the device's memory.
  Buffer copy(const void* data, int64_t bytes) const {
    Buffer memory = must(backend().allocate(bytes));
    must(backend().copy(memory.get(), static_cast<const std::byte*>(data), bytes));
    return memory;
  }
};

// FP8 matrices with 128x128 scales, one after the other in more memory than caches hold, then from its beginning again.
class Weights {
 public:
  explicit Weights(const Devices& devices, int threads)
      : bytes_(devices.number() ? int64_t(4) << 30 : (int64_t(1) << 30) + (int64_t(256) << 20)),
        memory_(must(devices.backend().allocate(bytes_))),
        scales_(devices.copy(std::vector<float>(1 << 20, 0.01f).data(), int64_t(4) << 20)) {
    std::vector<uint64_t> words(1 << 23);
    for (int64_t at = 0; at < bytes_; at += int64_t(words.size()) * 8) {
#pragma omp parallel for num_threads(threads)
      for (size_t i = 0; i < words.size(); ++i)  // codes below 1.0 of any sign: bit 6 is off
        words[i] = ((uint64_t(at) + i) * 0x9E3779B97F4A7C15u ^ (uint64_t(at) + i) >> 7) & 0xBFBFBFBFBFBFBFBFu;
      must(devices.backend().copy(memory_.get() + at, reinterpret_cast<const std::byte*>(words.data()),
                                  std::min(bytes_ - at, int64_t(words.size()) * 8)));
    }
  }
  int64_t bytes() const {
    return bytes_;
  }

  Tensor matrix(int64_t rows, int64_t cols) {
    if (next_ + rows * cols > bytes_) next_ = 0;
    Tensor t = Tensor::of(DType::F8_E4M3, {rows, cols});
    t.data = memory_.get() + next_;
    next_ = round_up(next_ + rows * cols, 4096);
    t.scale = {scales_.get(), DType::F32, 128, 128, ceil_div(cols, 128) * 4, 0, 0};
    return t;
  }

 private:
  int64_t bytes_;
  Buffer memory_, scales_;
  int64_t next_ = 0;
};

struct Work {
  double bytes = 0, flop = 0;  // of one run
};

// One graph, run again and again between two measurements of the ceilings.
class Bench {
 public:
  Bench(const Options& o, const Devices& devices) : o_(o), devices_(devices) {}

  // Weights of one run of products, and cached rows of one of attention: as many matrices or streams; at least one.
  int64_t decode_bytes = 0, prompt_bytes = 0, cache_bytes = 0;

  template <class Build>
  void run(const std::string& name, const StepLimits& limits, int64_t tokens, int64_t length, Phase phase,
           Build&& build) {
    if (name.find(o_.only) == std::string::npos) return;
    Graph graph;
    Builder b(&graph);
    const StepInputs in = b.step_inputs(limits);
    streams_.clear();
    kept_.clear();
    b.set_device(devices_.number());
    const Work work = build(b, in);
    must(b.status());
    std::vector<Backend*> backends;
    for (const auto& backend : devices_.backends) backends.push_back(backend.get());
    const Plan plan = must(make_plan(&graph, backends));
    const std::vector<Buffer> memory = must(allocate_arenas(plan.arena_bytes, backends));
    std::vector<std::byte*> arenas;
    for (const Buffer& arena : memory) arenas.push_back(arena.get());
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
      const Ceilings before = must(devices_.meter->measure());
      const double start = now();
      int runs = 0;
      do {
        must(lite::run(graph, plan, backends, cancel));
        ++runs;
      } while (now() - start < 0.05);
      const double t = (now() - start) / runs;
      const Ceilings after = must(devices_.meter->measure());
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
    streams_.push_back(must(devices_.backend().allocate(rows * width * 2)));
    return b.stream(int32_t(streams_.size()) - 1, {"cache", DType::BF16, width, devices_.number()});
  }
  // [m, n], one row for each token.
  Var rows(Builder& b, const StepInputs& in, const std::vector<float>& values, int64_t m, int64_t n) {
    kept_.push_back(devices_.copy(values.data(), m * n * int64_t(sizeof(float))));
    Tensor t = Tensor::of(DType::F32, {m, n});
    t.data = kept_.back().get();
    return b.embed(b.weight(t), in.ids);
  }
  Var activation(Builder& b, const StepInputs& in, int64_t m, int64_t n) {
    std::vector<float> values(size_t(m * n));
    for (size_t i = 0; i < values.size(); ++i) values[i] = float(int(i * 7 % 13) - 6) / 6;
    return rows(b, in, values, m, n);
  }

 private:
  static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
  }

  const Options& o_;
  const Devices& devices_;
  std::vector<Buffer> streams_, kept_;  // of the running line
};

struct Shape {
  int64_t out, in;
};

void linears(Bench& bench, Weights& weights, const char* what, const std::vector<Shape>& shapes,
             const std::vector<int64_t>& tokens, Phase phase) {
  for (const Shape& s : shapes)
    for (const int64_t m : tokens)
      bench.run(str(what, " ", s.out, "x", s.in, ", ", m, " tokens"), {m, 1, 1, 1}, m, m, phase,
                [&](Builder& b, const StepInputs& in) {
                  const Var x = bench.activation(b, in, m, s.in);
                  // Different matrices for some of the memory, so that a run is long and the next one cold.
                  const int64_t n = std::max<int64_t>(
                      1, (phase == kPrompt ? bench.prompt_bytes : bench.decode_bytes) / (s.out * s.in));
                  for (int64_t i = 0; i < n; ++i) b.linear(x, b.weight(weights.matrix(s.out, s.in)));
                  return Work{double(n) * double(s.out * s.in), 2.0 * double(n * m) * double(s.out * s.in)};
                });
}

struct MoeShape {
  const char* name;
  int64_t d, width, experts, k, shared;
};

void experts(Bench& bench, Weights& weights, const MoeShape& s, const std::vector<int64_t>& tokens,
             Phase phase) {
  for (const int64_t m : tokens)
    bench.run(
        str("MoE ", s.name, ", ", m, " tokens"), {m, 1, 1, 1}, m, m, phase,
        [&](Builder& b, const StepInputs& in) {
          const Var x = bench.activation(b, in, m, s.d);
          // Router logits that send a token to k experts by a stride prime to their number.
          std::vector<bool> used(size_t(s.experts));
          std::vector<float> logits(size_t(m * s.experts), 0.0f);
          for (int64_t t = 0; t < m; ++t)
            for (int64_t j = 0; j < s.k; ++j) {
              const int64_t e = (t * 29 + j * 11) % s.experts;
              logits[size_t(t * s.experts + e)] = 1;
              used[size_t(e)] = true;
            }
          const auto [ids, shares] = b.route(bench.rows(b, in, logits, m, s.experts), Var::none(),
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

// Heads of DeepSeek-V3's geometry.
constexpr int64_t kLatent = 512, kNope = 128, kRope = 64, kValue = 128;

void absorbed(Bench& bench, int64_t heads, const std::vector<int64_t>& lengths) {
  for (const int64_t length : lengths) {
    const int64_t blocks = ceil_div(length, kBlockRows), bytes = length * (kLatent + kRope) * 2;
    bench.run(str("MLA absorbed, ", heads, " heads, ", length, " positions"), {1, 1, blocks, 1}, 1, length,
              kDecode, [&](Builder& b, const StepInputs& in) {
                const Var q = b.view(bench.activation(b, in, 1, heads * kLatent), {1, heads, kLatent});
                const Var rope = b.view(bench.activation(b, in, 1, heads * kRope), {1, heads, kRope});
                const int64_t n = std::max<int64_t>(1, bench.cache_bytes / bytes);
                for (int64_t i = 0; i < n; ++i)
                  b.attention_latent(q, rope, bench.stream(b, kLatent + kRope, blocks * kBlockRows), in, 0.1f,
                                     length);
                return Work{double(n * bytes), 2.0 * double(n * heads * length * (2 * kLatent + kRope))};
              });
  }
}

void expanded(Bench& bench, Weights& weights, int64_t heads, const std::vector<int64_t>& tokens) {
  for (const int64_t m : tokens)
    bench.run(str("MLA expanded, ", heads, " heads, ", m, " tokens"), {m, 1, ceil_div(m, kBlockRows), 1}, m,
              m, kPrompt, [&](Builder& b, const StepInputs& in) {
                const Var q = b.view(bench.activation(b, in, m, heads * kNope), {m, heads, kNope});
                const Var rope = b.view(bench.activation(b, in, m, heads * kRope), {m, heads, kRope});
                const Var cache = bench.stream(b, kLatent + kRope, round_up(m, kBlockRows));
                const Tensor kv_b = weights.matrix(heads * (kNope + kValue), kLatent);
                b.attention_expanded(q, rope, b.weight(kv_b), cache, in, 0.1f, m);
                // Keys and values of every position, then half of the pairs.
                const double expansion = 2.0 * double(m * heads * (kNope + kValue) * kLatent),
                             pairs =
                                 double(m) * double(m + 1) / 2 * double(heads) * 2 * (kNope + kRope + kValue);
                return Work{double(m * (kLatent + kRope) * 2), expansion + pairs};
              });
}

void run(Options o) {
  if (o.threads == 0) o.threads = int(core_processors().size());
  const Isa isa = o.isa == "auto" ? best_isa() : must(isa_from_name(o.isa));
  if (!isa_usable(isa)) must(unsupported("this machine has no ", o.isa));
  const Devices devices(o, isa);
  const bool gpu = devices.number() > 0;
  const Ceilings c = must(devices.meter->measure());
  std::printf(
      "%s, %d threads of path %s; %.1f GB/s, %.3f TFLOPS f32, %.3f TFLOPS bf16 at the beginning; shares are "
      "of "
      "ceilings measured before and after each round, a line is a median of %d rounds\n\n"
      "| work | us | GB/s | of read | TFLOPS | of products |\n|---|---|---|---|---|---|\n",
      devices.backend().name().c_str(), o.threads, isa_name(isa), c.read_GBps, c.f32_GFLOPS / 1e3,
      c.matrix_GFLOPS / 1e3, o.rounds);
  Weights weights(devices, o.threads);
  Bench bench(o, devices);
  bench.decode_bytes = weights.bytes() / (gpu ? 2 : 10);
  if (gpu) bench.prompt_bytes = bench.cache_bytes = int64_t(256) << 20;

  const std::vector<Shape> v3 = {{2048, 7168}, {7168, 2048}, {24576, 1536}, {7168, 16384}, {512, 32768}};
  linears(bench, weights, "FP8 GEMV", v3, {1, 2, 4, 8}, kDecode);
  const std::vector<int64_t> rows =
      gpu ? std::vector<int64_t>{64, 512, 4096} : std::vector<int64_t>{16, 64, 256, 512, 2048};
  linears(bench, weights, "FP8 GEMM", {{2048, 7168}, {7168, 2048}}, rows, kPrompt);
  if (gpu) linears(bench, weights, "FP8 GEMM", {{24576, 1536}, {7168, 16384}}, rows, kPrompt);
  const MoeShape lite = {"V2-Lite", 2048, 1408, 64, 6, 2}, large = {"V3 (24 experts)", 7168, 2048, 24, 8, 1};
  for (const MoeShape& s : {lite, large}) {
    experts(bench, weights, s, {1, 4}, kDecode);
    experts(bench, weights, s, gpu ? rows : std::vector<int64_t>{128, 512, 2048}, kPrompt);
  }
  absorbed(bench, 16, {1024, 4096, 32768});
  absorbed(bench, 128, gpu ? std::vector<int64_t>{1024, 4096, 32768} : std::vector<int64_t>{1024, 4096});
  expanded(bench, weights, gpu ? 128 : 16, gpu ? std::vector<int64_t>{512, 4096} : std::vector<int64_t>{512});
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App program("Benchmarks of single ops against the ceilings of the same moment");
  program.add_option("-t,--threads", o.threads, "threads (default: the physical cores)");
  program.add_option("--isa", o.isa, "instruction-set path")->capture_default_str();
  program.add_option("--gpu", o.gpu, "the GPU of this number instead of the host");
  program.add_option("--rounds", o.rounds, "rounds of each line")->capture_default_str();
  program.add_option("--only", o.only, "only lines whose name contains this");
  CLI11_PARSE(program, argc, argv);
  run(o);
}
