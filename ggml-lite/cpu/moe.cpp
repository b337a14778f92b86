// All experts of a layer as one op. (token, k) pairs are sorted by expert; a task is a panel of one expert's rows, so
// that the experts' weights are read once, in order, by all threads together. The shared expert is one more slot.
#include <algorithm>
#include <numeric>

#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/ref/ref.h"

namespace lite::cpu {
namespace {

// Rows of one expert that a task of a prompt computes.
constexpr int64_t kPromptRows = 64;

struct MoeMemory {
  int64_t tokens, d, k, slots, width;  // width: of the hidden activations, the widest network's
  int32_t* count;                      // [threads, slots + 1] pairs of a slot, then where a thread's go
  int32_t* start;                      // [slots + 2] first pair of a slot; the last entry: all pairs
  int32_t *active, *n_active;          // [slots + 1] slots with pairs; how many
  int64_t* panels;                     // [slots + 1] up-tasks of an active slot
  int32_t* place;                      // [tokens, k + 1] where a pair is in that order; -1: no expert here
  const float **x_row, **rounded_row, **hidden_row;  // [pairs] by slot
  float *rounded, *hidden;                           // [T, d]; [pairs, width] by slot
  // This thread's; a panel has kPanelRows at most.
  std::byte* product;
  float *gate, *up;  // [T, panel]
  float* out;        // [pairs, panel]
  // On the matrix unit, behind all else: what the pairs multiply, packed, a slot's from a group of its own on.
  int32_t* group = nullptr;  // [slots + 2] first group of a slot
  uint16_t* packed = nullptr;
  int64_t bytes;

  MoeMemory(const Graph& g, const Node& n, std::byte* base, int threads, int thread, bool tiles) {
    const auto& p = std::get<MoeParams>(n.params);
    const ExpertSet& set = g.experts[p.experts];
    tokens = g.tensor(n.in[0]).shape[0];
    d = g.tensor(n.in[0]).shape[1];
    k = g.tensor(n.in[1]).shape[1];
    slots = int64_t(set.slots.size());
    width = set.slots.empty() ? 0 : set.slots[0].up.shape[0];
    if (set.has_shared) width = std::max(width, set.shared.up.shape[0]);
    const int64_t pairs = tokens * (k + 1);
    Carver carve(base);
    count = carve.take<int32_t>(threads * (slots + 1));
    start = carve.take<int32_t>(slots + 2);
    active = carve.take<int32_t>(slots + 1);
    n_active = carve.take<int32_t>(1);
    panels = carve.take<int64_t>(slots + 1);
    place = carve.take<int32_t>(pairs);
    x_row = carve.take<const float*>(pairs);
    rounded_row = carve.take<const float*>(pairs);
    hidden_row = carve.take<const float*>(pairs);
    rounded = p.rounding == Rounding::None ? nullptr : carve.take<float>(tokens * d);
    hidden = carve.take<float>(pairs * width);
    for (int i = 0; i < threads; ++i) {
      std::byte* const scratch = carve.take<std::byte>(ProductScratch::bytes(std::max(width, d)));
      float* const gates = carve.take<float>(tokens * kPanelRows);
      float* const ups = carve.take<float>(tokens * kPanelRows);
      float* const outs = carve.take<float>(pairs * kPanelRows);
      if (i == thread) product = scratch, gate = gates, up = ups, out = outs;
    }
    if (tiles) {
      // A slot has a last group of fewer than 16 pairs, and there are no more groups than pairs.
      const int64_t groups = std::min(pairs, pairs / kTile + slots + 1);
      group = carve.take<int32_t>(slots + 2);
      packed = carve.take<uint16_t>(groups * packed_group(std::max(d, width)));
    }
    bytes = carve.used();
  }
};

// Whether a prompt's experts go to the matrix unit: all or none. Looks at every expert.
bool tiles_take_all(const ExpertSet& set, const Arithmetic& a) {
  const auto taken = [&](const FfnWeights& f) {
    return tiles_take(a, f.gate) && tiles_take(a, f.up) && f.gate.dtype == f.up.dtype &&
           tiles_take(a, f.down);
  };
  return a.k->tiles.product && std::all_of(set.slots.begin(), set.slots.end(), taken) &&
         (!set.has_shared || taken(set.shared));
}

// Sorts the pairs by slot, by counting: each thread counts its share of the tokens, then knows where its pairs go.
void sort_by_slot(const Graph& g, const Node& n, const Team& team, const ExpertSet& set, int64_t live,
                  int64_t panel, const MoeMemory& m) {
  const Tensor &x = g.tensor(n.in[0]), &ids = g.tensor(n.in[1]);
  const auto network = [&](int64_t slot) -> const FfnWeights& {
    return slot < m.slots ? set.slots[slot] : set.shared;
  };
  const auto slot_of = [&](int64_t t, int64_t j) -> int32_t {
    if (j == m.k) return set.has_shared ? int32_t(m.slots) : -1;
    return set.slot_of_expert[ids.row<int32_t>(t)[j]];
  };
  const auto [first, end] = team.share(live);
  int32_t* const mine = m.count + team.index * (m.slots + 1);
  std::fill_n(mine, m.slots + 1, 0);
  for (int64_t t = first; t < end; ++t)
    for (int64_t j = 0; j <= m.k; ++j)
      if (const int32_t slot = slot_of(t, j); slot >= 0) ++mine[slot];
  team.barrier();
  if (team.index == 0) {
    int32_t at = 0, active = 0, groups = 0;
    for (int64_t s = 0; s <= m.slots; ++s) {
      m.start[s] = at;
      if (m.group) m.group[s] = groups;
      for (int i = 0; i < team.size; ++i) {
        const int32_t pairs = m.count[i * (m.slots + 1) + s];
        m.count[i * (m.slots + 1) + s] = at;
        at += pairs;
      }
      groups += int32_t(ceil_div(at - m.start[s], kTile));
      if (m.start[s] == at) continue;
      m.active[active] = int32_t(s);
      m.panels[active++] = ceil_div(network(s).up.shape[0], panel);
    }
    m.start[m.slots + 1] = at;
    if (m.group) m.group[m.slots + 1] = groups;
    *m.n_active = active;
  }
  team.barrier();
  for (int64_t t = first; t < end; ++t)
    for (int64_t j = 0; j <= m.k; ++j) {
      const int32_t slot = slot_of(t, j);
      int32_t& place = m.place[t * (m.k + 1) + j];
      place = -1;
      if (slot < 0) continue;
      place = mine[slot]++;
      m.x_row[place] = x.row<float>(t);
      m.rounded_row[place] = m.rounded ? m.rounded + t * m.d : nullptr;
      m.hidden_row[place] = m.hidden + place * m.width;
    }
}

// Panel `panel` of active slot `slot`.
struct UpTask {
  int64_t slot, panel;
};

// The panels of all slots in `rounds` rounds, in each the next part of every slot's. In one round a slot's panels are together,
// as do many rows of activations want it; in many, a thread that takes a stretch of tasks has the same part of every
// matrix in every step.
UpTask up_task(int64_t i, const int64_t* panels, int64_t n_active, int64_t rounds) {
  const auto before = [&](int64_t round, int64_t slot) { return round * panels[slot] / rounds; };
  const auto tasks_before = [&](int64_t round) {
    int64_t n = 0;
    for (int64_t s = 0; s < n_active; ++s) n += before(round, s);
    return n;
  };
  int64_t round = 0;
  for (int64_t end = rounds; end - round > 1;) {
    const int64_t middle = (round + end) / 2;
    (tasks_before(middle) <= i ? round : end) = middle;
  }
  i -= tasks_before(round);
  for (int64_t s = 0;; ++s) {
    const int64_t n = before(round + 1, s) - before(round, s);
    if (i < n) return {s, before(round, s) + i};
    i -= n;
  }
}

}  // namespace

int64_t moe_workspace(const Graph& g, const Node& n, int threads, const Arithmetic& a) {
  const ExpertSet& set = g.experts[std::get<MoeParams>(n.params).experts];
  return MoeMemory(g, n, nullptr, threads, 0, tiles_take_all(set, a)).bytes;
}

void moe_ffn(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  const Tensor &x = g.tensor(n.in[0]), &weights = g.tensor(n.in[2]), &y = g.tensor(n.out[0]);
  const auto [set_index, rounding] = std::get<MoeParams>(n.params);
  const ExpertSet& set = g.experts[set_index];
  const int64_t live = g.live_rows(n, n.in[0]);
  const bool prompt = is_prompt(g, n), tiles = prompt && tiles_take_all(set, a);
  const MoeMemory m(g, n, g.tensor(n.workspace).data, team.size, team.index, tiles);
  ProductScratch scratch(m.product, std::max(m.width, m.d));
  const TileUse use(a, tiles);
  const auto network = [&](int64_t slot) -> const FfnWeights& {
    return slot < m.slots ? set.slots[slot] : set.shared;
  };
  const auto rounds = [&, r = rounding](const Tensor& matrix) {
    return r != Rounding::None && matrix.dtype == DType::F8_E4M3;
  };
  // Rows [first, first + count) of a matrix of slot s with all its pairs, whose own rows begin at `rows`.
  const auto product = [&](const Tensor& w, int64_t first, int64_t count, int64_t s, const float** rows,
                           float* to, int64_t stride) {
    const int64_t n_rows = m.start[s + 1] - m.start[s];
    if (tiles)
      tile_product(a, w, first, count, m.packed + m.group[s] * packed_group(w.shape[1]), n_rows, to, stride,
                   scratch);
    else if (prompt)
      prompt_product(a, w, first, count, rows + m.start[s], n_rows, to, stride, scratch);
    else
      decode_product(a, w, first, count, rows + m.start[s], n_rows, to, stride, scratch);
  };
  // Packs what the pairs of every slot multiply: rows(slot) to begin with that of pair 0.
  const auto pack = [&](int64_t columns_of(const FfnWeights&), auto&& rows) {
    const auto [first, end] = team.share(m.group[m.slots + 1]);
    for (int64_t i = first, s = 0; i < end; ++i) {
      while (i >= m.group[s + 1]) ++s;
      const int64_t pair = m.start[s] + (i - m.group[s]) * kTile, columns = columns_of(network(s));
      pack_rows(a, rows(s) + pair, std::min<int64_t>(kTile, m.start[s + 1] - pair), columns,
                m.packed + i * packed_group(columns));
    }
    team.barrier();
  };

  if (rounding != Rounding::None) {
    const auto [first, end] = team.share(live);
    for (int64_t t = first; t < end; ++t) ref::round_row(rounding, x.row<float>(t), m.rounded + t * m.d, m.d);
  }
  // Rows of a task; a decode step's few pairs have about as many experts.
  const int64_t up_panel =
      prompt ? kPromptRows : decode_rows(std::min(live * (m.k + 1), m.slots + 1) * m.width, team.size);
  // The few pairs of a decode step are sorted by one thread sooner than all can meet.
  constexpr int64_t kFewPairs = 512;
  if (live * (m.k + 1) > kFewPairs)
    sort_by_slot(g, n, team, set, live, up_panel, m);
  else if (team.index == 0)
    sort_by_slot(g, n, Team{0, 1, nullptr}, set, live, up_panel, m);
  team.barrier();
  const auto x_rows = [&](int64_t s) { return rounds(network(s).up) ? m.rounded_row : m.x_row; };
  if (tiles) pack([](const FfnWeights& f) { return f.up.shape[1]; }, x_rows);

  // hidden = silu(gate x) * up x, by slot.
  const int64_t n_active = *m.n_active, n_tasks = std::accumulate(m.panels, m.panels + n_active, int64_t(0));
  team.tasks(n_tasks, [&](int64_t i) {
    const UpTask task = up_task(i, m.panels, n_active, prompt ? 1 : m.panels[0]);
    const int64_t s = m.active[task.slot];
    const FfnWeights& f = network(s);
    const int64_t o = task.panel * up_panel, count = std::min(up_panel, f.up.shape[0] - o);
    const int32_t first = m.start[s], rows = m.start[s + 1] - first;
    product(f.gate, o, count, s, rounds(f.gate) ? m.rounded_row : m.x_row, m.gate, up_panel);
    product(f.up, o, count, s, x_rows(s), m.up, up_panel);
    for (int32_t r = 0; r < rows; ++r)
      a.k->silu_mul(m.gate + r * up_panel, m.up + r * up_panel, m.hidden + (first + r) * m.width + o, count);
  });
  team.barrier();
  if (rounding != Rounding::None) {
    for (int64_t s = 0; s <= m.slots; ++s) {
      const FfnWeights& f = network(s);
      if (m.start[s] == m.start[s + 1] || !rounds(f.down)) continue;
      const auto [first, end] = team.share(m.start[s + 1] - m.start[s]);
      for (int64_t p = m.start[s] + first; p < m.start[s] + end; ++p)
        ref::round_row(rounding, m.hidden + p * m.width, m.hidden + p * m.width, f.up.shape[0]);
    }
    team.barrier();
  }
  if (tiles) pack([](const FfnWeights& f) { return f.down.shape[1]; }, [&](int64_t) { return m.hidden_row; });

  // y = sum over k of w_k * (down hidden_k) + shared: a task is a panel of y's columns, over all slots.
  const int64_t panel = prompt ? kPromptRows : decode_rows(m.d, team.size);
  team.tasks(ceil_div(m.d, panel), [&](int64_t i) {
    const int64_t o = i * panel, count = std::min(panel, m.d - o);
    for (int64_t j = 0; j < n_active; ++j) {
      const int64_t s = m.active[j];
      product(network(s).down, o, count, s, m.hidden_row, m.out + m.start[s] * panel, panel);
    }
    for (int64_t t = 0; t < live; ++t) {
      float* const to = y.row<float>(t) + o;
      std::fill_n(to, count, 0.0f);
      for (int64_t j = 0; j <= m.k; ++j) {
        const int32_t place = m.place[t * (m.k + 1) + j];
        if (place < 0) continue;
        const float weight = j < m.k ? weights.row<float>(t)[j] : 1.0f;
        const float* const from = m.out + place * panel;
        for (int64_t c = 0; c < count; ++c) to[c] += weight * from[c];
      }
    }
  });
}

}  // namespace lite::cpu
