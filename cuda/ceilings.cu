// What a GPU can do at most.
#include <algorithm>
#include <chrono>

#include "cuda/cuda.h"
#include "cuda/device.h"

namespace lite {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMemory = int64_t(512) << 20;  // half is copied to the other half: far more than any cache
constexpr int64_t kPinned = int64_t(64) << 20;
constexpr int kLoads = 8;                                   // of 16 bytes, of a thread, under way at once
constexpr int64_t kPart = int64_t(kThreads) * kLoads * 16;  // bytes that a block copies

__global__ void copy_kernel(std::byte* memory) {
  std::byte* const from = memory + block_x() % (kMemory / 2 / kPart) * kPart + thread() * 16;
  Words4 words[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) words[i] = load16(from + i * kThreads * 16);
#pragma unroll
  for (int i = 0; i < kLoads; ++i) store16(from + kMemory / 2 + i * kThreads * 16, words[i]);
}

// Independent chains of each thread or warp, and the length of each.
constexpr int kChains = 8, kRounds = 256;

__global__ void f32_kernel(float* out) {
  float sum[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum[i] = float(thread() + i);
  const float x = 1.0f - float(thread()) * 1e-6f, y = float(block_x()) * 1e-6f;
  for (int round = 0; round < kRounds; ++round)
#pragma unroll
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * x + y;
  float all = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) all += sum[i];
  if (all == -1.0f) *out = all;  // never; but now the sums are used
}

__global__ void matrix_kernel(float* out) {
  const float x = float(thread() % 7) - 3, y = float(thread() % 5) - 2;
  const uint32_t a[4] = {bf16x2_of(x, y), bf16x2_of(y, x), bf16x2_of(x, -y), bf16x2_of(-y, x)};
  const uint32_t b[2] = {bf16x2_of(y, y), bf16x2_of(x, x)};
  float sum[kChains][4] = {};
  for (int round = 0; round < kRounds; ++round)
#pragma unroll
    for (int i = 0; i < kChains; ++i) multiply(sum[i], a, b);
  float all = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) all += sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3];
  if (all == -1.5f) *out = all;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class GpuMeter final : public Meter {
 public:
  GpuMeter(Stream stream, Buffer memory, Buffer pinned)
      : stream_(std::move(stream)), memory_(std::move(memory)), pinned_(std::move(pinned)) {}

  Result<Ceilings> measure() override {
    const auto alone = alone_with_driver();  // no step beside it, and to launch may load a kernel
    auto* const out = reinterpret_cast<float*>(memory_.get());
    const auto blocks = [&](auto kernel, auto* argument) {
      return [=, this](int64_t n) { launch(kernel, {n}, kThreads, 0, stream_, argument); };
    };
    Ceilings c = {};
    LITE_ASSIGN(c.read_GBps, rate(2.0 * kPart, blocks(copy_kernel, memory_.get())));
    LITE_ASSIGN(c.f32_GFLOPS, rate(2.0 * kThreads * kChains * kRounds, blocks(f32_kernel, out)));
    LITE_ASSIGN(c.matrix_GFLOPS,
                rate(2.0 * 16 * 8 * 16 * kThreads / kWarp * kChains * kRounds, blocks(matrix_kernel, out)));
    Status copied;
    LITE_ASSIGN(c.link_GBps, rate(double(kPinned), [&](int64_t n) {
                  for (int64_t i = 0; i < n && copied.ok(); ++i)
                    copied = copy(stream_.device(), memory_.get(), pinned_.get(), kPinned);
                }));
    LITE_TRY(copied);
    return c;
  }

 private:
  template <class Work>
  Result<double> seconds_of(int64_t n, const Work& work) {
    const double start = now();
    work(n);
    LITE_TRY(stream_.wait());
    return now() - start;
  }

  // work(n) gives the stream n times what counts `each`: twice as often until that takes long enough to be timed, and of that the
  // best of three. The first time of all is not counted: it may load a kernel and wake the GPU.
  template <class Work>
  Result<double> rate(double each, const Work& work) {
    LITE_TRY(seconds_of(1, work).status());
    for (int64_t n = 1;; n *= 2) {
      LITE_ASSIGN(double best, seconds_of(n, work));
      if (best < 0.01 && n < kGridX / 2) continue;
      for (int again = 0; again < 2; ++again) {
        LITE_ASSIGN(const double seconds, seconds_of(n, work));
        best = std::min(best, seconds);
      }
      return each * double(n) / best / 1e9;
    }
  }

  Stream stream_;
  Buffer memory_, pinned_;
};

}  // namespace
}  // namespace cuda

Result<std::unique_ptr<Meter>> make_cuda_meter(int device) {
  const auto alone = cuda::alone_with_driver();
  LITE_TRY(cuda::device_info(device).status());
  LITE_ASSIGN(cuda::Stream stream, cuda::Stream::create(device));
  LITE_ASSIGN(Buffer memory, cuda::allocate(device, cuda::kMemory));
  LITE_ASSIGN(Buffer pinned, cuda::allocate_pinned(device, cuda::kPinned));
  return std::unique_ptr<Meter>(new cuda::GpuMeter(std::move(stream), std::move(memory), std::move(pinned)));
}

}  // namespace lite
