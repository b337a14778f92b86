// Running experts. In a prompt the (token, k) pairs are sorted by expert on the device, cut into tasks of up to kTogether
// pairs of one expert, and every task meets that expert's weights: nothing is read back to the host.
#include <cstring>

#include "cuda/product.h"
#include "cuda/stages/experts.h"

namespace lite::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kRows = 2;  // of `down`, of one warp

// hidden = silu(gate x) * up x, or gelu(up x + bias): a warp has one row of the task's network.
__global__ void hidden_kernel(MoeLayer l) {
  const int64_t i = int64_t(block_x()) * kWarps + warp();
  if (block_y() >= *l.w.n_tasks) return;
  const MoeTask task = l.w.tasks[block_y()];
  const Network& f = l.table->networks[task.network];
  if (i >= f.up.rows) return;
  const int64_t row[1] = {i};
  const int32_t* pairs = l.w.list + task.first;
  float gate[kTogether], up[kTogether];
  const float* from[kTogether];
  const auto product = [&](const Matrix& m, float(&sum)[kTogether]) {
#pragma unroll
    for (int t = 0; t < kTogether; ++t) from[t] = l.input(m, l.token_of(pairs[min(t, task.n - 1)]));
    products(m, row, from, task.n, sum);
  };
  product(f.up, up);
  if (l.gated) product(f.gate, gate);
#pragma unroll
  for (int t = 0; t < kTogether; ++t) {
    if (lane() != t || t >= task.n) continue;
    const float value = l.gated ? up[t] : up[t] + f.up_bias.at(i);
    l.w.hidden[pairs[t] * l.width + i] = Hidden::activation(l.gated, l.gated ? gate[t] : 0.0f, value);
  }
}

// result = down hidden, or + bias.
__global__ void down_kernel(MoeLayer l) {
  const int64_t out = (int64_t(block_x()) * kWarps + warp()) * kRows, d = l.x.n;
  if (block_y() >= *l.w.n_tasks || out >= d) return;
  const MoeTask task = l.w.tasks[block_y()];
  const Network& f = l.table->networks[task.network];
  const int32_t* pairs = l.w.list + task.first;
  const float* from[kTogether];
#pragma unroll
  for (int t = 0; t < kTogether; ++t) from[t] = l.w.hidden + pairs[min(t, task.n - 1)] * l.width;
  int64_t row[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) row[r] = min(out + r, d - 1);
  float sum[kRows * kTogether];
  products(f.down, row, from, task.n, sum);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int t = 0; t < kTogether; ++t)
      if (lane() == r * kTogether + t && t < task.n && out + r < d)
        l.w.result[pairs[t] * d + out + r] =
            sum[r * kTogether + t] + (l.gated ? 0.0f : f.down_bias.at(out + r));
}

// y = sum over k, in order, of w_k * result_k, then + the shared expert's.
__global__ void sum_kernel(MoeLayer l) {
  const int64_t t = block_x(), i = int64_t(block_y()) * threads() + thread(), d = l.x.n;
  if (t >= l.live.rows() || i >= d) return;
  float sum = 0;
  for (int64_t j = 0; j <= l.k; ++j) {
    const int64_t pair = t * (l.k + 1) + j;
    if (l.network_of(pair) < 0) continue;
    const float part = l.w.result[pair * d + i];
    sum += j < l.k ? l.weights.row(t)[j] * part : part;
  }
  l.y.row(t)[i] = sum;
}

Network network_of(const FfnWeights& f) {
  return {matrix_of(f.gate), matrix_of(f.up), matrix_of(f.down), vector_of(f.up_bias),
          vector_of(f.down_bias)};
}

}  // namespace

// The table, then the networks, then the slots (moe_table_bytes).
void write_moe_table(const ExpertSet& set, std::byte* to, const std::byte* device_address) {
  const size_t networks = sizeof(MoeTable), slots = networks + (set.slots.size() + 1) * sizeof(Network);
  const MoeTable table = {reinterpret_cast<const Network*>(device_address + networks),
                          reinterpret_cast<const int32_t*>(device_address + slots)};
  std::memcpy(to, &table, sizeof table);
  std::byte* at = to + networks;
  for (const FfnWeights& f : set.slots) {
    const Network network = network_of(f);
    std::memcpy(at, &network, sizeof network);
    at += sizeof network;
  }
  const Network shared = set.has_shared ? network_of(set.shared) : Network{};
  std::memcpy(at, &shared, sizeof shared);
  if (!set.slot_of_expert.empty())
    std::memcpy(to + slots, set.slot_of_expert.data(), set.slot_of_expert.size() * sizeof(int32_t));
}

void moe_ffn(const Graph& g, const Node& n, const Step& step) {
  const ExpertSet& set = experts_of(g, n);
  MoeLayer l = {};
  l.table = step.moe;
  l.w = moe_workspace(g, n, g.tensor(n.workspace).data);
  l.x = values_of<float>(g.tensor(n.in[0]));
  l.ids = values_of<int32_t>(g.tensor(n.in[1]));
  l.weights = values_of<float>(g.tensor(n.in[2]));
  l.y = values_of<float>(g.tensor(n.out[0]));
  l.live = live_rows(g, n, n.in[0], step);
  l.k = l.ids.n;
  l.slots = int64_t(set.slots.size());
  l.width = width_of(set);
  l.shared = set.has_shared;
  l.gated = set.activation == Activation::SwiGlu;
  l.rounding = std::get<MoeParams>(n.params).rounding;

  if (step.phase == kDecode) return decode_experts(step, l, added_of(g, n, step));
  const bool tiles = takes_tiles(set, step);
  const int64_t d = l.x.n, pairs = l.pairs(l.live.most), tasks = most_tasks(pairs, l.networks(), kTogether);
  sort_pairs(g, n, step, l, tiles ? kTaskPairs : kTogether);
  if (tiles) {
    tiled_experts(g, n, step, l);
  } else {
    if (l.rounding != Rounding::None)
      give(step, RoundInput{l}, {l.live.most, ceil_div(d, kStageWarps * kRoundGroup)});
    launch(hidden_kernel, {ceil_div(l.width, kWarps), tasks}, kThreads, 0, step.stream, l);
    if (l.rounding != Rounding::None)
      give(step, RoundHidden{l}, {pairs, ceil_div(l.width, kStageWarps * kRoundGroup)});
    launch(down_kernel, {ceil_div(d, kWarps * kRows), tasks}, kThreads, 0, step.stream, l);
  }
  launch(sum_kernel, {l.live.most, ceil_div(d, kThreads)}, kThreads, 0, step.stream, l);
}

}  // namespace lite::cuda
