// Which device does what: (layer, role) -> device. Device 0 is the host.
#pragma once

#include <array>
#include <vector>

#include "model/tensors.h"

namespace dsv3 {

class Placement {
 public:
  // Everything on one device.
  Placement(const Config& config, int device) : devices_(config.layers.size() + 1) {
    for (auto& roles : devices_) roles.fill(device);
  }

  // layer -1: of no layer (embedding, head).
  int device(int layer, Role role) const { return devices_[layer + 1][int(role)]; }

 private:
  std::vector<std::array<int, kRoles>> devices_;
};

}  // namespace dsv3
