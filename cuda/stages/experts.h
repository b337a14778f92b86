// Stages that run experts in decode steps. Tokens come in groups of kTogether; of a group the (token, k) pairs of one expert meet
// its weights together. Which those are every block finds for itself: they are few.
#pragma once

#include "cuda/gemv.h"
#include "cuda/moe.h"

namespace lite::cuda {

// The pairs of a group of tokens. Shared memory, behind the rings: a task and a network for each of them.
struct PairGroup {
  int64_t first;  // pair
  int n;
  PairTask* task;    // of pair i: those of its network from itself on, or n = 0: an earlier one has it
  int32_t* network;  // -1: not held here

  __device__ float* rest() const { return reinterpret_cast<float*>(network + (n + 3) / 4 * 4); }

  // By the whole block.
  __device__ PairGroup(const MoeLayer& l, int64_t group) {
    const int64_t tokens = min(int64_t(kTogether), l.live.rows() - group * kTogether);
    first = l.pairs(group * kTogether);
    n = int(max(int64_t(0), l.pairs(tokens)));
    const int most = int(l.pairs(min(int64_t(kTogether), l.live.most)));
    task = behind_rings<PairTask>();
    network = reinterpret_cast<int32_t*>(task + most);
    for (int i = thread(); i < n; i += kStageThreads) network[i] = l.network_of(first + i);
    sync_block();
    for (int i = thread(); i < n; i += kStageThreads) {
      PairTask& mine = task[i];
      mine.network = network[i];
      mine.n = 0;
      int before = 0;
      for (int k = 0; k < i; ++k) before += network[k] == network[i];
      if (network[i] < 0 || before % kTogether != 0) continue;
      for (int k = i; k < n && mine.n < kTogether; ++k)
        if (network[k] == network[i]) {
          mine.pair[mine.n] = int32_t(first + k);
          mine.token[mine.n++] = int32_t(l.token_of(first + k));
        }
    }
    sync_block();
  }
};

// Rounds the input, where the weights want it: a warp has a group of values.
struct RoundInput {
  static constexpr StageKind kKind = StageKind::RoundInput;
  MoeLayer l;

  __device__ void run(Block at) const {
    const int64_t t = at.x, first = (int64_t(at.y) * kStageWarps + warp()) * kRoundGroup;
    if (t < l.live.rows() && first < l.x.n)
      round_group(l.rounding, l.x.row(t), l.w.rounded + t * l.x.n, first, l.x.n);
  }
};
struct RoundHidden {
  static constexpr StageKind kKind = StageKind::RoundHidden;
  MoeLayer l;

  __device__ void run(Block at) const {
    const int64_t pair = at.x, first = (int64_t(at.y) * kStageWarps + warp()) * kRoundGroup;
    if (pair >= l.pairs(l.live.rows())) return;
    const int32_t network = l.network_of(pair);
    if (network < 0) return;
    const Network& f = l.table->networks[network];
    float* h = l.w.hidden + pair * l.width;
    if (first < f.up.rows && l.rounds(f.down)) round_group(l.rounding, h, h, first, f.up.rows);
  }
};

// hidden = silu(gate x) * up x, or gelu(up x + bias), for the task of pair y of token group z. Block x: some rows; groups of
// `split` warps share kWarpRows of them.
struct Hidden {
  static constexpr StageKind kKind = StageKind::Hidden;
  MoeLayer l;

  __host__ __device__ int64_t rows_of_block() const { return kStageWarps / split_of(l.x.n) * kWarpRows; }

  template <int kMost>
  __device__ void run(BlockOf<kMost> at) const {
    const PairGroup group(l, at.z);
    if (at.y >= group.n) return;
    const PairTask& task = group.task[at.y];
    if (task.n == 0 || at.x * rows_of_block() >= l.table->networks[task.network].up.rows) return;
    with_tokens<kMost>(task.n, *this, at, task, group.rest());
  }

  template <int kTokens>
  __device__ void run_tokens(Block at, const PairTask& task, float* part) const {
    constexpr int sums = kTokens * kWarpRows;  // part [gate, up][kStageWarps][sums]
    const Network& f = l.table->networks[task.network];
    const int split = split_of(l.x.n);
    const int64_t out = at.x * rows_of_block(), mine = out + warp() / split * kWarpRows;
    if (mine < f.up.rows) {
      const Columns columns = columns_of(l.x.n, split, warp() % split);
#pragma unroll 1
      for (int which = l.gated ? 0 : 1; which < 2; ++which) {
        const Matrix& m = which == 0 ? f.gate : f.up;
        const Gathered x = {l.input(m, 0), l.rounds(m) ? l.x.n : l.x.row_stride, task.token, task.n};
#pragma unroll 1
        for (int r = 0; r < kWarpRows; r += rows_at_once(kTokens)) {
          const float sum = products<kTokens>(m, mine, r, f.up.rows - 1, x, columns);
          if (stores_sum<kTokens>())
            part[(which * kStageWarps + warp()) * sums + r + place_of_sum<kTokens>()] = sum;
        }
      }
    }
    sync_block();
    const int group = thread() / sums, t = thread() % sums / kWarpRows;
    const int64_t i = out + group * kWarpRows + thread() % kWarpRows;
    if (group >= kStageWarps / split || t >= task.n || i >= f.up.rows) return;
    float gate = 0, up = 0;
    for (int k = 0; k < split; ++k) {
      const float* at_k = part + (group * split + k) * sums + thread() % sums;
      if (l.gated) gate += *at_k;
      up += at_k[kStageWarps * sums];
    }
    l.w.hidden[task.pair[t] * l.width + i] = activation(l.gated, gate, l.gated ? up : up + f.up_bias.at(i));
  }

  __device__ static float activation(bool gated, float gate, float up) {
    if (gated) return gate / (1.0f + expf(-gate)) * up;
    return 0.5f * up * (1.0f + erff(up * 0.70710678118654752f));
  }
};

// y = sum over k, in order, of w_k * down_k hidden_k, then + the shared expert's: kWarpRows rows x of token group y. The block's
// warps take turns at the tasks, of which `split` parts of the columns are units of work.
struct Down {
  static constexpr StageKind kKind = StageKind::Down;
  MoeLayer l;
  Added added;

  template <int kMost>
  __device__ void run(BlockOf<kMost> at) const {
    const PairGroup group(l, at.y);
    if (group.n == 0) return;
    const int64_t out = int64_t(at.x) * kWarpRows, d = l.x.n;
    float* part =
        group.rest();  // [pairs][kStageWarps][kWarpRows], of each as many as there are parts of the columns
    int unit = 0;
    for (int i = 0; i < group.n; ++i) {
      const PairTask& task = group.task[i];
      if (task.n == 0) continue;
      const int split = split_of(l.table->networks[task.network].down.cols);
      for (int k = 0; k < split; ++k, ++unit)
        if (unit % kStageWarps == warp())
          with_tokens<kMost>(task.n, *this, task, group.first, k, split, out, part);
    }
    sync_block();
    const int t = thread() / kWarpRows, r = thread() % kWarpRows;
    if (t * (l.k + 1) >= group.n || out + r >= d) return;
    float sum = 0;
    for (int64_t j = 0; j <= l.k; ++j) {
      const int64_t pair = t * (l.k + 1) + j;
      if (group.network[pair] < 0) continue;
      const Network& f = l.table->networks[group.network[pair]];
      float value = 0;
      for (int k = 0; k < split_of(f.down.cols); ++k) value += part[(pair * kStageWarps + k) * kWarpRows + r];
      if (!l.gated) value += f.down_bias.at(out + r);
      sum += j < l.k ? l.weights.row(int64_t(at.y) * kTogether + t)[j] * value : value;
    }
    l.y.row(int64_t(at.y) * kTogether + t)[out + r] = sum;
    added.put(int64_t(at.y) * kTogether + t, out + r, sum);
  }

  template <int kTokens>
  __device__ void run_tokens(const PairTask& task, int64_t first, int k, int split, int64_t out,
                             float* part) const {
    const Network& f = l.table->networks[task.network];
    const Columns columns = columns_of(f.down.cols, split, k);
    const int place = place_of_sum<kTokens>(), token = place / kWarpRows;
#pragma unroll 1
    for (int r = 0; r < kWarpRows; r += rows_at_once(kTokens)) {
      const float sum =
          products<kTokens>(f.down, out, r, l.x.n - 1, {l.w.hidden, l.width, task.pair, task.n}, columns);
      if (stores_sum<kTokens>() && token < task.n)
        part[((task.pair[token] - first) * kStageWarps + k) * kWarpRows + place % kWarpRows + r] = sum;
    }
  }
};

}  // namespace lite::cuda
