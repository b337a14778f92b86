// What computes a model: the fast backend of the processors, the reference, or a GPU.
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
  // Makes the backend of a GPU, which then does all the work; none: the host does it.
  std::function<lite::Result<std::unique_ptr<lite::Backend>>()> gpu;
};

// What decides its bits, in at most 12 letters and digits: "ref", the instruction-set path, or "cuda". Saved sessions are
// bound to it.
const char* path_name(const Device& device);

// Backends by device number: the host, then the GPU if there is one. The last one does the work.
lite::Result<std::vector<std::unique_ptr<lite::Backend>>> make_backends(const Device& device, int n_threads,
                                                                        bool exact);

}  // namespace dsv3
