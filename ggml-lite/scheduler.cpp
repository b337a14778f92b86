#include "ggml-lite/scheduler.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace lite {
namespace {

using Clock = std::chrono::steady_clock;

Status cancelled() {
  return Status(Code::Cancelled, "evaluation cancelled");
}

class Step {
 public:
  Step(const Graph& g, const Plan& plan, std::span<Backend* const> backends, const std::atomic<bool>& cancel)
      : g_(g),
        plan_(plan),
        backends_(backends),
        cancel_(cancel),
        finished_(plan.finished ? g.tensor(plan.finished).row<int32_t>(0) : nullptr) {}

  Status start() {
    if (finished_) std::fill_n(finished_, plan_.segments.size(), kPending);
    for (size_t device = 0; device < backends_.size(); ++device) {
      if (!backends_[device]->asynchronous() || last_of(int(device)) < 0) continue;
      if (cancel_.load(std::memory_order_relaxed)) return cancelled();
      LITE_TRY(backends_[device]->start(g_, plan_, int(device)));
    }
    return {};
  }

  // The segments of all other devices. Then nobody waits for the host any more.
  Status run_here() {
    for (size_t s = 0; s < plan_.segments.size(); ++s) {
      const Segment& segment = plan_.segments[s];
      if (backends_[segment.device]->asynchronous()) continue;
      for (const int32_t needed : segment.after) {
        const Clock::time_point begin = Clock::now();
        LITE_TRY(await(needed));
        waited += std::chrono::duration<double>(Clock::now() - begin).count();
      }
      LITE_TRY(backends_[segment.device]->run(g_, segment, cancel_));
      if (finished_) tell(s, kDone);
    }
    // One that fails leaves others waiting, so nobody is waited for as a whole before it has said that it is done.
    for (size_t device = 0; finished_ && device < backends_.size(); ++device)
      if (const int32_t last = last_of(int(device)); last >= 0) LITE_TRY(await(last));
    return {};
  }

  // Whoever waits goes on, and has nothing to do.
  void stop() {
    for (size_t s = 0; finished_ && s < plan_.segments.size(); ++s) tell(s, kStopped);
  }

  double waited = 0;  // seconds

 private:
  int32_t last_of(int device) const {
    int32_t s = int32_t(plan_.segments.size()) - 1;
    while (s >= 0 && plan_.segments[s].device != device) --s;
    return s;
  }

  void tell(size_t segment, Finished what) {
    std::atomic_ref(finished_[segment]).store(what, std::memory_order_release);
  }

  // Spins for some microseconds, then lets others have the processor; looks now and then whether a device has failed.
  Status await(int32_t segment) {
    constexpr int kSpins = 2000;
    constexpr auto kBetween = std::chrono::milliseconds(1);
    const std::atomic_ref finished(finished_[segment]);
    for (int i = 0; i < kSpins; ++i) {
      if (finished.load(std::memory_order_acquire) != kPending) return {};
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    for (Clock::time_point looked; finished.load(std::memory_order_acquire) == kPending;) {
      if (cancel_.load(std::memory_order_relaxed)) return cancelled();
      if (const Clock::time_point now = Clock::now(); now - looked >= kBetween) {
        for (Backend* backend : backends_) LITE_TRY(backend->poll());
        looked = now;
      }
      std::this_thread::yield();
    }
    return {};
  }

  const Graph& g_;
  const Plan& plan_;
  std::span<Backend* const> backends_;
  const std::atomic<bool>& cancel_;
  int32_t* finished_;
};

}  // namespace

Status prepare(const Graph& graph, const Plan& plan, std::span<Backend* const> backends,
               std::span<const Phase> phases) {
  for (size_t device = 0; device < backends.size(); ++device)
    LITE_TRY(backends[device]->prepare(graph, plan, int(device), phases));
  return {};
}

Status run(const Graph& graph, const Plan& plan, std::span<Backend* const> backends,
           const std::atomic<bool>& cancel, Crossings* crossings) {
  std::unique_lock<std::recursive_mutex> alone;
  if (plan.finished)
    for (Backend* backend : backends)
      if (!alone) alone = backend->alone();
  Step step(graph, plan, backends, cancel);
  Status status = step.start();
  if (status.ok()) status = step.run_here();
  if (!status.ok()) step.stop();
  // Also after an error every device must be done with the memory, which is the caller's again.
  for (Backend* backend : backends) {
    Status waited = backend->wait();
    if (status.ok()) status = std::move(waited);
  }
  if (crossings && plan.finished) {
    const int32_t* counts = graph.tensor(graph.counts).row<int32_t>(0);
    crossings->count += plan.crossings;
    crossings->bytes += plan.crossing_bytes[size_t(Rows::Fixed)] +
                        plan.crossing_bytes[size_t(Rows::Tokens)] * counts[kTokens] +
                        plan.crossing_bytes[size_t(Rows::Outputs)] * counts[kOutputs];
    crossings->waited += step.waited;
  }
  return status;
}

}  // namespace lite
