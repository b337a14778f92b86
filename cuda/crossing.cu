// How a GPU and others wait for each other within a step: by words that all of them see (Plan::finished).
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "ggml-lite/plan.h"

namespace lite::cuda {

namespace {

// Without live rows the kernels that follow do nothing, whatever was left where they would have read; the phase remembers why.
constexpr int32_t kStoppedPhase = -1;

__global__ void await_kernel(const int32_t* finished, int32_t* counts) {
  if (thread() != 0) return;
  int32_t what;
  while ((what = load_acquire(finished)) == kPending) pause();
  if (what != kStopped || !counts) return;
  counts[kTokens] = counts[kSequences] = counts[kOutputs] = 0;
  counts[kPhase] = kStoppedPhase;
}

__global__ void tell_kernel(int32_t* finished, const int32_t* counts) {
  if (thread() != 0) return;
  store_release(finished, counts && counts[kPhase] == kStoppedPhase ? kStopped : kDone);
}

}  // namespace

bool has_kernels() {
  return has_code(await_kernel);
}

void await_segment(const int32_t* finished, int32_t* counts, Stream& stream) {
  launch(await_kernel, {}, kWarp, 0, stream, finished, counts);
}

void tell_segment(int32_t* finished, const int32_t* counts, Stream& stream) {
  launch(tell_kernel, {}, kWarp, 0, stream, finished, counts);
}

}  // namespace lite::cuda
