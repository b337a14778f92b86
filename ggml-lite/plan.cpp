#include "ggml-lite/plan.h"

#include <algorithm>
#include <numeric>

namespace lite {
namespace {

constexpr int64_t kAlignment = 64;

bool in_arena(Kind kind) {
  return kind != Kind::Weight && kind != Kind::Stream;
}

struct Lifetime {
  int64_t first = -1, last = -1;  // nodes; -1: never used
};

std::vector<Lifetime> lifetimes(const Graph& g) {
  std::vector<Lifetime> life(g.storages.size());
  const auto touch = [&](Var v, int64_t node) {
    if (!v) return;
    Lifetime& l = life[g.value(v).storage];
    if (l.first < 0) l.first = node;
    l.last = node;
  };
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    const Node& n = g.nodes[i];
    for (const Var v : n.in) touch(v, int64_t(i));
    for (const Var v : n.out) touch(v, int64_t(i));
    touch(n.counts, int64_t(i));
    touch(n.workspace, int64_t(i));
  }
  const int64_t end = int64_t(g.nodes.size());
  // Another device may read late: what it reads is not written over in this step.
  for (const Node& n : g.nodes)
    for (const Var v : n.in)
      if (v && g.value(v).device != n.device) life[g.value(v).storage].last = end;
  for (size_t s = 0; s < life.size(); ++s) {
    if (g.storages[s].kind == Kind::Input) life[s] = {0, end};
    if (g.storages[s].kind == Kind::Kept) life[s].last = end;
  }
  return life;
}

// Places the storages of one device; returns the arena's size.
Result<int64_t> place(const Graph& g, int device, const std::vector<Lifetime>& life,
                      std::vector<int64_t>* offset) {
  std::vector<int32_t> order;
  for (size_t s = 0; s < g.storages.size(); ++s)
    if (g.storages[s].device == device && in_arena(g.storages[s].kind) && life[s].first >= 0)
      order.push_back(int32_t(s));
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return g.storages[a].bytes > g.storages[b].bytes; });

  std::vector<int32_t> placed;  // by offset
  int64_t arena = 0;
  for (const int32_t s : order) {
    int64_t at = 0;
    for (const int32_t other : placed) {
      if (life[s].last < life[other].first || life[other].last < life[s].first) continue;
      if (at + g.storages[s].bytes <= (*offset)[other]) break;
      at = std::max(at, round_up((*offset)[other] + g.storages[other].bytes, kAlignment));
    }
    (*offset)[s] = at;
    int64_t end;
    if (!checked_add(at, g.storages[s].bytes, &end))
      return out_of_memory("plan memory: the arena's size does not fit 64 bits");
    arena = std::max(arena, end);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), s,
                                   [&](int32_t a, int32_t b) { return (*offset)[a] < (*offset)[b]; }),
                  s);
  }
  return round_up(arena, kAlignment);
}

std::vector<Segment> make_segments(const Graph& g) {
  std::vector<Segment> segments;
  std::vector<int32_t> written_by(g.storages.size(), -1);  // segment that last wrote a storage
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    const Node& n = g.nodes[i];
    if (segments.empty() || segments.back().device != n.device)
      segments.push_back({n.device, int32_t(i), 0, {}});
    Segment& segment = segments.back();
    ++segment.n_nodes;
    for (const Var v : n.in) {
      const int32_t writer = v ? written_by[g.value(v).storage] : -1;
      if (writer >= 0 && segments[writer].device != n.device &&
          std::find(segment.after.begin(), segment.after.end(), writer) == segment.after.end())
        segment.after.push_back(writer);
    }
    for (const Var v : n.out) written_by[g.value(v).storage] = int32_t(segments.size()) - 1;
  }
  return segments;
}

}  // namespace

Result<Plan> make_plan(Graph* g, std::span<Backend* const> backends) {
  for (Node& n : g->nodes) {
    LITE_TRY(backends[n.device]->check(*g, n));
    const int64_t bytes = backends[n.device]->workspace_bytes(*g, n);
    if (bytes == 0) continue;
    g->storages.push_back({Kind::Workspace, n.device, bytes});
    g->values.push_back({Tensor::of(DType::F32, {ceil_div(bytes, 4)}), Rows::Fixed, n.device,
                         int32_t(g->storages.size()) - 1, 0});
    n.workspace = {int32_t(g->values.size()) - 1};
  }
  Plan plan;
  plan.offset.assign(g->storages.size(), 0);
  const std::vector<Lifetime> life = lifetimes(*g);
  for (size_t device = 0; device < backends.size(); ++device) {
    LITE_ASSIGN(const int64_t arena, place(*g, int(device), life, &plan.offset));
    plan.arena_bytes.push_back(arena);
  }
  plan.segments = make_segments(*g);
  return plan;
}

Result<std::vector<Buffer>> allocate_arenas(std::span<const int64_t> bytes,
                                            std::span<Backend* const> backends) {
  std::vector<Buffer> arenas;
  for (size_t device = 0; device < backends.size(); ++device) {
    LITE_ASSIGN(Buffer arena, device == 0 ? backends.back()->allocate_shared(bytes[0])
                                          : backends[device]->allocate(bytes[device]));
    arenas.push_back(std::move(arena));
  }
  return arenas;
}

void bind(Graph* g, const Plan& plan, std::span<std::byte* const> arenas,
          std::span<std::byte* const> streams) {
  for (size_t s = 0; s < g->storages.size(); ++s) {
    Storage& storage = g->storages[s];
    if (in_arena(storage.kind)) storage.data = arenas[storage.device] + plan.offset[s];
    if (storage.kind == Kind::Stream) storage.data = streams[storage.stream];
  }
  for (Value& v : g->values)
    if (g->storages[v.storage].kind != Kind::Weight) v.tensor.data = g->storages[v.storage].data + v.offset;
}

}  // namespace lite
