// Choosing experts: one warp per token.
#include "cuda/matrix.h"

namespace lite::cuda {
namespace {

constexpr float kNever = -INFINITY;

// The largest of x[0, n) by a whole warp, the lowest index among equals; index -1: none is above kNever.
struct Best {
  float value;
  int index;
};
__device__ Best better(Best a, Best b) {
  if (b.index < 0) return a;
  if (a.index < 0 || b.value > a.value || (b.value == a.value && b.index < a.index)) return b;
  return a;
}
__device__ Best largest(const float* x, int n) {
  Best best = {kNever, -1};
  for (int i = lane(); i < n; i += kWarp)
    if (x[i] > best.value) best = {x[i], i};
  for (int mask = kWarp / 2; mask > 0; mask /= 2)
    best = better(best, {shuffle_xor(best.value, mask), shuffle_xor(best.index, mask)});
  return best;
}

// Sets the choices of all groups but the topk_group best to kNever.
__device__ void keep_best_groups(const RouteParams& p, int experts, float* choice, float* group) {
  const int n_group = int(p.n_group), size = experts / n_group;
  for (int i = lane(); i < n_group; i += kWarp) {
    float first = kNever, second = kNever;
    for (int e = i * size; e < (i + 1) * size; ++e) {
      if (choice[e] > first)
        second = first, first = choice[e];
      else
        second = fmaxf(second, choice[e]);
    }
    group[i] = p.group_score == GroupScore::TwoLargest ? first + second : first;
  }
  sync_block();
  for (int64_t drop = 0; drop < p.n_group - p.topk_group; ++drop) {
    int worst = -1;  // every lane finds it; the highest index among equals, as the lowest ranks first
    for (int i = 0; i < n_group; ++i)
      if (group[i] != kNever && (worst < 0 || group[i] <= group[worst])) worst = i;
    sync_block();
    if (worst < 0) return;
    if (lane() == 0) group[worst] = kNever;
    for (int e = lane(); e < size; e += kWarp) choice[worst * size + e] = kNever;
    sync_block();
  }
}

// Shared memory: scores and choices of the experts, and the groups' scores.
int64_t shared_bytes(int64_t experts, const RouteParams& p) {
  return (2 * experts + p.n_group) * int64_t(sizeof(float));
}

__global__ void route_kernel(Values<float> logits, Vector bias, Values<int32_t> chosen, RouteParams p,
                             Values<int32_t> ids, Values<float> weights, Live live) {
  const int64_t t = block_x();
  if (t >= live.rows()) return;
  const int experts = int(logits.n), k = int(p.n_experts_per_token);
  const float* x = logits.row(t);
  float* score = shared_memory<float>();
  float* choice = score + experts;

  if (p.scoring == Scoring::Sigmoid) {
    for (int e = lane(); e < experts; e += kWarp) score[e] = 1.0f / (1.0f + expf(-x[e]));
  } else {
    float top = kNever;
    for (int e = lane(); e < experts; e += kWarp) top = fmaxf(top, x[e]);
    for (int mask = kWarp / 2; mask > 0; mask /= 2) top = fmaxf(top, shuffle_xor(top, mask));
    float sum[1] = {0};
    for (int e = lane(); e < experts; e += kWarp) sum[0] += score[e] = expf(x[e] - top);
    warp_sum(sum);
    for (int e = lane(); e < experts; e += kWarp) score[e] /= sum[0];
  }
  // The bias chooses only: the weight is the score without it.
  for (int e = lane(); e < experts; e += kWarp) choice[e] = score[e] + (bias.data ? bias.at(e) : 0.0f);
  sync_block();
  if (!chosen.data && p.group_score != GroupScore::None && p.n_group > 1)
    keep_best_groups(p, experts, choice, choice + experts);

  int32_t* id = ids.row(t);
  float* weight = weights.row(t);
  float sum = 0;
  for (int j = 0; j < k; ++j) {
    // 0: only when every score is NaN
    const int e = chosen.data ? chosen.row(t)[j] : max(largest(choice, experts).index, 0);
    sync_block();
    sum += score[e];
    if (lane() == 0) {
      choice[e] = kNever;
      // Insert by weight, highest first, the lower index first among equals; given ones stay in their order.
      int at = j;
      for (; !chosen.data && at > 0 &&
             (weight[at - 1] < score[e] || (weight[at - 1] == score[e] && id[at - 1] > e));
           --at) {
        weight[at] = weight[at - 1];
        id[at] = id[at - 1];
      }
      weight[at] = score[e];
      id[at] = e;
    }
    sync_block();
  }
  if (lane() == 0)
    for (int j = 0; j < k; ++j) weight[j] = (p.normalize ? weight[j] / (sum + 1e-20f) : weight[j]) * p.factor;
}

}  // namespace

Status check_route(const Graph& g, const Node& n) {
  const int64_t experts = g.tensor(n.in[0]).shape[1];
  if (shared_bytes(experts, std::get<RouteParams>(n.params)) <= kSharedBytes) return {};
  return unsupported("route on a GPU: the scores of ", experts, " experts do not fit the ", kSharedBytes,
                     " bytes that a block shares");
}

void route(const Graph& g, const Node& n, const Step& step) {
  const auto logits = values_of<float>(g.tensor(n.in[0]));
  const auto& p = std::get<RouteParams>(n.params);
  const Live live = live_rows(g, n, n.in[0], step);
  const Vector bias = n.in[1] ? vector_of(g.tensor(n.in[1])) : Vector{};
  const Values<int32_t> chosen = n.in[2] ? values_of<int32_t>(g.tensor(n.in[2])) : Values<int32_t>{};
  launch(route_kernel, {live.most}, kWarp, shared_bytes(logits.n, p), step.stream, logits, bias, chosen, p,
         values_of<int32_t>(g.tensor(n.out[0])), values_of<float>(g.tensor(n.out[1])), live);
}

}  // namespace lite::cuda
