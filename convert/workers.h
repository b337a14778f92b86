// Independent jobs on all cores.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>

#include "convert/convert.h"

namespace dsv3 {

using lite::Status;

// Bytes done of all, told to the caller's callback from whichever thread comes.
class Progress {
 public:
  Progress(const ConvertCallbacks& callbacks, std::string what, int64_t done, int64_t total)
      : callbacks_(callbacks), what_(std::move(what)), done_(done), total_(total) {}

  Status add(int64_t bytes);  // Cancelled when the callback says so, and from then on

 private:
  const ConvertCallbacks& callbacks_;
  const std::string what_;
  std::mutex mutex_;
  int64_t done_;
  const int64_t total_;
  bool cancelled_ = false;
};

// Does jobs 0 to n - 1, taken in this order, on `threads` threads (0: one for each core); `make` gives each thread
// its own function. `meanwhile`, if there is one, is called on the calling thread several times a second. Ends
// early with the error of the first job that failed.
Status run_jobs(size_t n, int threads, const std::function<std::function<Status(size_t)>()>& make,
                const std::function<Status()>& meanwhile = {});

}  // namespace dsv3
