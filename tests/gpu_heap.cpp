// The heap of dsv3-gpu-ops: memory of the host that GPUs reach at the same addresses, so that what the op tests keep in vectors
// is what kernels read and write. Only for that program.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <memory_resource>
#include <new>

namespace {

constexpr size_t kBytes = size_t(4) << 30, kAlignment = 64;

using Pool = std::pmr::synchronized_pool_resource;

// In front of every piece.
struct Header {
  size_t bytes;
  Pool* pool;  // null: of malloc, asked for by CUDA itself before the pool was there
};
static_assert(sizeof(Header) <= kAlignment);

Pool* make_pool() {
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, kBytes, cudaHostAllocPortable | cudaHostAllocMapped);
  if (error != cudaSuccess) {
    std::fprintf(stderr, "dsv3-gpu-ops: no memory that a GPU reaches: %s\n", cudaGetErrorString(error));
    std::_Exit(1);
  }
  // Never destroyed: others give back memory when the program ends.
  alignas(16) static char places[sizeof(std::pmr::monotonic_buffer_resource) + sizeof(Pool) + 64];
  auto* const all =
      new (places) std::pmr::monotonic_buffer_resource(memory, kBytes, std::pmr::null_memory_resource());
  char* const after = places + (sizeof *all + 15) / 16 * 16;
  return new (after) Pool({0, size_t(64) << 20}, all);
}

Pool* pool() {
  static thread_local bool making = false;
  if (making) return nullptr;
  making = true;
  static Pool* const only = make_pool();
  making = false;
  return only;
}

void give_back(void* p) {
  if (!p) return;
  auto* const header = reinterpret_cast<Header*>(static_cast<char*>(p) - kAlignment);
  if (header->pool)
    header->pool->deallocate(header, header->bytes, kAlignment);
  else
    std::free(header);
}

}  // namespace

void* operator new(size_t bytes) {
  bytes += kAlignment;
  Pool* const from = pool();
  void* const place = from ? from->allocate(bytes, kAlignment) : std::malloc(bytes);
  if (!place) throw std::bad_alloc();
  new (place) Header{bytes, from};
  return static_cast<char*>(place) + kAlignment;
}
void operator delete(void* p) noexcept {
  give_back(p);
}
void operator delete(void* p, size_t) noexcept {
  give_back(p);
}
