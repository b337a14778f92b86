// The twin of cuda/device.h for compilers of the host: the same functions, by which kernels run on a processor. A block's
// threads are fibers (block.h). It is test equipment: slow, strict, and without a GPU.
//
// Stricter than a GPU: shared memory begins as NaNs and ends at the asked byte, wide loads must be aligned, every thread of a
// block must come to a barrier and every lane of a warp to the same exchange; else the process ends with a message.
#pragma once

#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include "ggml-lite/dtype.h"
#include "tests/cuda_host/block.h"
#include "tests/cuda_host/queue.h"

#define __global__
#define __device__
#define __host__
#define __restrict__
#define __launch_bounds__(...)
#define LITE_OUT_OF_LINE

namespace lite::cuda {

using std::max;  // of the language there
using std::min;

inline int block_x() {
  return host::here.block[0];
}
inline int block_y() {
  return host::here.block[1];
}
inline int block_z() {
  return host::here.block[2];
}
inline int thread() {
  return host::here.thread;
}
inline int threads() {
  return host::here.threads;
}
inline int blocks() {
  return host::here.blocks;
}
template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(host::here.shared);
}

inline void sync_block() {
  host::meet_block();
}
inline void sync_grid() {
  host::fail("a barrier of the grid: here every level is a grid of its own");
}
template <class T>
T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) == sizeof(float));
  float bits;
  std::memcpy(&bits, &value, sizeof bits);
  const host::Lane* lanes = host::meet_warp(&bits, 1, host::Exchange::Shuffle);
  std::memcpy(&value, lanes[(thread() % kWarp) ^ mask].value, sizeof bits);
  return value;
}
template <int n>
void warp_sum(float (&value)[n]) {
  static_assert(n <= host::Lane::kMost);
  std::memcpy(value, host::meet_warp(value, n, host::Exchange::Sum)[0].value, sizeof value);
}

template <int n>
float warp_sums(float (&value)[n]) {
  static_assert(n <= host::Lane::kMost && kWarp % n == 0);
  return host::meet_warp(value, n, host::Exchange::Sum)[0].value[thread() % kWarp / (kWarp / n)];
}
inline void sync_warp() {
  const float nothing = 0;
  host::meet_warp(&nothing, 1, host::Exchange::Shuffle);
}

inline float f32_of_bf16(uint16_t bits) {
  return f32_from_bf16(bits);
}
inline float f32_of_f16(uint16_t bits) {
  return f32_from_f16(bits);
}
inline float f32_of_e4m3(uint8_t code) {
  return f32_from_f8(code);
}
inline uint16_t bf16_of(float value) {
  return bf16_from_f32(value);
}
inline uint16_t f16_of(float value) {
  return f16_from_f32(value);
}
inline uint8_t e4m3_of(float value) {
  return f8_from_f32(value);
}
inline void f32_of_e4m3x4(uint32_t codes, float* to) {
  for (int i = 0; i < 4; ++i) to[i] = f32_from_f8(uint8_t(codes >> 8 * i));
}
inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float f32_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline Words2 load8(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 8 != 0)
    host::fail("a load of 8 bytes at an address that is no multiple of 8");
  Words2 words;
  std::memcpy(&words, at, sizeof words);
  return words;
}
inline Words4 load16(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0)
    host::fail("a load of 16 bytes at an address that is no multiple of 16");
  Words4 words;
  std::memcpy(&words, at, sizeof words);
  return words;
}
inline void store16(void* at, const Words4& words) {
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0)
    host::fail("a store of 16 bytes at an address that is no multiple of 16");
  std::memcpy(at, &words, sizeof words);
}

inline int32_t load_acquire(const int32_t* at) {
  return std::atomic_ref(*const_cast<int32_t*>(at)).load(std::memory_order_acquire);
}
inline void store_release(int32_t* at, int32_t value) {
  std::atomic_ref(*at).store(value, std::memory_order_release);
}
inline void pause() {
  std::this_thread::yield();
}

template <int n>
Words<n> load(const void* at) {
  Words<n> words;
  if (reinterpret_cast<uintptr_t>(at) % sizeof words != 0)
    host::fail("a load of words at an address that is no multiple of their size");
  std::memcpy(&words, at, sizeof words);
  return words;
}
template <int n>
Words<n> load_once(const void* at) {
  return load<n>(at);
}

inline uint32_t bf16x2_of(float first, float second) {
  return uint32_t(bf16_of(second)) << 16 | bf16_of(first);
}
inline uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  const auto half = [&](int shift) {
    return f32_of_bf16(uint16_t(a >> shift)) * f32_of_bf16(uint16_t(b >> shift));
  };
  return bf16x2_of(half(0), half(16));
}
inline uint32_t select_bytes(uint32_t value, uint32_t selector) {
  uint32_t to = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> 4 * i & 0xF;
    if (digit > 4) host::fail("bytes are selected by the digits 0 to 4");
    if (digit < 4) to |= (value >> 8 * digit & 0xFF) << 8 * i;
  }
  return to;
}

inline void copy16_async(void* shared, const void* global) {
  host::start_copy(shared, global);
}
inline void commit_copies() {
  host::commit_copies();
}
template <int n>
void wait_copies() {
  host::wait_copies(n);
}

inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  float words[6];
  std::memcpy(words, a, sizeof a);
  std::memcpy(words + 4, b, sizeof b);
  const host::Lane* lanes = host::meet_warp(words, 6, host::Exchange::Shuffle);
  // Element (row, column) of a and of b.
  const auto half = [&](int lane, int word, int upper) {
    return f32_of_bf16(uint16_t(bits_of(lanes[lane].value[word]) >> 16 * upper));
  };
  const auto of_a = [&](int row, int k) { return half(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2); };
  const auto of_b = [&](int k, int column) { return half(column * 4 + k % 8 / 2, 4 + k / 8, k % 2); };
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k)
      d[i] += of_a(thread() % kWarp / 4 + i / 2 * 8, k) * of_b(k, thread() % 4 * 2 + i % 2);
}

// Element (row, column) of matrix m is where the lane that named the row says.
template <class Element>
void load_matrices(uint32_t (&to)[4], const void* row, const Element& element) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    host::fail("a row of a matrix at an address that is no multiple of 16");
  float address[2];
  static_assert(sizeof row == sizeof address);
  std::memcpy(address, &row, sizeof row);
  const host::Lane* lanes = host::meet_warp(address, 2, host::Exchange::Shuffle);
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int k = 0; k < 2; ++k) {
      const auto [r, column] = element(thread() % kWarp / 4, thread() % 4 * 2 + k);
      const uint16_t* from;
      std::memcpy(&from, lanes[m * 8 + r].value, sizeof from);
      pair[k] = from[column];
    }
    to[m] = uint32_t(pair[1]) << 16 | pair[0];
  }
}
inline void load_matrices(uint32_t (&to)[4], const void* row) {
  load_matrices(to, row, [](int a, int b) { return std::pair(a, b); });
}
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  load_matrices(to, row, [](int a, int b) { return std::pair(b, a); });
}

template <class... P>
bool has_code(void (*)(P...)) {
  return true;
}

template <class... P, class... A>
void launch(void (*kernel)(P...), Grid grid, int threads, int64_t shared, Stream& stream, const A&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  host::queue_of(stream).give(
      [=] { host::run_grid(grid.x, grid.y, grid.z, threads, shared, [&] { kernel(P(args)...); }); });
}

// Each level as a grid of its own, its blocks from the last to the first: a level that should be two shows.
template <class... P, class... A>
void launch_levels(void (*kernel)(int, int, P...), const std::vector<int64_t>& blocks_of_level, int threads,
                   int64_t shared, Stream& stream, const A&... args) {
  for (int l = 0; l < int(blocks_of_level.size()); ++l) {
    const int64_t blocks = std::min(blocks_of_level[size_t(l)], host::kResidentBlocks);
    host::queue_of(stream).give(
        [=] { host::run_backwards(blocks, threads, shared, [&] { kernel(l, l + 1, P(args)...); }); });
  }
}

}  // namespace lite::cuda
