#include "ggml-lite/host.h"

#include <sys/mman.h>

namespace lite {

Result<Buffer> allocate_host(int64_t bytes) {
  const size_t size = size_t(round_up(std::max<int64_t>(bytes, 1), 4096));
  void* memory =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    return out_of_memory("allocate ", bytes, " bytes of memory: the system has not got them");
  return Buffer(static_cast<std::byte*>(memory), [size](std::byte* p) { munmap(p, size); });
}

}  // namespace lite
