#include "ggml-lite/staging.h"

#include <algorithm>
#include <cstring>

namespace lite {
namespace {

constexpr int64_t kAlignment = 256;

// Calls use(data, offset, bytes) for every part in its order, `data` the set's pointer to it; returns where the last ends.
template <class Set, class Use>
int64_t each_part(Set* experts, Use&& use) {
  int64_t at = 0;
  const auto part = [&](auto& data, int64_t bytes) {
    if (!data) return;
    use(data, at, bytes);
    at = round_up(at + bytes, kAlignment);
  };
  const auto network = [&](auto& f) {
    for (auto* t : {&f.gate, &f.up, &f.down, &f.up_bias, &f.down_bias}) {
      if (!t->data) continue;
      const int64_t data = data_bytes(*t), scales = scale_bytes(*t);
      part(t->data, data);
      part(t->scale.data, scales);
    }
  };
  for (auto& f : experts->slots) network(f);
  if (experts->has_shared) network(experts->shared);
  return at;
}

}  // namespace

int64_t data_bytes(const Tensor& t) {
  int64_t bytes = size_of(t.dtype);
  for (int i = 0; i < t.rank; ++i) bytes += (t.shape[i] - 1) * t.stride[i];
  return bytes;
}

int64_t scale_bytes(const Tensor& t) {
  const Scale& s = t.scale;
  if (!s.data) return 0;
  const int64_t last_row = (s.row0 + t.shape[0] - 1) / s.block_rows,
                last_col = (s.col0 + t.shape[1] - 1) / s.block_cols;
  return last_row * s.row_stride + (last_col + 1) * size_of(s.dtype);
}

int64_t staged_bytes(const ExpertSet& experts) {
  return each_part(&experts, [](auto&&...) {});
}

void stage(const ExpertSet& experts, std::byte* to, const Team& team) {
  const auto [first, end] = team.share(staged_bytes(experts));
  each_part(&experts, [&, first = first, end = end](const std::byte* data, int64_t offset, int64_t bytes) {
    const int64_t from = std::max(first, offset), until = std::min(end, offset + bytes);
    if (from < until) std::memcpy(to + from, data + (from - offset), size_t(until - from));
  });
}

void point_into(ExpertSet* experts, std::byte* at) {
  each_part(experts, [at](auto& data, int64_t offset, int64_t) { data = at + offset; });
}

}  // namespace lite
