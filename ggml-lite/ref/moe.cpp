// Choosing experts and running them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ggml-lite/carver.h"
#include "ggml-lite/ref/ref.h"
#include "ggml-lite/staging.h"

namespace lite::ref {

// Workspace: scores and choices of one token per thread.
int64_t route_workspace(const Graph& g, const Node& n, int threads) {
  return threads * (2 * g.tensor(n.in[0]).shape[1] + std::get<RouteParams>(n.params).n_group) *
         int64_t(sizeof(float));
}

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Index of the largest value, the lowest among equals; -1 when all are kNever.
int64_t largest(const float* x, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] > (best < 0 ? kNever : x[best])) best = i;
  return best;
}

// Sets the choices of all groups but the topk_group best to kNever.
void keep_best_groups(const RouteParams& p, int64_t experts, float* choice, float* group) {
  const int64_t size = experts / p.n_group;
  for (int64_t i = 0; i < p.n_group; ++i) {
    float first = kNever, second = kNever;
    for (int64_t e = i * size; e < (i + 1) * size; ++e) {
      if (choice[e] > first)
        second = first, first = choice[e];
      else
        second = std::max(second, choice[e]);
    }
    group[i] = p.group_score == GroupScore::TwoLargest ? first + second : first;
  }
  for (int64_t drop = 0; drop < p.n_group - p.topk_group; ++drop) {
    int64_t worst = -1;  // the highest index among equals, as the lowest ranks first
    for (int64_t i = 0; i < p.n_group; ++i)
      if (group[i] != kNever && (worst < 0 || group[i] <= group[worst])) worst = i;
    if (worst < 0) return;
    group[worst] = kNever;
    std::fill_n(choice + worst * size, size, kNever);
  }
}

// Scores of the chosen, and their sum, to weights.
void weigh(const RouteParams& p, float sum, float* weight) {
  for (int64_t j = 0; j < p.n_experts_per_token; ++j)
    weight[j] = (p.normalize ? weight[j] / (sum + 1e-20f) : weight[j]) * p.factor;
}

}  // namespace

void route(const Graph& g, const Node& n, const Team& team) {
  const Tensor &logits = g.tensor(n.in[0]), &ids = g.tensor(n.out[0]), &weights = g.tensor(n.out[1]);
  const RouteParams& p = std::get<RouteParams>(n.params);
  const int64_t experts = logits.shape[1], k = p.n_experts_per_token;
  float* score = g.tensor(n.workspace).row<float>(0) + team.index * (2 * experts + p.n_group);
  float* choice = score + experts;

  const auto [first, end] = team.share(g.live_rows(n, n.in[0]));
  for (int64_t t = first; t < end; ++t) {
    const float* x = logits.row<float>(t);
    if (p.scoring == Scoring::Sigmoid) {
      for (int64_t e = 0; e < experts; ++e) score[e] = 1.0f / (1.0f + std::exp(-x[e]));
    } else {
      const float top = *std::max_element(x, x + experts);
      float sum = 0;
      for (int64_t e = 0; e < experts; ++e) sum += score[e] = std::exp(x[e] - top);
      for (int64_t e = 0; e < experts; ++e) score[e] /= sum;
    }
    int32_t* id = ids.row<int32_t>(t);
    float* weight = weights.row<float>(t);
    float sum = 0;
    if (n.in[2]) {
      for (int64_t j = 0; j < k; ++j) {
        id[j] = g.tensor(n.in[2]).row<int32_t>(t)[j];
        sum += weight[j] = score[id[j]];
      }
      weigh(p, sum, weight);
      continue;
    }
    std::copy_n(score, experts, choice);
    if (n.in[1]) {
      const Tensor& bias = g.tensor(n.in[1]);
      // Chooses only: the weight is the score without it.
      for (int64_t e = 0; e < experts; ++e) choice[e] += element(bias, e);
    }
    if (p.group_score != GroupScore::None && p.n_group > 1)
      keep_best_groups(p, experts, choice, choice + experts);

    for (int64_t j = 0; j < k; ++j) {
      const int64_t e = std::max<int64_t>(largest(choice, experts), 0);  // 0: only when every score is NaN
      choice[e] = kNever;
      sum += score[e];
      // Insert by weight, highest first, the lower index first among equals.
      int64_t at = j;
      for (; at > 0 && (weight[at - 1] < score[e] || (weight[at - 1] == score[e] && id[at - 1] > e)); --at) {
        weight[at] = weight[at - 1];
        id[at] = id[at - 1];
      }
      weight[at] = score[e];
      id[at] = int32_t(e);
    }
    weigh(p, sum, weight);
  }
}

// ---- moe_ffn ----------------------------------------------------------------------------------------------

namespace {

// The (token, k) pairs of a step sorted by expert slot, the shared expert (if any) being one slot more with k
// = K: pairs of slot s are list[start[s]] .. list[start[s + 1] - 1], each token * (K + 1) + k. Everything in
// one workspace, sized for the largest step.
struct Workspace {
  int64_t tokens, k, slots, width, d;  // width: of the hidden activations, the widest network's
  int32_t *start, *list;
  float *rounded_x, *hidden, *partial, *rows;

  static constexpr int64_t kRowsPerThread = 2;  // a gate and an up row, or a down row

  Workspace(const Graph& g, const Node& n, std::byte* memory, int threads) {
    const ExpertSet& set = g.experts[std::get<MoeParams>(n.params).experts];
    tokens = g.tensor(n.in[0]).shape[0];
    d = g.tensor(n.in[0]).shape[1];
    k = g.tensor(n.in[1]).shape[1];
    slots = int64_t(set.slots.size());
    width = set.slots.empty() ? 0 : set.slots[0].up.shape[0];
    if (set.has_shared) width = std::max(width, set.shared.up.shape[0]);
    const int64_t pairs = tokens * (k + 1);
    const bool rounds = std::get<MoeParams>(n.params).rounding != Rounding::None;
    Carver carve(memory);
    start = carve.take<int32_t>(slots + 2);
    list = carve.take<int32_t>(pairs);
    rounded_x = carve.take<float>(rounds ? tokens * d : 0);
    hidden = carve.take<float>(pairs * width);
    partial = carve.take<float>(threads * pairs);
    rows = carve.take<float>(threads * kRowsPerThread * std::max(width, d));
    bytes = carve.used();
  }
  int64_t bytes;
};

void sort_by_slot(const Graph& g, const Node& n, const ExpertSet& set, int64_t live, const Workspace& w) {
  const auto each_pair = [&](auto&& use) {
    for (int64_t t = 0; t < live; ++t) {
      for (int64_t j = 0; j < w.k; ++j) {
        const int32_t slot = set.slot_of_expert[g.tensor(n.in[1]).row<int32_t>(t)[j]];
        if (slot >= 0) use(slot, int32_t(t * (w.k + 1) + j));
      }
      if (set.has_shared) use(int32_t(w.slots), int32_t(t * (w.k + 1) + w.k));
    }
  };
  std::fill_n(w.start, w.slots + 2, 0);
  each_pair([&](int32_t slot, int32_t) { ++w.start[slot + 1]; });
  for (int64_t s = 0; s <= w.slots; ++s) w.start[s + 1] += w.start[s];
  each_pair([&](int32_t slot, int32_t pair) { w.list[w.start[slot]++] = pair; });
  for (int64_t s = w.slots; s > 0; --s) w.start[s] = w.start[s - 1];  // each start has moved to its end
  w.start[0] = 0;
}

}  // namespace

int64_t moe_workspace(const Graph& g, const Node& n, int threads) {
  return Workspace(g, n, nullptr, threads).bytes;
}

void moe_ffn(const Graph& g, const Node& n, const Team& team) {
  const Tensor &x = g.tensor(n.in[0]), &weights = g.tensor(n.in[2]), &y = g.tensor(n.out[0]);
  const auto [set_index, rounding] = std::get<MoeParams>(n.params);
  const ExpertSet& set = g.experts[set_index];
  const Workspace w(g, n, g.tensor(n.workspace).data, team.size);
  const int64_t live = g.live_rows(n, n.in[0]);
  const auto network = [&](int64_t slot) -> const FfnWeights& {
    return slot < w.slots ? set.slots[slot] : set.shared;
  };
  const auto rounds = [&, r = rounding](const Tensor& matrix) {
    return r != Rounding::None && matrix.dtype == DType::F8_E4M3;
  };

  // Who computes what: thread 0 sorts, all round their share of x.
  if (team.index == 0) sort_by_slot(g, n, set, live, w);
  if (rounding != Rounding::None) {
    const auto [first, end] = team.share(live);
    for (int64_t t = first; t < end; ++t) round_row(rounding, x.row<float>(t), w.rounded_x + t * w.d, w.d);
  }
  team.barrier();

  // hidden = silu(gate x) * up x, or gelu(up x + bias): every thread its rows of every expert in use.
  const bool gated = set.activation == Activation::SwiGlu;
  float* row0 = w.rows + team.index * Workspace::kRowsPerThread * std::max(w.width, w.d);
  float* row1 = row0 + std::max(w.width, w.d);
  for (int64_t s = 0; s <= w.slots; ++s) {
    if (w.start[s] == w.start[s + 1]) continue;
    const FfnWeights& f = network(s);
    const auto [first, end] = team.share(f.up.shape[0]);
    for (int64_t i = first; i < end; ++i) {
      if (gated) decode_row(f.gate, i, row0);
      decode_row(f.up, i, row1);
      for (int32_t p = w.start[s]; p < w.start[s + 1]; ++p) {
        const int64_t pair = w.list[p], t = pair / (w.k + 1);
        const float *exact = x.row<float>(t), *rounded = w.rounded_x + t * w.d;
        const float up = dot(rounds(f.up) ? rounded : exact, row1, w.d);
        w.hidden[pair * w.width + i] = gated ? silu(dot(rounds(f.gate) ? rounded : exact, row0, w.d)) * up
                                             : gelu(up + element(f.up_bias, i));
      }
    }
  }
  team.barrier();
  if (rounding != Rounding::None) {
    for (int64_t s = 0; s <= w.slots; ++s) {
      const FfnWeights& f = network(s);
      if (w.start[s] == w.start[s + 1] || !rounds(f.down)) continue;
      const auto [first, end] = team.share(w.start[s + 1] - w.start[s]);
      for (int64_t p = w.start[s] + first; p < w.start[s] + end; ++p) {
        float* h = w.hidden + w.list[p] * w.width;
        round_row(rounding, h, h, f.up.shape[0]);
      }
    }
    team.barrier();
  }

  // y = sum over k of w_k * (down hidden_k) + shared: every thread its columns of y.
  float* partial = w.partial + team.index * w.tokens * (w.k + 1);
  const auto [first, end] = team.share(w.d);
  for (int64_t o = first; o < end; ++o) {
    std::fill_n(partial, live * (w.k + 1), 0.0f);
    for (int64_t s = 0; s <= w.slots; ++s) {
      if (w.start[s] == w.start[s + 1]) continue;
      const FfnWeights& f = network(s);
      decode_row(f.down, o, row0);
      const float bias = gated ? 0.0f : element(f.down_bias, o);
      for (int32_t p = w.start[s]; p < w.start[s + 1]; ++p)
        partial[w.list[p]] = dot(w.hidden + w.list[p] * w.width, row0, f.down.shape[1]) + bias;
    }
    for (int64_t t = 0; t < live; ++t) {
      float sum = 0;
      for (int64_t j = 0; j < w.k; ++j) sum += weights.row<float>(t)[j] * partial[t * (w.k + 1) + j];
      y.row<float>(t)[o] = sum + partial[t * (w.k + 1) + w.k];
    }
  }
}

void stage(const Graph& g, const Node& n, const Team& team) {
  lite::stage(g.experts[std::get<MoeParams>(n.params).experts], g.tensor(n.out[0]).data, team);
}

}  // namespace lite::ref
