#include "ggml-lite/device_weights.h"

#include "ggml-lite/staging.h"

namespace lite {
namespace {

constexpr int64_t kAlignment = 256;

// Calls use(tensor) for every weight that `device` reads.
template <class Use>
void each_weight(Graph* g, int device, Use&& use) {
  for (Value& v : g->values)
    if (v.device == device && g->storages[v.storage].kind == Kind::Weight) use(&v.tensor);
  for (const Node& n : g->nodes) {
    if (n.op != Op::MoeFfn || n.device != device || n.in.size() > 3) continue;  // or staged
    ExpertSet& set = g->experts[std::get<MoeParams>(n.params).experts];
    const auto network = [&](FfnWeights* f) {
      for (Tensor* t : {&f->gate, &f->up, &f->down, &f->up_bias, &f->down_bias})
        if (t->data) use(t);
    };
    for (FfnWeights& f : set.slots) network(&f);
    if (set.has_shared) network(&set.shared);
  }
}

}  // namespace

int64_t copied_bytes(const Tensor& t) {
  return round_up(data_bytes(t), kAlignment) + (t.scale.data ? round_up(scale_bytes(t), kAlignment) : 0);
}

int64_t DeviceWeights::bytes(int device) {
  const std::lock_guard lock(mutex_);
  return bytes_[device];
}

Status DeviceWeights::upload(Graph* graph, std::span<Backend* const> backends) {
  const std::lock_guard lock(mutex_);
  for (int device = 1; device < int(backends.size()); ++device) {
    std::map<Key, int64_t>
        missing;  // -> its place: in the order of the host's memory, in which a file is read fastest
    const auto want = [&](const std::byte* data, int64_t size) {
      if (const Key key{device, data, size}; !copies_.contains(key)) missing.try_emplace(key, 0);
    };
    each_weight(graph, device, [&](Tensor* t) {
      want(t->data, data_bytes(*t));
      if (t->scale.data) want(t->scale.data, scale_bytes(*t));
    });
    if (!missing.empty()) {
      int64_t bytes = 0;
      std::vector<Piece> pieces;
      for (auto& [key, place] : missing) {
        place = bytes;
        pieces.push_back({place, std::get<1>(key), std::get<2>(key)});
        bytes = round_up(bytes + pieces.back().bytes, kAlignment);
      }
      const std::string context = str("bring ", bytes, " bytes of weights to ", backends[device]->name());
      auto memory = backends[device]->allocate(bytes);
      if (!memory.ok()) return memory.status().in(context);
      LITE_TRY(backends[device]->upload(memory->get(), pieces).in(context));
      for (const auto& [key, place] : missing) copies_[key] = memory->get() + place;
      memory_.push_back(std::move(*memory));
      bytes_[device] += bytes;
    }
    each_weight(graph, device, [&](Tensor* t) {
      if (t->scale.data) t->scale.data = copies_.at({device, t->scale.data, scale_bytes(*t)});
      t->data = copies_.at({device, t->data, data_bytes(*t)});
    });
  }
  return {};
}

}  // namespace lite
