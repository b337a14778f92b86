#include "tests/cuda_host/block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "cuda/device.h"
#include "tests/cuda_host/fiber.h"

namespace lite::cuda::host {

thread_local Here here;

void fail(const char* what) {
  std::fprintf(stderr, "kernel on the host: block %d %d %d, thread %d of %d: %s\n", here.block[0],
               here.block[1], here.block[2], here.thread, here.threads, what);
  std::abort();
}

namespace {

// Lanes on their way through one exchange. Two sets of places take turns: who is late still reads the last exchange's when
// others bring values to the next.
struct Warp {
  int arrived = 0, n = 0;
  uint64_t exchanges = 0;
  Exchange exchange = Exchange::Shuffle;
  Lane lane[2][kWarp];
};

// A copy that a thread has started; the group it belongs to.
struct StartedCopy {
  void* to;
  const void* from;
  int group;
};
// Of one thread.
struct Copies {
  std::deque<StartedCopy> started;
  int groups = 0;
};

// The block that is running: a pool of fibers, kept from block to block.
class Block {
 public:
  void run(const std::function<void()>& kernel) {
    kernel_ = &kernel;
    next_ = finished_ = at_barrier_ = 0;
    warps_.resize(size_t(here.threads + kWarp - 1) / kWarp);
    for (Warp& w : warps_) w.arrived = 0;
    copies_.assign(copies_.size(), {});
    start_fiber(&host_);
    if (finished_ != here.threads) fail("not all threads have finished");
  }

  void meet_block() {
    const uint64_t barrier = barriers_;
    if (++at_barrier_ == here.threads) {
      at_barrier_ = 0;
      ++barriers_;
      progress_ = 0;
      return;
    }
    wait_until([&] { return barriers_ != barrier; },
               "at a barrier that not all threads of the block come to");
  }

  const Lane* meet_warp(const float* value, int n, Exchange exchange) {
    Warp& w = warps_[size_t(here.thread / kWarp)];
    Lane* lanes = w.lane[w.exchanges % 2];
    if (w.arrived == 0) w.n = n, w.exchange = exchange;
    if (w.n != n || w.exchange != exchange) fail("the lanes of a warp have come to different exchanges");
    std::memcpy(lanes[here.thread % kWarp].value, value, size_t(n) * sizeof(float));
    const uint64_t mine = w.exchanges;
    if (++w.arrived == kWarp) {
      w.arrived = 0;
      ++w.exchanges;
      progress_ = 0;
      if (exchange == Exchange::Sum)
        for (int half = kWarp / 2; half > 0; half /= 2)
          for (int lane = 0; lane < half; ++lane)
            for (int i = 0; i < n; ++i) lanes[lane].value[i] += lanes[lane + half].value[i];
      return lanes;
    }
    wait_until([&] { return w.exchanges != mine; }, "in an exchange that not all lanes of the warp come to");
    return lanes;
  }

  Copies& copies() {
    copies_.resize(size_t(here.threads));
    return copies_[size_t(here.thread)];
  }

 private:
  // A fiber runs threads that have not begun, one after the other, until one of them waits; then the next fiber does.
  static void enter();
  void work() {
    while (next_ < here.threads) {
      here.thread = next_++;
      (*kernel_)();
      ++finished_;
      progress_ = 0;
    }
  }

  void start_fiber(Fiber* from) {
    if (idle_.empty()) {
      pool_.push_back(std::make_unique<Fiber>(&Block::enter));
      idle_.push_back(pool_.back().get());
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    running_ = fiber;
    Fiber::go(from, fiber);
  }

  template <class Done>
  void wait_until(const Done& done, const char* where) {
    const int me = here.thread;
    Fiber* const mine = running_;
    while (!done()) {
      waiting_.push_back(mine);
      if (next_ < here.threads) {
        start_fiber(mine);
      } else {
        Fiber* to = waiting_.front();
        waiting_.pop_front();
        if (to == mine || ++progress_ > 4 * int64_t(here.threads)) {
          here.thread = me;
          fail(where);
        }
        running_ = to;
        Fiber::go(mine, to);
      }
      here.thread = me;
      running_ = mine;
    }
  }

  const std::function<void()>* kernel_ = nullptr;
  int next_ = 0, finished_ = 0, at_barrier_ = 0;
  uint64_t barriers_ = 0;
  int64_t progress_ = 0;  // switches since anything happened that somebody may wait for
  std::vector<Warp> warps_;
  std::vector<Copies> copies_;  // by thread, once one has started any
  Fiber host_;                  // who called run()
  Fiber* running_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> pool_;
  std::vector<Fiber*> idle_;
  std::deque<Fiber*> waiting_;
};

thread_local Block block;

void Block::enter() {
  Fiber::entered();
  Block& b = block;
  for (;;) {
    Fiber* const mine = b.running_;
    b.work();
    // No thread is left to begin: somebody goes on who waited, or the block is done.
    Fiber* to = &b.host_;
    if (!b.waiting_.empty()) {
      to = b.waiting_.front();
      b.waiting_.pop_front();
    }
    b.idle_.push_back(mine);
    Fiber::go(mine, to);
  }
}

}  // namespace

void meet_block() {
  block.meet_block();
}

const Lane* meet_warp(const float* value, int n, Exchange exchange) {
  return block.meet_warp(value, n, exchange);
}

void start_copy(void* to, const void* from) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
    fail("a copy of 16 bytes between addresses that are no multiples of 16");
  Copies& mine = block.copies();
  mine.started.push_back({to, from, mine.groups});
}

void commit_copies() {
  ++block.copies().groups;
}

void wait_copies(int n) {
  Copies& mine = block.copies();
  for (; !mine.started.empty() && mine.started.front().group < mine.groups - n; mine.started.pop_front())
    std::memcpy(mine.started.front().to, mine.started.front().from, 16);
}

void run_grid(int64_t x, int64_t y, int64_t z, int threads, int64_t shared_bytes,
              const std::function<void()>& kernel) {
  if (x > kGridX || y > kGridYZ || z > kGridYZ) fail("more blocks than a grid can have");
  if (threads < 1 || threads > 1024 || threads % kWarp != 0)
    fail("a block has whole warps, and at most 1024 threads");
  if (shared_bytes > kSharedMost) fail("more shared memory than a block can have");
  const std::unique_ptr<std::byte[]> shared(new std::byte[size_t(shared_bytes)]);
  for (int64_t i = 0; i < z; ++i)
    for (int64_t j = 0; j < y; ++j)
      for (int64_t k = 0; k < x; ++k) {
        std::memset(shared.get(), 0xFF, size_t(shared_bytes));
        here = {{int(k), int(j), int(i)}, 0, threads, shared.get()};
        block.run(kernel);
      }
}

}  // namespace lite::cuda::host
