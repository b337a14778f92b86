#include "model/device.h"

#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/ref/ref.h"

namespace dsv3 {

const char* path_name(const Device& device) {
  return device.reference ? "ref" : lite::isa_name(device.isa);
}

std::unique_ptr<lite::Backend> make_backend(const Device& device, int n_threads, bool exact) {
  if (device.reference) return lite::make_ref_backend(n_threads);
  return lite::make_cpu_backend({n_threads, device.isa, exact});
}

}  // namespace dsv3
