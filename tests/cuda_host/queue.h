// What is behind a Stream of cuda/runtime.h on the host: work is done at once, in the thread that gives it, or recorded.
#pragma once

#include <functional>
#include <vector>

#include "cuda/runtime.h"

namespace lite::cuda::host {

class Queue {
 public:
  void give(std::function<void()> work) {
    if (recording_)
      recorded_.push_back(std::move(work));
    else
      work();
  }
  void begin_recording() {
    recording_ = true;
    recorded_.clear();
  }
  std::vector<std::function<void()>> end_recording() {
    recording_ = false;
    return std::exchange(recorded_, {});
  }

 private:
  bool recording_ = false;
  std::vector<std::function<void()>> recorded_;
};

inline Queue& queue_of(const Stream& stream) {
  return *static_cast<Queue*>(stream.handle());
}

}  // namespace lite::cuda::host
