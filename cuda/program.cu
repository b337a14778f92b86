#include "cuda/program.h"

#include <algorithm>
#include <cstring>

#include "cuda/device.h"

namespace lite::cuda {
namespace {

bool meet(const std::vector<Range>& a, const std::vector<Range>& b) {
  for (const Range& x : a)
    for (const Range& y : b)
      if (x.begin < y.end && y.begin < x.end) return true;
  return false;
}

Range range_of(const Tensor& t) {
  int64_t bytes = size_of(t.dtype);
  for (int i = 0; i < t.rank; ++i) bytes += (t.shape[i] - 1) * t.stride[i];
  return {t.data, t.data + bytes};
}

}  // namespace

Access access_of(const Graph& g, std::span<const Node> nodes) {
  Access access;
  const auto add = [&](std::vector<Range>* to, Var v) {
    if (v && g.storages[g.value(v).storage].kind != lite::Kind::Weight) to->push_back(range_of(g.tensor(v)));
  };
  for (const Node& n : nodes) {
    add(&access.reads, n.counts);
    for (const Var v : n.in) add(&access.reads, v);
    for (const Var v : n.out) add(&access.writes, v);
    add(&access.writes, n.workspace);
  }
  return access;
}

void Levels::begin(Access access) {
  int level = 0;
  for (const Past& past : nodes_)
    if (past.end > level &&
        (meet(past.access.writes, access.reads) || meet(past.access.writes, access.writes) ||
         meet(past.access.reads, access.writes)))
      level = past.end;
  nodes_.push_back({std::move(access), level});
}

int Levels::next() {
  return nodes_.back().end++;
}

void Program::add(StageKind kind, const void* stage, size_t bytes, const Grid& grid, int64_t shared) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const size_t level = size_t(levels_.next());
  if (stages_.size() <= level) stages_.resize(level + 1);
  stages_[level].push_back({kind, grid.x, grid.y, grid.z, int64_t(arguments_.size())});
  arguments_.resize(arguments_.size() + size_t(kArgumentBytes));
  std::memcpy(arguments_.data() + stages_[level].back().arguments, stage, bytes);
  shared_ = std::max(shared_, shared);
}

Status Program::upload(int device, std::byte* memory, int64_t room) const {
  if (stages() * kStageBytes > room)
    return internal_error("a program of ", stages(), " stages has room for ", room / kStageBytes);
  std::vector<std::byte> image(size_t(arguments_at()) + arguments_.size());
  auto* level = reinterpret_cast<Level*>(image.data());
  auto* const entries = reinterpret_cast<Entry*>(image.data() + entries_at());
  int32_t n = 0;
  for (const auto& stages : stages_) {
    const int32_t first = n;
    for (const Stage& s : stages)
      entries[n++] = {s.kind, int32_t(s.blocks()), int32_t(s.x), int32_t(s.y), s.arguments};
    *level++ = {first, n, int32_t(blocks_of(stages))};
  }
  std::copy(arguments_.begin(), arguments_.end(), image.begin() + arguments_at());
  return copy(device, memory, image.data(), int64_t(image.size()));
}

void Program::launch(Stream& stream, const std::byte* memory) const {
  std::vector<int64_t> blocks;
  for (const auto& stages : stages_) blocks.push_back(blocks_of(stages));
  const auto launch = tokens_ == 1 ? launch_program<1> : launch_program<8>;
  launch(blocks, shared_, stream, reinterpret_cast<const Level*>(memory),
         reinterpret_cast<const Entry*>(memory + entries_at()), memory + arguments_at());
}

int64_t Program::blocks_of(const std::vector<Stage>& stages) {
  int64_t blocks = 0;
  for (const Stage& s : stages) blocks += s.blocks();
  return blocks;
}

}  // namespace lite::cuda
