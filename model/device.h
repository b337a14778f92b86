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

std::unique_ptr<lite::Backend> make_backend(const Device& device, int n_threads, bool exact);

}  // namespace dsv3
