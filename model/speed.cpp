#include "model/speed.h"

#include <algorithm>
#include <map>

namespace dsv3 {
namespace {

class Walk {
 public:
  explicit Walk(const SpeedQuestion& q) : q_(q) { speed.read.resize(q.bandwidth.size()); }

  DecodeSpeed speed;

  void read(int device, double bytes) {
    speed.read[size_t(device)] += bytes;
    speed.seconds += bytes / q_.bandwidth[size_t(device)];
  }
  // The hidden state goes on to a device.
  void move(int device, double bytes) {
    if (at_ >= 0 && device != at_) cross(bytes, 1);
    at_ = device;
  }
  void cross(double bytes, int64_t times) {
    speed.crossed += bytes;
    speed.crossings += times;
    speed.seconds += bytes / q_.link;
  }
  void side_by_side(const std::map<int, double>& bytes_by_device) {
    double longest = 0;
    for (const auto& [device, bytes] : bytes_by_device) {
      speed.read[size_t(device)] += bytes;
      longest = std::max(longest, bytes / q_.bandwidth[size_t(device)]);
    }
    speed.seconds += longest;
  }

 private:
  const SpeedQuestion& q_;
  int at_ = -1;
};

}  // namespace

DecodeSpeed decode_speed(const Config& c, const Parts& parts, const Placement& p, const SpeedQuestion& q) {
  Walk walk(q);
  const double hidden = double(c.hidden_size) * sizeof(float);
  const auto step = [&](int layer, Role role) {
    const int device = p.device(layer, role);
    walk.move(device, hidden);
    walk.read(device, parts.of(layer, role).read);
    return device;
  };
  step(-1, Role::Embed);
  const int layers = int(q.mtp ? c.layers.size() : size_t(c.num_hidden_layers));
  for (int layer = 0; layer < layers; ++layer) {
    const LayerConfig& l = c.layers[size_t(layer)];
    if (layer == c.num_hidden_layers) {  // the MTP layer comes after the head
      step(-1, Role::Head);
      step(layer, Role::Embed);
      step(layer, Role::Mtp);
    }
    const int64_t seen = c.sliding_window ? std::min(q.context, c.sliding_window) : q.context;
    walk.read(step(layer, Role::Attention), double(seen * c.cached_values(l) * lite::size_of(q.kv)));
    if (!l.moe) {
      step(layer, Role::DenseFfn);
      continue;
    }
    const int router = step(layer, Role::Router);
    std::map<int, double> experts;
    if (l.n_shared_experts)
      experts[p.device(layer, Role::SharedExperts)] += parts.of(layer, Role::SharedExperts).read;
    for (int e = 0; e < int(l.n_routed_experts); ++e)
      experts[p.expert_device(layer, e)] += parts.expert(layer, e).read;
    const double chosen = double(l.num_experts_per_tok) * (sizeof(int32_t) + sizeof(float));
    for (const auto& [device, bytes] : experts)
      if (device != router) walk.cross(2 * hidden + chosen, 2);
    walk.side_by_side(experts);
  }
  step(layers > c.num_hidden_layers ? layers - 1 : -1, Role::Head);
  return walk.speed;
}

}  // namespace dsv3
