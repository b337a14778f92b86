// Blocks of a kernel's launch on the host: one after the other, the threads of each as fibers that take turns. A thread runs
// until it must wait for others; one that never waits costs no fiber of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace lite::cuda::host {

// The place of the kernel's thread that is running on this thread of the host.
struct Here {
  int block[3] = {0, 0, 0};
  int thread = 0, threads = 0;
  int blocks = 0;  // in the first direction
  std::byte* shared = nullptr;
};
extern thread_local Here here;

// Runs `kernel` once for every thread of every block.
void run_grid(int64_t x, int64_t y, int64_t z, int threads, int64_t shared_bytes,
              const std::function<void()>& kernel);
// The same, from the last block to the first.
void run_backwards(int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& kernel);

// As many blocks as are on this GPU at once: a level that has more gives some of them several.
constexpr int64_t kResidentBlocks = 24;

// Returns when every thread of the block has come.
void meet_block();

// What a lane has brought to an exchange of its warp.
struct Lane {
  static constexpr int kMost = 32;
  float value[kMost];
};
enum class Exchange { Shuffle, Sum };
// Returns, when every lane has come, what the 32 brought; of Sum the sums, in lane 0's place, as shuffles over the halves,
// quarters, ... make them. Holds until the lane's next exchange.
const Lane* meet_warp(const float* value, int n, Exchange exchange);

// The calling thread's copies of 16 bytes: started, made a group with those since the last commit, and done when all groups but
// the last n are waited for. Nothing arrives earlier.
void start_copy(void* to, const void* from);
void commit_copies();
void wait_copies(int n);

[[noreturn]] void fail(const char* what);

}  // namespace lite::cuda::host
