// What the parts of a model weigh: the tensors of a role in a layer, and every routed expert by itself.
#pragma once

#include <array>
#include <vector>

#include "model/model.h"

namespace dsv3 {

struct PartBytes {
  int64_t file = 0;    // in the packed file, with padding: what the host's memory maps
  int64_t copied = 0;  // of a copy on another device
  double read = 0;     // to decode one token; of an expert: on average

  PartBytes& operator+=(const PartBytes& other);
};

// A multi-token-prediction layer's own embedding and head are parts of that layer with roles Embed and Head.
class Parts {
 public:
  Parts() = default;
  explicit Parts(const Model& model);

  // layer -1: of no layer. Of routed experts: all of them.
  const PartBytes& of(int layer, Role role) const { return roles_[size_t(layer + 1)][size_t(role)]; }
  const PartBytes& expert(int layer, int expert) const { return experts_[size_t(layer)][size_t(expert)]; }
  // What a tied head needs of the embedding where that is on another device.
  int64_t tied() const { return tied_; }

 private:
  std::vector<std::array<PartBytes, kRoles>> roles_;
  std::vector<std::vector<PartBytes>> experts_;
  int64_t tied_ = 0;
};

}  // namespace dsv3
