// Everything that kernels need of the processor: their place in the grid, shared memory, what the threads of a block or a
// warp do together, conversions, wide loads; and launch(). Nothing else in cuda/ names an intrinsic.
//
// Compiled by anything but nvcc, the same functions come from the twin in tests/cuda_host, which runs blocks on the host.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/plan/sizes.h"
#include "cuda/runtime.h"

namespace lite::cuda {

// Blocks of a launch.
struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

struct Words2 {
  uint32_t word[2];
};
struct Words4 {
  uint32_t word[4];
};
template <int n>
struct Words {
  uint32_t word[n];
};

}  // namespace lite::cuda

#ifndef __CUDACC__
#include <cuda_host/device.h>  // found in tests/
#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#define LITE_OUT_OF_LINE __noinline__

namespace lite::cuda {

// ---- places

__device__ inline int block_x() {
  return int(blockIdx.x);
}
__device__ inline int block_y() {
  return int(blockIdx.y);
}
__device__ inline int block_z() {
  return int(blockIdx.z);
}
// Read anew at every call: in a kernel of many parts, what all of them make of it must not live in registers throughout.
__device__ inline int thread() {
  int place;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(place));
  return place;
}
__device__ inline int threads() {
  return int(blockDim.x);
}

__device__ inline int blocks() {  // in the first direction
  return int(gridDim.x);
}

// The block's shared memory, as much as the launch asked for; aligned to 16 bytes, not initialised.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<T*>(memory);
}

// ---- together: every thread of the block, or every lane of the warp, must come

__device__ inline void sync_block() {
  __syncthreads();
}
__device__ inline float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFF, value, mask);
}
__device__ inline int shuffle_xor(int value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFF, value, mask);
}
// Every thread of the grid must come; only kernels that launch_levels() started have it.
__device__ inline void sync_grid() {
  cooperative_groups::this_grid().sync();
}
// What the warp's lanes wrote before is seen by all of them after.
__device__ inline void sync_warp() {
  __syncwarp();
}
// Sums over the lanes of n values at once, in a fixed order; every lane gets them.
template <int n>
__device__ void warp_sum(float (&value)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i)
    for (int mask = kWarp / 2; mask > 0; mask /= 2) value[i] += shuffle_xor(value[i], mask);
}

// The same sums, of which a lane gets one: that of value[lane / (32 / n)]. n is a power of two, at most 32.
template <int n, int mask = kWarp / 2>
__device__ float warp_sums(const float (&value)[n]) {
  if constexpr (mask == 0) {
    return value[0];
  } else {
    constexpr int left = n > 1 ? n / 2 : 1;
    const bool upper = n > 1 && thread() & mask;
    float sum[left];
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const float other = value[n - left + i];
      sum[i] = (upper ? other : value[i]) + shuffle_xor(upper ? value[i] : other, mask);
    }
    return warp_sums<left, mask / 2>(sum);
  }
}

// ---- conversions: exact from, and to the nearest (even among two); too large for e4m3 becomes 448

__device__ inline float f32_of_bf16(uint16_t bits) {
  return __uint_as_float(uint32_t(bits) << 16);
}
__device__ inline float f32_of_f16(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
__device__ inline float f32_of_e4m3(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}
__device__ inline uint16_t bf16_of(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ inline uint16_t f16_of(float value) {
  return __half_as_ushort(__float2half_rn(value));
}
__device__ inline uint8_t e4m3_of(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}
// Four codes of a word, the lowest byte first.
__device__ uint32_t f16x2_of_e4m3x2(uint32_t codes);
__device__ inline void f32_of_e4m3x4(uint32_t codes, float* to) {
#if __CUDA_ARCH__ >= 890
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const __half2 pair(__nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(codes >> 16 * i), __NV_E4M3));
    to[2 * i] = __low2float(pair);
    to[2 * i + 1] = __high2float(pair);
  }
#else
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t bits = f16x2_of_e4m3x2(codes >> 8 * i);
    const __half2 pair = __hmul2(reinterpret_cast<const __half2&>(bits), __float2half2_rn(256.0f));
    to[i] = __low2float(pair);
    to[2 + i] = __high2float(pair);
  }
#endif
}
__device__ inline uint32_t bits_of(float value) {
  return __float_as_uint(value);
}
__device__ inline float f32_of_bits(uint32_t bits) {
  return __uint_as_float(bits);
}

// Two values in a word, the first in its lower half.
__device__ inline uint32_t bf16x2_of(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return reinterpret_cast<const uint32_t&>(pair);
}
// The products of two such pairs.
__device__ inline uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  const __nv_bfloat162 pair =
      __hmul2(reinterpret_cast<const __nv_bfloat162&>(a), reinterpret_cast<const __nv_bfloat162&>(b));
  return reinterpret_cast<const uint32_t&>(pair);
}
// Byte i is that byte of `value` which hexadecimal digit i of `selector` names, from the lowest; 4 names a zero.
__device__ inline uint32_t select_bytes(uint32_t value, uint32_t selector) {
  return __byte_perm(value, 0, selector);
}

// ---- memory

// 8 or 16 bytes at an address that is a multiple of as many.
__device__ inline Words2 load8(const void* at) {
  const uint2 v = *static_cast<const uint2*>(at);
  return {{v.x, v.y}};
}
__device__ inline Words4 load16(const void* at) {
  const uint4 v = *static_cast<const uint4*>(at);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ inline void store16(void* at, const Words4& words) {
  *static_cast<uint4*>(at) = make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]);
}

// Words by which devices and the host wait for each other. Whoever loads what another has stored here sees all that it, and
// the kernels before it on its stream, had written until then.
__device__ inline int32_t load_acquire(const int32_t* at) {
  int32_t value;
  asm volatile("ld.acquire.sys.global.s32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ inline void store_release(int32_t* at, int32_t value) {
  asm volatile("st.release.sys.global.s32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
// Lets some time pass before the next look at such a word.
__device__ inline void pause() {
  __nanosleep(100);
}

// n words at an address that is a multiple of their size. load_once() is for what no kernel writes and nobody reads again soon.
template <int n>
__device__ Words<n> load(const void* at) {
  Words<n> to;
  if constexpr (n == 1) {
    to.word[0] = *static_cast<const uint32_t*>(at);
  } else if constexpr (n == 2) {
    const uint2 v = *static_cast<const uint2*>(at);
    to.word[0] = v.x, to.word[1] = v.y;
  } else {
    const uint4 v = *static_cast<const uint4*>(at);
    to.word[0] = v.x, to.word[1] = v.y, to.word[2] = v.z, to.word[3] = v.w;
  }
  return to;
}
template <int n>
__device__ Words<n> load_once(const void* at) {
  Words<n> to;
  if constexpr (n == 1)
    asm("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(to.word[0]) : "l"(at));
  else if constexpr (n == 2)
    asm("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];" : "=r"(to.word[0]), "=r"(to.word[1]) : "l"(at));
  else
    asm("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
        : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
        : "l"(at));
  return to;
}

// Starts to copy 16 bytes to shared memory, between addresses that are multiples of 16. The copies started since the last
// commit are a group; wait_copies<n>() returns when all of the thread's groups but the last n have arrived.
__device__ inline void copy16_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int n>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// ---- products by the matrix unit

// d += a b by a warp, sums in f32: a [16, 16] and b [16, 8] of bf16, d [16, 8]. A lane has, with g = lane / 4 and
// i = lane % 4 * 2 (PTX ISA, mma.m16n8k16):
//   a  rows g, g + 8, g, g + 8 by pairs of columns i, i, i + 8, i + 8
//   b  column g by pairs of rows i, i + 8
//   d  (g, i), (g, i + 1), (g + 8, i), (g + 8, i + 1)
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// By a warp: four matrices [8, 8] of 2-byte elements from shared memory. A lane names row lane % 8 of matrix lane / 8, at a
// multiple of 16 bytes, and gets of every matrix the elements (lane / 4, lane % 4 * 2) and the next in its row, as
// multiply() takes them; of the transposed one (lane % 4 * 2, lane / 4) and the next in its column.
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// ---- launches

// Whether this program has code of the kernel for the calling thread's GPU.
template <class... P>
bool has_code(void (*kernel)(P...)) {
  cudaFuncAttributes attributes;
  const bool has = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  if (!has) cudaGetLastError();  // it has been told
  return has;
}

// Beyond kSharedBytes a kernel must be allowed what it asks for. Always the most: it holds for every launch, recorded ones too.
template <class... P>
void allow_shared(void (*kernel)(P...), int64_t shared) {
  if (shared > kSharedBytes)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kSharedMost));
}

// Gives the stream a kernel: `grid` blocks of `threads`, each with `shared` bytes. A grid without blocks is none. What goes
// wrong is told by Stream::end_recording() or wait().
template <class... P, class... A>
void launch(void (*kernel)(P...), Grid grid, int threads, int64_t shared, Stream& stream, const A&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  allow_shared(kernel, shared);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared);
  config.stream = cudaStream_t(stream.handle());
  cudaLaunchKernelEx(&config, kernel, P(args)...);
}

// The same for a kernel(first, end, args...) that does levels [first, end), the blocks of each dealt out to as many as fit on
// the GPU at once, with sync_grid() in between. blocks_of_level: how many each level has.
template <class... P, class... A>
void launch_levels(void (*kernel)(int, int, P...), const std::vector<int64_t>& blocks_of_level, int threads,
                   int64_t shared, Stream& stream, const A&... args) {
  if (blocks_of_level.empty()) return;
  allow_shared(kernel, shared);
  int processors = 0, each = 0;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, stream.device());
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, size_t(shared));
  const int64_t most = *std::max_element(blocks_of_level.begin(), blocks_of_level.end());
  cudaLaunchAttribute together = {};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(std::min<int64_t>(most, int64_t(processors) * each)));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared);
  config.stream = cudaStream_t(stream.handle());
  config.attrs = &together;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, 0, int(blocks_of_level.size()), P(args)...);
}

}  // namespace lite::cuda
#endif

namespace lite::cuda {

// Codes in bytes 0 and 2 as two f16 of 1/256 of their value, by shifts: for what cannot convert by itself (before sm_89).
// The code of NaN gets the exponent of one.
__device__ inline uint32_t f16x2_of_e4m3x2(uint32_t codes) {
  const uint32_t magnitude = codes & 0x007F007F, nan = (magnitude + 0x00010001) & 0x00800080;
  return (codes & 0x00800080) << 8 | magnitude << 7 | nan << 7;
}

}  // namespace lite::cuda
