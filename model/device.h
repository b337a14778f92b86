// What computes a model: the fast backend of the processors, or the reference, and GPUs beside it.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "ggml-lite/backend.h"
#include "ggml-lite/cpu/isa.h"

namespace dsv3 {

struct Device {
  bool reference = false;
  lite::Isa isa = lite::Isa::Portable;
  // Each makes the backend of a GPU; exact: as below.
  std::vector<std::function<lite::Result<std::unique_ptr<lite::Backend>>(bool exact)>> gpus;
};

// What decides the bits of the host's part: "ref", or the instruction-set path.
const char* path_name(const Device& device);

// Backends by device number: the host, then the GPUs. `exact`: f32 activations in every product.
lite::Result<std::vector<std::unique_ptr<lite::Backend>>> make_backends(const Device& device, int n_threads,
                                                                        bool exact);

}  // namespace dsv3
