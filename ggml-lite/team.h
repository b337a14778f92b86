// The threads that run an op together, and what keeps them in step.
//
// A team lives for one OpenMP region. Every thread walks all nodes; an op splits its work with share() or tasks() and
// may meet at barriers. Which thread does a part never changes the part's result.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

namespace lite {

// What the threads of one region share.
class TeamState {
 public:
  // Returns when all `size` threads have come here: spins for some microseconds, then sleeps.
  void barrier(int size);
  std::atomic<int64_t>& tail() { return tail_; }

 private:
  alignas(64) std::atomic<int> waiting_ = 0;
  alignas(64) std::atomic<uint32_t> epoch_ = 0;
  alignas(64) std::atomic<int64_t> tail_ =
      0;  // tasks taken from the tail of the list; zero after every barrier
};

// One thread's place.
struct Team {
  int index, size;
  TeamState* state;

  // The part [first, second) of n items that is this thread's.
  std::pair<int64_t, int64_t> share(int64_t n) const { return {n * index / size, n * (index + 1) / size}; }

  void barrier() const {
    if (size > 1) state->barrier(size);
  }

  // Calls body(i) for every i of 0..n-1, once by some thread: three quarters are split beforehand, in order, so that
  // each thread reads one stretch of memory; the rest goes to whoever is free. At most one tasks() between barriers.
  template <class Body>
  void tasks(int64_t n, Body&& body) const {
    const int64_t split = size == 1 ? n : n - n / 4;
    const auto [first, end] = share(split);
    for (int64_t i = first; i < end; ++i) body(i);
    if (split == n) return;
    for (int64_t i; (i = split + state->tail().fetch_add(1, std::memory_order_relaxed)) < n;) body(i);
  }
};

}  // namespace lite
