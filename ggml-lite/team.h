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

  // Calls body(i) for every i of 0..n-1, once by some thread: its share is each thread's own but for the last quarter, so that
  // it reads one stretch of memory, that of its node where weights are divided so (host_copy.h); the rest goes to whoever is
  // free, in turn from every share. At most one tasks() between barriers.
  template <class Body>
  void tasks(int64_t n, Body&& body) const {
    const auto share_of = [n, this](int64_t i) { return n * i / size; };
    const int64_t fewest = n / size, rest = size == 1 ? 0 : fewest / 4;
    const int64_t end = share_of(index + 1) - rest;
    for (int64_t i = share_of(index); i < end; ++i) body(i);
    if (rest == 0) return;
    for (int64_t i; (i = state->tail().fetch_add(1, std::memory_order_relaxed)) < rest * size;)
      body(share_of(i % size + 1) - rest + i / size);
  }
};

}  // namespace lite
