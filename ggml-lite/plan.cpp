#include "ggml-lite/plan.h"

#include <algorithm>
#include <functional>

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

bool copies_input(const Graph& g, const Node& n) {
  return n.op == Op::Copy && g.storages[g.value(n.in[0]).storage].kind == Kind::Input;
}

// By node: whether it copies what the host has staged, to another device or, so that the host knows, back.
std::vector<bool> nodes_aside(const Graph& g) {
  std::vector<bool> staged(g.storages.size(), false), aside;
  for (const Node& n : g.nodes) {
    aside.push_back(n.op == Op::Copy && n.device != 0 && staged[g.value(n.in[0]).storage]);
    if (n.op == Op::Stage || aside.back()) staged[g.value(n.out[0]).storage] = true;
  }
  return aside;
}

std::vector<Segment> make_segments(const Graph& g) {
  const std::vector<bool> aside = nodes_aside(g);
  std::vector<Segment> segments;
  std::vector<int32_t> written_by(g.storages.size(), -1);  // segment that last wrote a storage
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    const Node& n = g.nodes[i];
    // Copies for another device end a segment: that device need not wait for what comes after them.
    const bool sent = i > 0 && sends(g, g.nodes[i - 1]) && !sends(g, n);
    if (segments.empty() || segments.back().device != n.device || segments.back().aside != aside[i] || sent) {
      segments.push_back({n.device, int32_t(i), 0, {}, aside[i]});
      // What it brings may lie where the device's work before it had something.
      for (size_t s = segments.size() - 1; aside[i] && s-- > 0;)
        if (segments[s].device == n.device && !segments[s].aside) {
          segments.back().after.push_back(int32_t(s));
          break;
        }
    }
    Segment& segment = segments.back();
    ++segment.n_nodes;
    for (const Var v : n.in) {
      const int32_t writer = v ? written_by[g.value(v).storage] : -1;
      if (writer >= 0 && segments[writer].lane() != segment.lane()) segment.after.push_back(writer);
    }
    for (const Var v : n.out) written_by[g.value(v).storage] = int32_t(segments.size()) - 1;
  }
  return segments;
}

// What is done when a segment begins: by lane the last segment, -1: none.
using Past = std::vector<std::vector<int32_t>>;

// Segments of one lane follow each other; so a segment needs to wait only for what its lane does not know to be done.
Past drop_known_waits(std::vector<Segment>* segments, size_t lanes) {
  Past past;
  std::vector<int32_t> given(lanes, -1);  // last segment of a lane
  for (size_t s = 0; s < segments->size(); ++s) {
    Segment& segment = (*segments)[s];
    const int32_t before = given[segment.lane()];
    std::vector<int32_t> done = before < 0 ? std::vector<int32_t>(lanes, -1) : past[before];
    done[segment.lane()] = before;
    std::sort(segment.after.begin(), segment.after.end(), std::greater<>());  // the later know more
    std::erase_if(segment.after, [&](int32_t needed) {
      int32_t& last = done[(*segments)[needed].lane()];
      if (last >= needed) return true;
      for (size_t lane = 0; lane < lanes; ++lane) done[lane] = std::max(done[lane], past[needed][lane]);
      last = needed;
      return false;
    });
    past.push_back(std::move(done));
    given[segment.lane()] = int32_t(s);
  }
  return past;
}

// By node: the segment that it is in.
std::vector<int32_t> segments_of(const Graph& g, const std::vector<Segment>& segments) {
  std::vector<int32_t> of(g.nodes.size());
  for (size_t s = 0; s < segments.size(); ++s)
    std::fill_n(of.begin() + segments[s].first_node, segments[s].n_nodes, int32_t(s));
  return of;
}

// The nodes that touch a storage: all of them, and those of one lane.
struct Lifetime {
  struct Use {
    int lane;
    int64_t first, last;
  };
  int64_t first = -1, last = -1;  // -1: never used
  std::vector<Use> uses;
};

std::vector<Lifetime> lifetimes(const Graph& g, const std::vector<Segment>& segments,
                                std::span<Backend* const> backends) {
  const std::vector<int32_t> segment_of = segments_of(g, segments);
  std::vector<Lifetime> life(g.storages.size());
  bool joined = false;  // the node before, with this one
  for (int64_t i = 0; i < int64_t(g.nodes.size()); ++i) {
    const Node& n = g.nodes[i];
    const int lane = segments[segment_of[i]].lane();
    const bool joins = backends[n.device]->joins_next(g, int32_t(i));
    const int64_t first = i - (joined ? 1 : 0), last = i + (joins ? 1 : 0);
    joined = joins;
    const auto touch = [&](Var v) {
      if (!v) return;
      Lifetime& l = life[g.value(v).storage];
      if (l.first < 0) l.first = first;
      l.last = last;
      for (Lifetime::Use& use : l.uses)
        if (use.lane == lane) {
          use.last = last;
          return;
        }
      l.uses.push_back({lane, first, last});
    };
    for (const Var v : n.in) touch(v);
    for (const Var v : n.out) touch(v);
    touch(n.counts);
    touch(n.workspace);
  }
  const int64_t end = int64_t(g.nodes.size());
  for (size_t s = 0; s < life.size(); ++s) {
    if (g.storages[s].kind == Kind::Input) life[s].first = 0, life[s].last = end;
    if (g.storages[s].kind == Kind::Kept) life[s].last = end;
  }
  for (const Node& n : g.nodes)  // a device looks at its counts between segments, too
    if (n.op == Op::Copy && n.in[0].id == g.counts.id) life[g.value(n.out[0]).storage].last = end;
  return life;
}

// Which storages may share a place.
class Order {
 public:
  Order(const Graph& g, const std::vector<Segment>& segments, const Past& past)
      : past_(past), segment_of_(segments_of(g, segments)) {}

  bool apart(const Lifetime& a, const Lifetime& b) const {
    return (a.last < b.first && is_before(a, b)) || (b.last < a.first && is_before(b, a));
  }

 private:
  // All nodes of a come before those of b; whether all are done when b's begin.
  bool is_before(const Lifetime& a, const Lifetime& b) const {
    for (const Lifetime::Use& early : a.uses)
      for (const Lifetime::Use& late : b.uses)
        if (early.lane != late.lane && past_[segment_of_[late.first]][early.lane] < segment_of_[early.last])
          return false;
    return true;
  }

  const Past& past_;
  std::vector<int32_t> segment_of_;  // by node
};

// Places the storages of one device; returns the arena's size.
Result<int64_t> place(const Graph& g, int device, const std::vector<Lifetime>& life, const Order& ordered,
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
      if (ordered.apart(life[s], life[other])) continue;
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
  std::stable_partition(g->nodes.begin(), g->nodes.end(), [&](const Node& n) { return copies_input(*g, n); });
  const auto add = [&](Kind kind, int device, const Tensor& shape) {
    g->storages.push_back({kind, device, shape.elements() * size_of(shape.dtype)});
    g->values.push_back({shape, Rows::Fixed, device, int32_t(g->storages.size()) - 1, 0});
    return Var{int32_t(g->values.size()) - 1};
  };
  Plan plan;
  for (Node& n : g->nodes) {
    LITE_TRY(backends[n.device]->check(*g, n));
    if (const int64_t bytes = backends[n.device]->workspace_bytes(*g, n))
      n.workspace = add(Kind::Workspace, n.device, Tensor::of(DType::F32, {ceil_div(bytes, 4)}));
    if (n.op == Op::Copy) {
      const Value& v = g->value(n.out[0]);
      const int64_t rows = v.rows == Rows::Fixed ? 1 : v.tensor.shape[0];
      plan.crossing_bytes[size_t(v.rows)] += v.tensor.elements() / rows * size_of(v.tensor.dtype);
    }
  }
  plan.segments = make_segments(*g);
  const Past past = drop_known_waits(&plan.segments, 2 * backends.size());
  for (const Segment& segment : plan.segments)
    plan.crossings += std::count_if(segment.after.begin(), segment.after.end(), [&](int32_t needed) {
      return plan.segments[needed].device != segment.device;
    });
  if (plan.crossings)
    plan.finished = add(Kind::Input, 0, Tensor::of(DType::I32, {int64_t(plan.segments.size())}));
  plan.offset.assign(g->storages.size(), 0);
  const std::vector<Lifetime> life = lifetimes(*g, plan.segments, backends);
  const Order ordered(*g, plan.segments, past);
  for (size_t device = 0; device < backends.size(); ++device) {
    LITE_ASSIGN(const int64_t arena, place(*g, int(device), life, ordered, &plan.offset));
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
