// What the op tests share: a seeded generator, weights with their exact values in double, and a harness that
// runs a small graph in memory full of poison.
//
// Expected values are computed in double from the formulas of ops.h. Nothing here calls into ggml-lite/ref.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cuda.h"
#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/ops.h"
#include "ggml-lite/plan.h"
#include "ggml-lite/ref/ref.h"
#include "ggml-lite/scheduler.h"

namespace test {

// Every random test derives its data from this one number; it is printed once per run.
inline const uint64_t base_seed = [] {
  const char* text = std::getenv("DSV3_TEST_SEED");
  const uint64_t seed = text ? std::strtoull(text, nullptr, 10) : 1;
  std::printf("random tests: seed %llu (environment: DSV3_TEST_SEED)\n",
              static_cast<unsigned long long>(seed));
  return seed;
}();

// SplitMix64.
class Rng {
 public:
  explicit Rng(uint64_t stream) : state_(base_seed * 0x9E3779B97F4A7C15 + stream) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
  }
  double uniform() { return double(bits() >> 11) * 0x1p-53; }                         // [0, 1)
  int64_t below(int64_t n) { return int64_t(bits() % uint64_t(n)); }                  // 0..n-1
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }  // both included
  float normal(double scale = 1) {
    const double r = std::sqrt(-2 * std::log(1 - uniform()));
    return float(scale * r * std::cos(6.283185307179586 * uniform()));
  }
  std::vector<float> normals(int64_t n, double scale = 1) {
    std::vector<float> v(n);
    for (float& x : v) x = normal(scale);
    return v;
  }
  template <class T>
  void shuffle(std::vector<T>* v) {
    for (int64_t i = int64_t(v->size()) - 1; i > 0; --i) std::swap((*v)[i], (*v)[below(i + 1)]);
  }

 private:
  uint64_t state_;
};

// ---- element types, from their definitions ----------------------------------------------------------------

// A binary format of one sign bit, `exponent_bits` with bias 2^(exponent_bits - 1) - 1, and `mantissa_bits`.
inline double value_of(uint32_t code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = int(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = std::ldexp(double(code & ((1u << mantissa_bits) - 1)), -mantissa_bits);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1 + mantissa, exponent - bias);
  return code >> (exponent_bits + mantissa_bits) & 1 ? -magnitude : magnitude;
}
inline double e4m3(uint8_t code) {
  return value_of(code, 4, 3);
}  // 0x7F and 0xFF are NaN in truth
inline double bf16(uint16_t code) {
  return value_of(code, 8, 7);
}
inline double f16(uint16_t code) {
  return value_of(code, 5, 10);
}

// The e4m3 code nearest to x, ties to the even code, beyond 448 saturating: by trying all.
inline uint8_t nearest_e4m3(double x) {
  uint8_t best = 0;
  for (uint8_t code = 1; code < 0x7F; ++code) {
    const double now = std::fabs(e4m3(code) - std::fabs(x)), before = std::fabs(e4m3(best) - std::fabs(x));
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return std::signbit(x) ? best | 0x80 : best;
}

// ---- weights ----------------------------------------------------------------------------------------------

enum class Scales { None, F32, Bf16, F16 };

// A matrix in memory of its own, and what its elements are worth.
struct Weight {
  lite::Tensor tensor;
  std::vector<double> value;  // [rows * cols]
  int64_t rows = 0, cols = 0;
  std::shared_ptr<std::vector<std::byte>> data, scales;

  double at(int64_t i, int64_t j) const { return value[i * cols + j]; }
  double norm(int64_t i) const {  // of a row
    double sum = 0;
    for (int64_t j = 0; j < cols; ++j) sum += at(i, j) * at(i, j);
    return std::sqrt(sum);
  }
};

// Random codes of a type; with scales, one for every block of block_rows x block_cols. The matrix is cut out
// of one that has row0 more rows above and col0 more columns to the left, and some to the right and below.
struct WeightOptions {
  lite::DType dtype = lite::DType::F32;
  Scales scales = Scales::None;
  int64_t row0 = 0, col0 = 0, block_rows = 128, block_cols = 128;
  double magnitude = 1;
};

inline Weight make_weight(Rng& rng, int64_t rows, int64_t cols, const WeightOptions& o = {}) {
  const bool cut = o.row0 || o.col0;
  const int64_t all_rows = rows + o.row0 + (cut ? 3 : 0), all_cols = cols + o.col0 + (cut ? 5 : 0);
  Weight w{{}, std::vector<double>(rows * cols), rows, cols, nullptr, nullptr};
  w.data = std::make_shared<std::vector<std::byte>>(all_rows * all_cols * lite::size_of(o.dtype));
  std::vector<double> full(all_rows * all_cols);
  for (size_t i = 0; i < full.size(); ++i) {
    const float x = rng.normal(o.magnitude);
    std::byte* to = w.data->data() + int64_t(i) * lite::size_of(o.dtype);
    const auto store = [to](auto code) { std::memcpy(to, &code, sizeof code); };
    switch (o.dtype) {
      case lite::DType::F32: store(x), full[i] = x; break;
      case lite::DType::BF16: {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        store(uint16_t(bits >> 16)), full[i] = bf16(uint16_t(bits >> 16));
        break;
      }
      case lite::DType::F16: {  // a random sign and mantissa, exponents 2^-6 .. 2^1, now and then a subnormal
        const uint16_t code =
            uint16_t((rng.bits() & 0x83FF) | (rng.below(16) ? rng.between(9, 16) : 0) << 10);
        store(code), full[i] = f16(code);
        break;
      }
      case lite::DType::F8_E4M3: {
        uint8_t code = uint8_t(rng.bits());
        if ((code & 0x7F) == 0x7F) code ^= 0x10;
        if (o.scales == Scales::None) code = uint8_t((code & 0x8F) | rng.between(3, 6) << 4);
        store(code), full[i] = e4m3(code);
        break;
      }
      default: REQUIRE(false);
    }
  }

  lite::Tensor t = lite::Tensor::of(o.dtype, {all_rows, all_cols});
  t.data = w.data->data();
  if (o.scales != Scales::None) {
    const int64_t grid_rows = lite::ceil_div(all_rows, o.block_rows),
                  grid_cols = lite::ceil_div(all_cols, o.block_cols);
    const int64_t size = o.scales == Scales::F32 ? 4 : 2;
    w.scales = std::make_shared<std::vector<std::byte>>(grid_rows * grid_cols * size);
    std::vector<double> grid(grid_rows * grid_cols);
    for (size_t i = 0; i < grid.size(); ++i) {
      const float scale = float(o.magnitude * (0.5 + rng.uniform()) / 100);
      uint32_t bits;
      std::memcpy(&bits, &scale, 4);
      const uint16_t half =
          o.scales == Scales::Bf16 ? uint16_t(bits >> 16) : uint16_t(rng.between(0x1800, 0x2800));
      grid[i] = o.scales == Scales::F32 ? scale : o.scales == Scales::Bf16 ? bf16(half) : f16(half);
      if (o.scales == Scales::F32)
        std::memcpy(w.scales->data() + i * 4, &scale, 4);
      else
        std::memcpy(w.scales->data() + i * 2, &half, 2);
    }
    for (int64_t i = 0; i < all_rows; ++i)
      for (int64_t j = 0; j < all_cols; ++j)
        full[i * all_cols + j] *= grid[i / o.block_rows * grid_cols + j / o.block_cols];
    t.scale.data = w.scales->data();
    t.scale.dtype = o.scales == Scales::F32    ? lite::DType::F32
                    : o.scales == Scales::Bf16 ? lite::DType::BF16
                                               : lite::DType::F16;
    t.scale.block_rows = o.block_rows;
    t.scale.block_cols = o.block_cols;
    t.scale.row_stride = grid_cols * size;
  }
  w.tensor = lite::slice_cols(lite::slice_rows(t, o.row0, rows), o.col0, cols);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) w.value[i * cols + j] = full[(o.row0 + i) * all_cols + o.col0 + j];
  return w;
}

// A matrix of given values, as f32; and a vector of any float type.
inline Weight matrix_of(const std::vector<float>& values, int64_t rows, int64_t cols) {
  Weight w{{}, {values.begin(), values.end()}, rows, cols, nullptr, nullptr};
  w.data = std::make_shared<std::vector<std::byte>>(values.size() * 4);
  std::memcpy(w.data->data(), values.data(), values.size() * 4);
  w.tensor = lite::Tensor::of(lite::DType::F32, {rows, cols});
  w.tensor.data = w.data->data();
  return w;
}
inline Weight make_vector(Rng& rng, int64_t n, lite::DType dtype, double magnitude = 1) {
  Weight w = make_weight(rng, 1, n, {.dtype = dtype, .magnitude = magnitude});
  w.tensor = lite::Tensor::of(dtype, {n});
  w.tensor.data = w.data->data();
  return w;
}
inline Weight vector_of(const std::vector<float>& values) {
  Weight w = matrix_of(values, 1, int64_t(values.size()));
  w.tensor = lite::Tensor::of(lite::DType::F32, {int64_t(values.size())});
  w.tensor.data = w.data->data();
  return w;
}

// A row of activations as `rounding` says, in double; groups of 128 from the row's start. *close is set when
// a value is nearer to the border between two codes than f32 can tell; then either code is right.
inline std::vector<double> rounded(lite::Rounding rounding, const std::vector<double>& x, bool* close) {
  std::vector<double> y(x.size());
  for (size_t first = 0; first < x.size(); first += 128) {
    const size_t end = std::min(x.size(), first + 128);
    double scale = 1e-4;
    for (size_t i = first; i < end; ++i) scale = std::max(scale, std::fabs(x[i]));
    scale /= 448;
    if (rounding == lite::Rounding::F8PowerOfTwo) scale = std::exp2(std::ceil(std::log2(scale)));
    for (size_t i = first; i < end; ++i) {
      const double q = x[i] / scale, border = 5e-5 + 1e-6 * std::fabs(q);
      y[i] = e4m3(nearest_e4m3(q)) * scale;
      if (e4m3(nearest_e4m3(q - border)) != e4m3(nearest_e4m3(q + border))) *close = true;
    }
  }
  return y;
}

// ---- the backend under test

// DSV3_TEST_BACKEND: "ref" (default), or an instruction-set path of the fast backend and a phase, "avx2:prompt", or
// "cuda:prompt", whose kernels run on the host. Both are tested in exact mode: the bounds are those of f32. "cuda-fast:prompt"
// or "amx-fast:prompt" rounds activations to bf16 or f16 where it multiplies them so. "best:prompt": the machine's best path.
struct TestedBackend {
  bool reference = true, cuda = false, fast = false;
  lite::Isa isa = lite::Isa::Portable;
  lite::Phase phase = lite::kPrompt;

  std::unique_ptr<lite::Backend> make(int threads) const {
    if (reference) return lite::make_ref_backend(threads);
    if (cuda) {
      auto backend = lite::make_cuda_backend(threads % 2, !fast);
      if (backend.status().code() == lite::Code::NotFound)
        backend = lite::make_cuda_backend(0, !fast);  // there is one
      REQUIRE_MESSAGE(backend.ok(), backend.status().message());
      return std::move(*backend);
    }
    return lite::make_cpu_backend({threads, isa, !fast});
  }
};

inline const TestedBackend& tested_backend() {
  static const TestedBackend tested = [] {
    TestedBackend t;
    const char* text = std::getenv("DSV3_TEST_BACKEND");
    const std::string name = text ? text : "ref";
    if (name == "ref") return t;
    constexpr int kSkipped = 77;  // as ctest knows it
    const size_t colon = name.find(':');
    std::string device = name.substr(0, colon);
    t.fast = device.ends_with("-fast");
    if (t.fast) device.resize(device.size() - 5);
    t.cuda = device == "cuda";
    const auto isa = device == "best" ? lite::best_isa() : lite::isa_from_name(device);
    if ((!isa.ok() && !t.cuda) || colon == std::string::npos) {
      std::printf(
          "DSV3_TEST_BACKEND: got \"%s\", expected ref, or an instruction set or cuda, maybe -fast, and "
          ":decode or :prompt\n",
          text);
      std::exit(1);
    }
    t.reference = false;
    t.phase = name.substr(colon + 1) == "decode" ? lite::kDecode : lite::kPrompt;
    if (t.cuda) return t;
    if (!lite::isa_usable(*isa)) {
      std::printf("skipped: this machine has no %s\n", lite::isa_name(*isa));
      std::exit(kSkipped);
    }
    if (t.fast && *isa < lite::Isa::Avx512Bf16) {
      std::printf("skipped: %s is exact in the fast mode, too\n", lite::isa_name(*isa));
      std::exit(kSkipped);
    }
    t.isa = *isa;
    return t;
  }();
  return tested;
}

// ---- running a graph --------------------------------------------------------------------------------------

#ifdef DSV3_SANITIZED  // half the time; an even and an odd one, which are different GPUs
constexpr int kThreads[] = {2, 3};
#else
constexpr int kThreads[] = {1, 2, 3, 5};
#endif

// Runs one graph in memory where every storage stands alone between guards, all of it poisoned: what reads a
// dead row or scratch that was never written gives other results, what writes outside its place is found.
//
//   OpHarness h({.tokens = 5, .sequences = 2, .blocks = 3, .outputs = 2});
//   const Var x = h.activation(values, 5, 8);   // f32 [5, 8], its rows are the step's tokens
//   h.keep("y", h.b.silu_mul(x, x));
//   h.counts(3, 1, 0);
//   h.run();                                    // with 1, 2, 3 and 5 threads; the results must be the same
//   bits h.row("y", 2)[7]
class OpHarness {
 public:
  explicit OpHarness(const lite::StepLimits& limits) : b(&graph), limits_(limits) {
    in = b.step_inputs(limits);
    ids_.resize(limits.tokens);
    for (int64_t t = 0; t < limits.tokens; ++t) ids_[t] = int32_t(t);
    positions_.resize(limits.tokens);
    kv_rows_.resize(limits.tokens);
    seqs_.resize(limits.sequences * 3);
    blocks_.resize(limits.sequences * limits.blocks);
    out_rows_.resize(limits.outputs);
    counts(int32_t(limits.tokens), int32_t(limits.sequences), int32_t(limits.outputs));
  }

  lite::Graph graph;
  lite::Builder b;
  lite::StepInputs in;

  void counts(int32_t tokens, int32_t sequences, int32_t outputs) {
    counts_ = {tokens, sequences, outputs, tested_backend().phase};
  }
  std::vector<int32_t>& ids() { return ids_; }
  std::vector<int32_t>& positions() { return positions_; }
  std::vector<int32_t>& kv_rows() { return kv_rows_; }
  std::vector<int32_t>& seqs() { return seqs_; }      // [sequences][3]
  std::vector<int32_t>& blocks() { return blocks_; }  // [sequences][blocks]
  std::vector<int32_t>& out_rows() { return out_rows_; }

  // An f32 activation [tokens, n]: row t is row ids()[t] of `values`.
  lite::Var activation(const std::vector<float>& values, int64_t n) {
    return b.embed(weight(matrix_of(values, int64_t(values.size()) / n, n)), in.ids);
  }
  lite::Var weight(const Weight& w) {
    kept_alive_.push_back(w);
    return b.weight(w.tensor);
  }
  // An I32 matrix as the model's memory has it.
  lite::Var integers(std::vector<int32_t> values, int64_t rows, int64_t cols) {
    integers_.push_back(std::move(values));
    lite::Tensor t = lite::Tensor::of(lite::DType::I32, {rows, cols});
    t.data = reinterpret_cast<std::byte*>(integers_.back().data());
    return b.weight(t);
  }
  // A stream of `rows` rows of zeros, whose memory outlives the run: stream_bytes().
  lite::Var stream(lite::DType dtype, int64_t width, int64_t rows) {
    streams_.emplace_back(rows * width * lite::size_of(dtype));
    return b.stream(int32_t(streams_.size()) - 1, {"test", dtype, width, 0});
  }
  std::vector<std::byte>& stream_bytes(int i) { return streams_[i]; }
  void keep(const std::string& name, lite::Var v) {
    b.keep(v);
    kept_[name] = v;
  }

  // Runs with every number of threads; the kept values must come out as the same bits.
  void run(std::vector<int> threads = {std::begin(kThreads), std::end(kThreads)}) {
    REQUIRE_MESSAGE(b.status().ok(), b.status().message());
    const std::vector<std::vector<std::byte>> streams = streams_;
    std::map<std::string, std::vector<std::byte>> first;
    std::vector<std::vector<std::byte>> first_streams;
    if (tested_backend().cuda && threads.size() > 2)
      threads.resize(2);  // it has none: each kind of poison once
    for (size_t i = 0; i < threads.size(); ++i) {
      CAPTURE(threads[i]);
      streams_ = streams;
      run_once(threads[i], i % 2 == 1);
      for (const auto& kept : kept_) {
        const auto& name = kept.first;
        const auto& v = kept.second;
        const std::vector<std::byte> bytes = live_bytes(v);
        if (i == 0)
          first[name] = bytes;
        else
          CHECK_MESSAGE((first[name] == bytes), name << ": other bits with " << threads[i] << " threads");
      }
      if (i == 0)
        first_streams = streams_;
      else
        CHECK_MESSAGE((first_streams == streams_), "other streams with " << threads[i] << " threads");
    }
  }

  // Row t (and head h) of a kept value, after run().
  const float* row(const std::string& name, int64_t t, int64_t h = 0) const {
    const lite::Tensor& v = graph.tensor(kept_.at(name));
    return v.rank == 3 ? v.row<float>(t, h) : v.row<float>(t);
  }
  const int32_t* integer_row(const std::string& name, int64_t t) const {
    return graph.tensor(kept_.at(name)).row<int32_t>(t);
  }

 private:
  static constexpr int64_t kGuard = 256;

  // Every word of poison is another, so that copying some is seen too: NaNs, or finite numbers beyond 1e38.
  static uint32_t poison(int64_t word, bool finite) {
    return (finite ? 0x7F000000u : 0xFFC00000u) | (uint32_t(word) * 2654435761u >> 10 & 0x3FFFFF);
  }

  int64_t live(lite::Var v) const {
    const lite::Rows rows = graph.value(v).rows;
    if (rows == lite::Rows::Fixed) return graph.tensor(v).shape[0];
    return counts_[rows == lite::Rows::Tokens ? 0 : 2];
  }
  std::vector<std::byte> live_bytes(lite::Var v) const {
    const lite::Tensor& t = graph.tensor(v);
    return {t.data, t.data + live(v) * t.stride[0]};
  }

  void run_once(int threads, bool finite_poison) {
    const std::unique_ptr<lite::Backend> backend = tested_backend().make(threads);
    lite::Backend* const backends[] = {backend.get()};
    // A plan adds workspaces to the graph; take them away again for the next number of threads.
    const size_t n_values = graph.values.size(), n_storages = graph.storages.size();
    auto plan = lite::make_plan(&graph, backends);
    REQUIRE_MESSAGE(plan.ok(), plan.status().message());

    int64_t size = kGuard;
    for (size_t s = 0; s < graph.storages.size(); ++s) {
      plan->offset[s] = size;
      size = lite::round_up(size + graph.storages[s].bytes, 64) + kGuard;
    }
    arena_.resize(size_t(size) / 4 + 16);
    uint32_t* const base = arena_.data() + (64 - uintptr_t(arena_.data()) % 64) % 64 / 4;
    for (int64_t i = 0; i < size / 4; ++i) base[i] = poison(i, finite_poison);
    std::byte* const arenas[] = {reinterpret_cast<std::byte*>(base)};
    std::vector<std::byte*> streams;
    for (auto& stream : streams_) streams.push_back(stream.data());
    lite::bind(&graph, *plan, arenas, streams);
    fill(in.counts, counts_, lite::kCounts);
    fill(in.ids, ids_, counts_[0]);
    fill(in.positions, positions_, counts_[0]);
    fill(in.kv_rows, kv_rows_, counts_[0]);
    fill(in.seqs, seqs_, counts_[1] * 3);
    fill(in.blocks, blocks_, counts_[1] * limits_.blocks);
    fill(in.out_rows, out_rows_, counts_[2]);

    const std::atomic<bool> cancel = false;
    const lite::Status status = lite::run(graph, *plan, backends, cancel);
    REQUIRE_MESSAGE(status.ok(), status.message());
    check_untouched(base, size / 4, finite_poison);

    graph.values.resize(n_values);
    graph.storages.resize(n_storages);
    for (lite::Node& n : graph.nodes) n.workspace = lite::Var::none();
  }

  void fill(lite::Var v, const std::vector<int32_t>& from, int64_t n) {
    std::memcpy(graph.tensor(v).data, from.data(), size_t(n) * 4);
  }

  // Guards between storages, and the rows of results beyond the live ones, are still poison.
  void check_untouched(const uint32_t* base, int64_t words, bool finite) {
    std::vector<char> may_be_written(size_t(words), false);
    const auto word = [base](const std::byte* at) { return reinterpret_cast<const uint32_t*>(at) - base; };
    for (const lite::Storage& s : graph.storages) {
      const bool in_arena = s.kind != lite::Kind::Weight && s.kind != lite::Kind::Stream;
      if (in_arena) std::fill_n(may_be_written.begin() + word(s.data), s.bytes / 4, true);
    }
    for (const lite::Node& n : graph.nodes)
      for (const lite::Var v : n.out) {
        const lite::Tensor& t = graph.tensor(v);
        if (graph.storages[graph.value(v).storage].kind == lite::Kind::Stream) continue;
        const int64_t dead = (t.shape[0] - live(v)) * t.stride[0];
        std::fill_n(may_be_written.begin() + word(t.data + live(v) * t.stride[0]), dead / 4, false);
      }
    int64_t touched = 0;
    for (int64_t i = 0; i < words; ++i) touched += !may_be_written[i] && base[i] != poison(i, finite);
    CHECK_MESSAGE(touched == 0, touched << " words outside the live results were written");
  }

  lite::StepLimits limits_;
  std::vector<int32_t> counts_, ids_, positions_, kv_rows_, seqs_, blocks_, out_rows_;
  std::deque<Weight> kept_alive_;
  std::deque<std::vector<int32_t>> integers_;
  std::vector<std::vector<std::byte>> streams_;
  std::map<std::string, lite::Var> kept_;
  std::vector<uint32_t> arena_;
};

// Largest |got - expected| over a row, relative to the largest |expected|; infinite when something is not
// finite.
inline double row_error(const float* got, const std::vector<double>& expected) {
  double error = 0, largest = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    error = std::max(error, std::fabs(got[i] - expected[i]));
    largest = std::max(largest, std::fabs(expected[i]));
  }
  return error / largest;
}

constexpr double kRowTolerance =
    2e-6;  // norms, rotation, softmax, gate weights: relative to the row's largest
// A dot product of length n: relative to the product of the two vectors' norms. Rounding to bf16 moves each activation by
// at most 2^-8 of itself, and what is done in f16 is closer.
inline double dot_tolerance(int64_t n) {
  return 4e-7 * std::sqrt(double(n)) + (tested_backend().fast ? 0x1p-8 : 0);
}

inline double norm_of(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(x[i]) * x[i];
  return std::sqrt(sum);
}

}  // namespace test
