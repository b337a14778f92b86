// Parts of one piece of memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml-lite/status.h"

namespace lite {

// Hands out parts of a workspace, each at 64 bytes; with a null base only counts them.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    T* part = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ = round_up(used_ + count * int64_t(sizeof(T)), 64);
    return part;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

}  // namespace lite
