#include "model/device.h"

#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/ref/ref.h"

namespace dsv3 {

const char* path_name(const Device& device) {
  return device.reference ? "ref" : lite::isa_name(device.isa);
}

lite::Result<std::vector<std::unique_ptr<lite::Backend>>> make_backends(const Device& device, int n_threads,
                                                                        bool exact) {
  std::vector<std::unique_ptr<lite::Backend>> backends;
  if (device.reference)
    backends.push_back(lite::make_ref_backend(n_threads));
  else
    backends.push_back(lite::make_cpu_backend({n_threads, device.isa, exact}));
  for (const auto& make : device.gpus) {
    LITE_ASSIGN(std::unique_ptr<lite::Backend> gpu, make(exact));
    backends.push_back(std::move(gpu));
  }
  return backends;
}

}  // namespace dsv3
