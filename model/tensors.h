// The one table of what a checkpoint holds: name, shape and role of every tensor. Converter, loader and `info`
// all read this table; a tensor that is not in it does not exist.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"

namespace dsv3 {

// What a tensor is for; placement assigns devices to (layer, role).
enum class Role { Embed, Attention, DenseFfn, Router, SharedExperts, RoutedExperts, Head, Mtp };
constexpr int kRoles = 8;
const char* role_name(Role role);  // "embed", "attention", "dense_ffn", ...

struct TensorInfo {
  std::string name;               // "model.layers.3.mlp.experts.7.up_proj.weight"
  std::vector<std::string> also;  // other names that checkpoints have for it; a file has one of them
  std::vector<int64_t> shape;
  Role role = Role::Embed;
  int layer = -1;            // -1: of no layer
  int expert = -1;           // of routed experts, else -1
  bool matrix = false;       // a projection or an expert's matrix: the converter's --dtype re-encodes it
  bool output_head = false;  // gives the vocabulary's logits: the converter's --head re-encodes it
  bool optional = false;
  // Of an expert's matrix, where some files have those of all experts in one tensor [experts, rows, columns]: the end of
  // its name (else null), its experts and the rows of each; this one is `shape[0]` of them from `fused_row` on.
  const char* fused = nullptr;
  int64_t fused_experts = 0, fused_rows = 0, fused_row = 0;
  std::string same_as;  // may be absent; when present and equal to this tensor, stored as an alias of it

  std::string fused_name() const;  // empty when there is no such tensor
  std::vector<int64_t> fused_shape() const { return {fused_experts, fused_rows, shape[1]}; }
};

// In the order of the computation; the tensors of one expert follow each other: gate, up, down.
std::vector<TensorInfo> tensor_table(const Config& config);

// No model of this configuration has fewer tensors, where each expert has its own; costs nothing, unlike the table.
int64_t fewest_tensors(const Config& config);

}  // namespace dsv3
