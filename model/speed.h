// How fast a placed model can decode at best.
#pragma once

#include <span>
#include <vector>

#include "model/parts.h"
#include "model/placement.h"

namespace dsv3 {

// Of one token.
struct DecodeSpeed {
  std::vector<double> read;  // bytes of weights and cached rows, by device
  double crossed = 0;        // bytes between devices
  int64_t crossings = 0;     // times that one waits for another
  double seconds = 0;
};

struct SpeedQuestion {
  bool mtp;
  int64_t context;  // cached rows before the token
  lite::DType kv;
  std::span<const double> bandwidth;  // bytes per second, by device
  double link;                        // and between any two
};

// Every device reaches its bandwidth; those that hold experts of one layer work side by side, all else follows one on the
// other.
DecodeSpeed decode_speed(const Config& config, const Parts& parts, const Placement& placement,
                         const SpeedQuestion& question);

}  // namespace dsv3
