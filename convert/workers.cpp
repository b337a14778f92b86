#include "convert/workers.h"

#include <chrono>
#include <condition_variable>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace dsv3 {

Status Progress::add(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  done_ += bytes;
  if (!cancelled_ && callbacks_.progress) cancelled_ = !callbacks_.progress(done_, total_);
  return cancelled_ ? Status(lite::Code::Cancelled, what_ + ": cancelled") : Status();
}

namespace {

class Jobs {
 public:
  Jobs(size_t n, const std::function<std::function<Status(size_t)>()>& make) : n_(n), make_(make) {}

  void start(size_t threads) {
    running_ = threads;
    for (size_t i = 0; i < threads; ++i) {
      try {
        threads_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {  // as many as there may be
        const std::lock_guard lock(mutex_);
        running_ -= threads - i;
        break;
      }
    }
    if (threads_.empty()) fail(n_, lite::out_of_memory("no thread could be started; try fewer"));
  }
  // Until no thread works any more, or a while has passed.
  bool wait() {
    std::unique_lock lock(mutex_);
    return ended_.wait_for(lock, std::chrono::milliseconds(200), [this] { return running_ == 0; });
  }
  void fail(size_t job, Status status) {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    if (error_.ok() || job < error_job_) {
      error_ = std::move(status);
      error_job_ = job;
    }
  }
  Status join() {
    for (std::thread& thread : threads_) thread.join();
    return error_;
  }

 private:
  void work() {
    size_t job = 0;
    try {
      const std::function<Status(size_t)> run = make_();
      while (!stop_ && (job = next_++) < n_)
        if (Status status = run(job); !status.ok()) fail(job, std::move(status));
    } catch (const std::bad_alloc&) {
      fail(job, lite::out_of_memory("the machine has no memory left; try fewer threads"));
    }
    const std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_all();
  }

  const size_t n_;
  const std::function<std::function<Status(size_t)>()>& make_;
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;  // of what follows
  std::condition_variable ended_;
  size_t running_ = 0;
  Status error_;
  size_t error_job_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace

Status run_jobs(size_t n, int threads, const std::function<std::function<Status(size_t)>()>& make,
                const std::function<Status()>& meanwhile) {
  const size_t cores = threads > 0 ? size_t(threads) : std::max(1u, std::thread::hardware_concurrency());
  Jobs jobs(n, make);
  jobs.start(std::max<size_t>(1, std::min(cores, n)));
  Status failure;
  while (!jobs.wait()) {
    if (!meanwhile || !failure.ok()) continue;
    failure = meanwhile();
    if (!failure.ok()) jobs.fail(0, failure);
  }
  return jobs.join();
}

}  // namespace dsv3
