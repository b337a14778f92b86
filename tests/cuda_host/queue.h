// What is behind a Stream of cuda/runtime.h on the host: a thread that does the work it is given in order, while who gave it
// goes on; or, between begin_recording() and end_recording(), a list.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/runtime.h"

namespace lite::cuda::host {

int64_t allocated(int device);  // bytes of a GPU's memory that have been asked for so far

using Work = std::function<void()>;

class Queue;
// Of every queue that records together, its work.
using Recorded = std::map<Queue*, std::vector<Work>>;

class Queue {
 public:
  Queue() : thread_([this] { run(); }) {}
  ~Queue() {
    give_now(nullptr);
    thread_.join();
  }

  void give(Work work) {
    if (recorded_)
      (*recorded_)[this].push_back(std::move(work));
    else
      give_now(std::move(work));
  }
  void begin_recording() { record_with(std::make_shared<Recorded>()); }
  // From now on, until this recording's end.
  void record_with(std::shared_ptr<Recorded> recorded) {
    (*recorded)[this];
    recorded_ = std::move(recorded);
  }
  std::shared_ptr<Recorded> recorded() const { return recorded_; }  // or null
  std::shared_ptr<Recorded> end_recording() {
    const std::shared_ptr<Recorded> recorded = recorded_;
    for (const auto& [queue, work] : *recorded) queue->recorded_ = nullptr;
    return recorded;
  }
  static void replay(const std::shared_ptr<Recorded>& recorded) {
    for (const auto& [queue, work] : *recorded)
      queue->give_now([recorded, &works = work] {
        for (const Work& each : works) each();
      });
  }
  // Returns when all work is done.
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return work_.empty(); });
  }

 private:
  // An empty function ends the thread.
  void give_now(Work work) {
    const std::lock_guard lock(mutex_);
    work_.push_back(std::move(work));
    changed_.notify_all();
  }
  void run() {
    for (std::unique_lock lock(mutex_);;) {
      changed_.wait(lock, [this] { return !work_.empty(); });
      const Work work = work_.front();
      if (!work) return;
      lock.unlock();
      work();
      lock.lock();
      work_.pop_front();
      changed_.notify_all();
    }
  }

  std::shared_ptr<Recorded> recorded_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> work_;  // the first one is being done
  std::thread thread_;
};

// How often a queue has come to a place.
struct Passed {
  std::atomic<int64_t> times = 0;
  std::weak_ptr<Recorded> recorded;  // in which it is, and which holds it
};

inline Queue& queue_of(const Stream& stream) {
  return *static_cast<Queue*>(stream.handle());
}

}  // namespace lite::cuda::host
