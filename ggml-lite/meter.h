// What a device can do at most: the denominators of every share that is printed.
#pragma once

#include "ggml-lite/status.h"

namespace lite {

struct Ceilings {
  double read_GBps;   // the host: memory read by all threads; a GPU: its memory read and written by copying
  double f32_GFLOPS;  // multiply-adds in registers, two operations each
  double matrix_GFLOPS;  // of the widest bf16 arithmetic that prompts use; f32_GFLOPS without one
  double link_GBps = 0;  // a GPU: from the host's pinned memory
};

// Measures again and again: a machine's state changes from second to second, so a share is only worth reading against a
// ceiling of the same moment.
class Meter {
 public:
  virtual ~Meter() = default;
  // Takes about 60 ms for each ceiling. Device: a GPU's error.
  virtual Result<Ceilings> measure() = 0;
};

}  // namespace lite
