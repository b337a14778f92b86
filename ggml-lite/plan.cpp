#include "ggml-lite/plan.h"

#include <algorithm>
#include <numeric>

#include "ggml-lite/staging.h"

namespace lite {
namespace {

constexpr int64_t kAlignment = 64;

bool in_arena(Kind kind) {
  return kind != Kind::Weight && kind != Kind::Stream;
}

bool sends(const Graph& g, const Node& n) {
  return n.op == Op::Copy && g.value(n.out[0]).device != n.device;
}

std::vector<Segment> make_segments(const Graph& g) {
  std::vector<Segment> segments;
  std::vector<int32_t> written_by(g.storages.size(), -1);  // segment that last wrote a storage
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    const Node& n = g.nodes[i];
    // Copies for another device end a segment: that device need not wait for what comes after them.
    const bool sent = i > 0 && sends(g, g.nodes[i - 1]) && !sends(g, n);
    if (segments.empty() || segments.back().device != n.device || sent)
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

// A device can only be waited for as a whole. So where it is about to be given more, and another one will need just what it
// was given so far, it is waited for at once: both then work side by side.
std::vector<std::vector<int>> make_waits(const std::vector<Segment>& segments, size_t devices) {
  const int n = int(segments.size());
  std::vector<bool> first(segments.size(), false);  // wait for the segment's own device before it
  for (int s = 0; s < n; ++s)
    for (const int32_t needed : segments[s].after) {
      int next = needed + 1;
      while (next < s && segments[next].device != segments[needed].device) ++next;
      if (next < s) first[next] = true;
    }
  std::vector<std::vector<int>> waits(segments.size());
  std::vector<int> given(devices, -1), done(devices, -1);  // last segment of a device
  for (int s = 0; s < n; ++s) {
    const auto wait_for = [&](int needed) {
      const int device = segments[needed].device;
      if (done[device] >= needed) return;
      waits[s].push_back(device);
      done[device] = given[device];
    };
    const int device = segments[s].device;
    if (first[s] && given[device] >= 0) wait_for(given[device]);
    for (const int32_t needed : segments[s].after) wait_for(needed);
    given[device] = s;
  }
  return waits;
}

struct Lifetime {
  int64_t first = -1, last = -1;  // nodes; -1: never used
};

// The last node before which `user`, a segment of another device, may still be reading or writing what `owner` holds: it is
// done where a segment of the owner runs after it or after a later one of its device.
int64_t end_of_use(const Graph& g, const std::vector<Segment>& segments, size_t user, int owner) {
  for (size_t s = user + 1; s < segments.size(); ++s) {
    if (segments[s].device != owner) continue;
    for (const int32_t other : segments[s].after)
      if (other >= int32_t(user) && segments[other].device == segments[user].device)
        return segments[s].first_node - 1;
  }
  return int64_t(g.nodes.size());
}

std::vector<Lifetime> lifetimes(const Graph& g, const std::vector<Segment>& segments) {
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
  // Another device may be late, with reading and with writing.
  for (size_t s = 0; s < segments.size(); ++s)
    for (int32_t i = 0; i < segments[s].n_nodes; ++i) {
      const Node& n = g.nodes[segments[s].first_node + i];
      for (const std::vector<Var>* values : {&n.in, &n.out})
        for (const Var v : *values) {
          if (!v || g.value(v).device == segments[s].device) continue;
          Lifetime& l = life[g.value(v).storage];
          l.last = std::max(l.last, end_of_use(g, segments, s, g.value(v).device));
        }
    }
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
  plan.segments = make_segments(*g);
  plan.waits = make_waits(plan.segments, backends.size());
  plan.offset.assign(g->storages.size(), 0);
  const std::vector<Lifetime> life = lifetimes(*g, plan.segments);
  for (size_t device = 0; device < backends.size(); ++device) {
    LITE_ASSIGN(const int64_t arena, place(*g, int(device), life, &plan.offset));
    plan.arena_bytes.push_back(arena);
  }
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
  for (const Node& n : g->nodes)
    if (n.op == Op::MoeFfn && n.in.size() > 3)
      point_into(&g->experts[std::get<MoeParams>(n.params).experts], g->tensor(n.in[3]).data);
}

}  // namespace lite
