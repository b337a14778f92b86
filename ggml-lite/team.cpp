#include "ggml-lite/team.h"

namespace lite {

void TeamState::barrier(int size) {
  // About 20 us: longer than the threads of a step differ, shorter than a time slice of a busy machine.
  constexpr int kSpins = 2000;
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    waiting_.store(0, std::memory_order_relaxed);
    tail_.store(0, std::memory_order_relaxed);
    epoch_.store(epoch + 1, std::memory_order_release);
    epoch_.notify_all();
    return;
  }
  for (int i = 0; i < kSpins; ++i) {
    if (epoch_.load(std::memory_order_acquire) != epoch) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  while (epoch_.load(std::memory_order_acquire) == epoch) epoch_.wait(epoch, std::memory_order_acquire);
}

}  // namespace lite
