// Which device does what: (layer, role) -> device. Device 0 is the host.
#pragma once

#include <array>
#include <vector>

#include "model/tensors.h"

namespace dsv3 {

class Placement {
 public:
  // Everything on the host.
  explicit Placement(const Config& config) : devices_(config.layers.size() + 1) {}

  // layer -1: of no layer (embedding, head).
  int device(int layer, Role role) const { return devices_[layer + 1][int(role)]; }

 private:
  std::vector<std::array<int, kRoles>> devices_;
};

}  // namespace dsv3
