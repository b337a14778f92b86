// What is behind a Stream of cuda/runtime.h on the host: a thread that does the work it is given in order, while who gave it
// goes on; or, between begin_recording() and end_recording(), a list.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/runtime.h"

namespace lite::cuda::host {

int64_t allocated(int device);  // bytes of a GPU's memory that have been asked for so far

using Work = std::function<void()>;

class Queue {
 public:
  Queue() : thread_([this] { run(); }) {}
  ~Queue() {
    give_now(nullptr);
    thread_.join();
  }

  void give(Work work) {
    if (recording_)
      recorded_.push_back(std::move(work));
    else
      give_now(std::move(work));
  }
  void begin_recording() { recording_ = true; }
  std::vector<Work> end_recording() {
    recording_ = false;
    return std::exchange(recorded_, {});
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

  bool recording_ = false;
  std::vector<Work> recorded_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> work_;  // the first one is being done
  std::thread thread_;
};

inline Queue& queue_of(const Stream& stream) {
  return *static_cast<Queue*>(stream.handle());
}

}  // namespace lite::cuda::host
