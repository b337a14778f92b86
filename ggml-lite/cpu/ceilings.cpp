#include "ggml-lite/cpu/ceilings.h"

#include <algorithm>
#include <chrono>

#include "ggml-lite/cpu/kernels.h"
#include "ggml-lite/host.h"

namespace lite {
namespace {

constexpr int64_t kMemory = int64_t(512) << 20, kRow = 2048, kGroup = 8 * kRow;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs part(thread) on every thread and returns the sum of what they return by the time until the last ends.
template <class Part>
double rate(int n_threads, Part&& part) {
  int64_t done = 0;
  const double start = now();
#pragma omp parallel num_threads(n_threads) reduction(+ : done)
  done += part(omp_get_thread_num(), omp_get_num_threads());
  return double(done) / (now() - start) / 1e9;
}

class CpuMeter final : public Meter {
 public:
  CpuMeter(int n_threads, Isa isa, Buffer memory)
      : n_threads_(n_threads), isa_(isa), memory_(std::move(memory)) {}
  Result<Ceilings> measure() override;

 private:
  int n_threads_;
  Isa isa_;
  Buffer memory_;
  int64_t next_ = 0;  // where the next reading begins, so that no cache helps
};

Result<Ceilings> CpuMeter::measure() {
  const cpu::Kernels& k = *cpu::kernels_of(isa_);
  constexpr double kSeconds = 0.03;
  Ceilings c = {};
  // Rounds for about kSeconds, by a trial of a hundredth.
  const auto products = [&](int64_t (*rounds)(int64_t)) {
    const double start = now();
    rounds(20000);
    const int64_t n = std::max<int64_t>(1, int64_t(20000 * kSeconds / std::max(now() - start, 1e-6)));
    return 2 * rate(n_threads_, [&](int, int) { return rounds(n); });
  };
  c.f32_GFLOPS = products(k.f32_rounds);
  c.matrix_GFLOPS = k.bf16_rounds ? products(k.bf16_rounds) : c.f32_GFLOPS;

  // An eighth of the memory at a time, in turn.
  const int64_t part = kMemory / 8, groups = part / kGroup;
  uint32_t seen = 0;
  c.read_GBps = rate(n_threads_, [&](int i, int n) {
    uint32_t mine = 0;
    for (int64_t g = groups * i / n; g < groups * (i + 1) / n; ++g)
      mine += k.read_rows(memory_.get() + next_ + g * kGroup, kRow);
#pragma omp atomic
    seen += mine;
    return groups * (i + 1) / n * kGroup - groups * i / n * kGroup;
  });
  next_ = (next_ + part) % kMemory;
  if (seen == 0) c.read_GBps = 0;  // cannot be: every page has a number; but now the reading is used
  return c;
}

}  // namespace

Result<std::unique_ptr<Meter>> make_cpu_meter(int n_threads, Isa isa) {
  LITE_ASSIGN(Buffer memory, allocate_host(kMemory));
  std::byte* const p = memory.get();
#pragma omp parallel for num_threads(n_threads)
  for (int64_t i = 0; i < kMemory; i += 4096)
    *reinterpret_cast<float*>(p + i) = 1;  // not the one page of zeros
  return std::unique_ptr<Meter>(new CpuMeter(n_threads, isa, std::move(memory)));
}

}  // namespace lite
