// Which device does what: (layer, role), and of routed experts (layer, expert) -> device.
//
// Device 0 is the host, 1 and up are GPUs. A layer's cached rows lie with its attention. A multi-token-prediction
// layer's embedding and head lie where those of the model do.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/parts.h"

namespace dsv3 {

// "cpu", "cuda:0" for device 1, ...
std::string device_text(int device);

class Placement {
 public:
  // Everything on one device.
  Placement(const Config& config, int device);

  // layer -1: of no layer (embedding, head). Of routed experts: where the first is.
  int device(int layer, Role role) const;
  int expert_device(int layer, int expert) const { return experts_[size_t(layer)][size_t(expert)]; }
  void put(int layer, Role role, int device);  // routed experts: all of them
  void put_expert(int layer, int expert, int device) { experts_[size_t(layer)][size_t(expert)] = device; }

 private:
  std::vector<std::array<int, kRoles>> roles_;  // [layer + 1][role]
  std::vector<std::vector<int>> experts_;       // [layer][expert]
  int main_layers_;
};

// One line of what a user wants: parts of layers and their device.
struct PlaceRule {
  std::string text;
  int first_layer, last_layer;  // of all layers, and the parts of no layer, if `every_layer`
  bool every_layer;
  std::optional<Role> role;       // none: every role
  int first_expert, last_expert;  // last < first: all
  int device;
};

// Rules separated by ';' or lines: "[layers A-B] [ROLE | experts A-B] = DEVICE", DEVICE cpu, cuda or cuda:N, the GPUs in
// use counted from 0. Later ones overrule earlier ones. InvalidArgument for a word that is not known, with those that are,
// and for what the model has not got.
Result<std::vector<PlaceRule>> parse_place(std::string_view text, const Config& config, int gpus);

// What a placement has to keep to.
struct Demand {
  std::vector<int64_t>
      room;  // by device, for copied weights and cached rows; empty: no limit. The host's is not used.
  std::vector<int64_t>
      cache;         // by layer: bytes of cached rows; one more for the final hidden states that MTP reads
  bool mtp = false;  // the multi-token-prediction layer is used
};

// Without a limit everything goes to the first GPU. Else by bytes read per token for each byte of room: first all that every
// token reads, layer by layer (attention with its cached rows, router, shared experts, dense FFN), then the head; then
// routed experts, layer by layer, as many of a layer's as fit; the embedding stays on the host. Of several GPUs each has
// consecutive layers, and takes experts of others' with what it has left. Rules come first, and the rest is divided among what they leave. OutOfMemory, with the missing
// bytes, when the parts that rules name do not fit. left, if it is given: the room that remains, by device.
Result<Placement> choose_placement(const Config& config, const Parts& parts, const Demand& demand,
                                   std::span<const PlaceRule> rules, int gpus,
                                   std::vector<int64_t>* left = nullptr);

// Bytes of weights by device: on the host as its file has them, elsewhere as copies.
std::vector<int64_t> weight_bytes(const Model& model, const Parts& parts, const Placement& placement,
                                  bool mtp, int devices);

}  // namespace dsv3
