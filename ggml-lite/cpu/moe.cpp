// All experts of a layer as one op. (token, k) pairs are sorted by expert; a task is a panel of one expert's rows, so
// that the experts' weights are read once, in order, by all threads together. The shared expert is one more slot.
#include <algorithm>

#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/ref/ref.h"

namespace lite::cpu {
namespace {

// Rows of one expert that a task computes.
constexpr int64_t kDecodeRows = 32, kPromptRows = 64;

struct MoeMemory {
  int64_t tokens, d, k, slots, width;  // width: of the hidden activations, the widest network's
  int32_t* count;                      // [threads, slots + 1] pairs of a slot, then where a thread's go
  int32_t* start;                      // [slots + 2] first pair of a slot; the last entry: all pairs
  int32_t *active, *n_active;          // [slots + 1] slots with pairs; how many
  int64_t* task;                       // [slots + 2] first up-task of an active slot
  int32_t* place;                      // [tokens, k + 1] where a pair is in that order; -1: no expert here
  const float **x_row, **rounded_row, **hidden_row;  // [pairs] by slot
  float *rounded, *hidden;                           // [T, d]; [pairs, width] by slot
  // This thread's.
  std::byte* product;
  float *gate, *up;  // [T, panel]
  float* out;        // [pairs, panel]
  int64_t bytes;

  MoeMemory(const Graph& g, const Node& n, std::byte* base, int threads, int thread) {
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
    task = carve.take<int64_t>(slots + 2);
    place = carve.take<int32_t>(pairs);
    x_row = carve.take<const float*>(pairs);
    rounded_row = carve.take<const float*>(pairs);
    hidden_row = carve.take<const float*>(pairs);
    rounded = p.rounding == Rounding::None ? nullptr : carve.take<float>(tokens * d);
    hidden = carve.take<float>(pairs * width);
    for (int i = 0; i < threads; ++i) {
      std::byte* const scratch = carve.take<std::byte>(ProductScratch::bytes(std::max(width, d)));
      float* const a = carve.take<float>(tokens * kPromptRows);
      float* const b = carve.take<float>(tokens * kPromptRows);
      float* const c = carve.take<float>(pairs * kPromptRows);
      if (i == thread) product = scratch, gate = a, up = b, out = c;
    }
    bytes = carve.used();
  }
};

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
    int32_t at = 0, active = 0;
    int64_t tasks = 0;
    for (int64_t s = 0; s <= m.slots; ++s) {
      m.start[s] = at;
      for (int i = 0; i < team.size; ++i) {
        const int32_t pairs = m.count[i * (m.slots + 1) + s];
        m.count[i * (m.slots + 1) + s] = at;
        at += pairs;
      }
      if (m.start[s] == at) continue;
      m.active[active] = int32_t(s);
      m.task[active++] = tasks;
      tasks += ceil_div(network(s).up.shape[0], panel);
    }
    m.start[m.slots + 1] = at;
    m.task[active] = tasks;
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

}  // namespace

int64_t moe_workspace(const Graph& g, const Node& n, int threads) {
  return MoeMemory(g, n, nullptr, threads, 0).bytes;
}

void moe_ffn(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  const Tensor &x = g.tensor(n.in[0]), &weights = g.tensor(n.in[2]), &y = g.tensor(n.out[0]);
  const auto [set_index, rounding] = std::get<MoeParams>(n.params);
  const ExpertSet& set = g.experts[set_index];
  const MoeMemory m(g, n, g.tensor(n.workspace).data, team.size, team.index);
  ProductScratch scratch(m.product, std::max(m.width, m.d));
  const int64_t live = g.live_rows(n, n.in[0]);
  const bool prompt = is_prompt(g, n);
  const int64_t panel = prompt ? kPromptRows : kDecodeRows;
  const auto network = [&](int64_t slot) -> const FfnWeights& {
    return slot < m.slots ? set.slots[slot] : set.shared;
  };
  const auto rounds = [&, r = rounding](const Tensor& matrix) {
    return r != Rounding::None && matrix.dtype == DType::F8_E4M3;
  };
  const auto product = [&](const Tensor& w, int64_t first, int64_t count, const float** rows, int64_t n_rows,
                           float* to) {
    if (prompt)
      prompt_product(a, w, first, count, rows, n_rows, to, panel, scratch);
    else
      decode_product(a, w, first, count, rows, n_rows, to, panel, scratch);
  };

  if (rounding != Rounding::None) {
    const auto [first, end] = team.share(live);
    for (int64_t t = first; t < end; ++t) ref::round_row(rounding, x.row<float>(t), m.rounded + t * m.d, m.d);
  }
  // The few pairs of a decode step are sorted by one thread sooner than all can meet.
  constexpr int64_t kFewPairs = 512;
  if (live * (m.k + 1) > kFewPairs)
    sort_by_slot(g, n, team, set, live, panel, m);
  else if (team.index == 0)
    sort_by_slot(g, n, Team{0, 1, nullptr}, set, live, panel, m);
  team.barrier();

  // hidden = silu(gate x) * up x, by slot.
  const int64_t n_active = *m.n_active, n_tasks = m.task[n_active];
  team.tasks(n_tasks, [&](int64_t i) {
    const int64_t slot = std::upper_bound(m.task, m.task + n_active, i) - m.task - 1;
    const int64_t s = m.active[slot];
    const FfnWeights& f = network(s);
    const int64_t o = (i - m.task[slot]) * panel, count = std::min(panel, f.up.shape[0] - o);
    const int32_t first = m.start[s], rows = m.start[s + 1] - first;
    product(f.gate, o, count, (rounds(f.gate) ? m.rounded_row : m.x_row) + first, rows, m.gate);
    product(f.up, o, count, (rounds(f.up) ? m.rounded_row : m.x_row) + first, rows, m.up);
    for (int32_t r = 0; r < rows; ++r)
      a.k->silu_mul(m.gate + r * panel, m.up + r * panel, m.hidden + (first + r) * m.width + o, count);
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

  // y = sum over k of w_k * (down hidden_k) + shared: a task is a panel of y's columns, over all slots.
  team.tasks(ceil_div(m.d, panel), [&](int64_t i) {
    const int64_t o = i * panel, count = std::min(panel, m.d - o);
    for (int64_t j = 0; j < n_active; ++j) {
      const int64_t s = m.active[j];
      product(network(s).down, o, count, m.hidden_row + m.start[s], m.start[s + 1] - m.start[s],
              m.out + m.start[s] * panel);
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
