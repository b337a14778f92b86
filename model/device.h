// What computes a model: the fast backend of the processors, or the reference.
#pragma once

#include <memory>

#include "ggml-lite/backend.h"
#include "ggml-lite/cpu/isa.h"

namespace dsv3 {

struct Device {
  bool reference = false;
  lite::Isa isa = lite::Isa::Portable;
};

// What decides its bits, in at most 12 letters and digits: "ref", or the instruction-set path. Saved sessions are bound to
// it.
const char* path_name(const Device& device);

std::unique_ptr<lite::Backend> make_backend(const Device& device, int n_threads, bool exact);

}  // namespace dsv3
