// What a machine can do at most: the denominators of every share that is printed.
#pragma once

#include <memory>

#include "ggml-lite/backend.h"
#include "ggml-lite/cpu/isa.h"

namespace lite {

struct Ceilings {
  double read_GBps;      // memory read by all threads, each walking eight rows at once
  double f32_GFLOPS;     // multiply-adds in registers, two operations each
  double matrix_GFLOPS;  // of the path's widest bf16 arithmetic; f32_GFLOPS without one
};

// Measures with n_threads of a path, again and again: the machine's state changes from second to second, so a share is
// only worth reading against a ceiling of the same moment.
class CeilingMeter {
 public:
  // Takes 512 MiB, more than any cache. OutOfMemory.
  static Result<std::unique_ptr<CeilingMeter>> create(int n_threads, Isa isa);
  // Takes about 30 ms for each of the three.
  Ceilings measure();

 private:
  CeilingMeter(int n_threads, Isa isa, Buffer memory);

  int n_threads_;
  Isa isa_;
  Buffer memory_;
  int64_t next_ = 0;  // where the next reading begins, so that no cache helps
};

}  // namespace lite
