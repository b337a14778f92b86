// The stage that chooses experts: a warp has a token.
#pragma once

#include "cuda/matrix.h"
#include "cuda/stage.h"

namespace lite::cuda {

constexpr float kNever = -INFINITY;

// The largest of x[0, n) by a whole warp, the lowest index among equals; index -1: none is above kNever.
struct Best {
  float value;
  int index;
};
__device__ inline Best better(Best a, Best b) {
  if (b.index < 0) return a;
  if (a.index < 0 || b.value > a.value || (b.value == a.value && b.index < a.index)) return b;
  return a;
}
__device__ inline Best largest(const float* x, int n) {
  Best best = {kNever, -1};
  for (int i = lane(); i < n; i += kWarp)
    if (x[i] > best.value) best = {x[i], i};
  for (int mask = kWarp / 2; mask > 0; mask /= 2)
    best = better(best, {shuffle_xor(best.value, mask), shuffle_xor(best.index, mask)});
  return best;
}

// Sets the choices of all groups but the topk_group best to kNever.
__device__ inline void keep_best_groups(const RouteParams& p, int experts, float* choice, float* group) {
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
  sync_warp();
  for (int64_t drop = 0; drop < p.n_group - p.topk_group; ++drop) {
    int worst = -1;  // every lane finds it; the highest index among equals, as the lowest ranks first
    for (int i = 0; i < n_group; ++i)
      if (group[i] != kNever && (worst < 0 || group[i] <= group[worst])) worst = i;
    sync_warp();
    if (worst < 0) return;
    if (lane() == 0) group[worst] = kNever;
    for (int e = lane(); e < size; e += kWarp) choice[worst * size + e] = kNever;
    sync_warp();
  }
}

struct Route {
  static constexpr StageKind kKind = StageKind::Route;
  Values<float> logits;
  Vector bias;
  Values<int32_t> chosen;  // or null
  RouteParams p;
  Values<int32_t> ids;
  Values<float> weights;
  Live live;
  int token_bytes, tokens_of_block;

  __device__ void run(Block at) const {
    const int64_t t = int64_t(at.x) * tokens_of_block + warp();
    if (warp() >= tokens_of_block || t >= live.rows()) return;
    const int experts = int(logits.n), k = int(p.n_experts_per_token);
    const float* x = logits.row(t);
    float* score = shared_memory<float>() + warp() * (token_bytes / int(sizeof(float)));
    float* choice = score + experts;
    float* group = choice + experts;
    float* weight = group + p.n_group;
    int32_t* id = reinterpret_cast<int32_t*>(weight + k);

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
    sync_warp();
    if (!chosen.data && p.group_score != GroupScore::None && p.n_group > 1)
      keep_best_groups(p, experts, choice, group);

    float sum = 0;
    for (int j = 0; j < k; ++j) {
      // 0: only when every score is NaN
      const int e = chosen.data ? chosen.row(t)[j] : max(largest(choice, experts).index, 0);
      sync_warp();
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
      sync_warp();
    }
    for (int j = lane(); j < k; j += kWarp) {
      ids.row(t)[j] = id[j];
      weights.row(t)[j] = (p.normalize ? weight[j] / (sum + 1e-20f) : weight[j]) * p.factor;
    }
  }
};

}  // namespace lite::cuda
