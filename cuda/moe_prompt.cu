// Experts in prompts: how many pairs are sorted, and their products by the matrix unit.
#include "cuda/product.h"
#include "cuda/tile.h"

namespace lite::cuda {
namespace {

template <class Visit>
void for_each_network(const ExpertSet& set, const Visit& visit) {
  for (const FfnWeights& f : set.slots) visit(f);
  if (set.has_shared) visit(set.shared);
}
// ---- sorting: by network, and within one by pair

// The networks of the block's pairs, to shared memory; returns how many pairs there are.
__device__ int read_networks(const MoeLayer& l, int32_t* network) {
  const int64_t first = int64_t(block_x()) * kSortPairs;
  const int n = int(max(int64_t(0), min(int64_t(kSortPairs), l.pairs(l.live.rows()) - first)));
  for (int i = thread(); i < n; i += threads()) network[i] = l.network_of(first + i);
  sync_block();
  return n;
}

// A thread counts the pairs of its networks.
__global__ void count_pairs_kernel(MoeLayer l, int32_t* counts) {
  const int networks = int(l.networks());
  int32_t* const network = shared_memory<int32_t>();
  const int n = read_networks(l, network);
  for (int s = thread(); s < networks; s += threads()) {
    int32_t count = 0;
    for (int i = 0; i < n; ++i) count += network[i] == s;
    counts[int64_t(block_x()) * networks + s] = count;
  }
}

// One block: turns counts into places, and makes the tasks.
__global__ void make_tasks_kernel(MoeLayer l, int32_t* counts, int pairs_per_task) {
  const int networks = int(l.networks());
  const int64_t blocks = (l.pairs(l.live.rows()) + kSortPairs - 1) / kSortPairs;
  int32_t* const total = shared_memory<int32_t>();  // [networks]
  for (int s = thread(); s < networks; s += threads()) {
    int32_t sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += counts[b * networks + s];
    total[s] = sum;
  }
  sync_block();
  for (int s = thread(); s < networks; s += threads()) {
    int32_t first = 0, task = 0;
    for (int before = 0; before < s; ++before) {
      first += total[before];
      task += (total[before] + pairs_per_task - 1) / pairs_per_task;
    }
    for (int32_t i = 0; i < total[s]; i += pairs_per_task)
      l.w.tasks[task++] = {s, first + i, min(pairs_per_task, total[s] - i)};
    if (s == networks - 1) *l.w.n_tasks = task;
    for (int64_t b = 0; b < blocks; ++b) {
      const int32_t count = counts[b * networks + s];
      counts[b * networks + s] = first;
      first += count;
    }
  }
}

// A thread lists the pairs of its networks.
__global__ void list_pairs_kernel(MoeLayer l, const int32_t* counts) {
  const int networks = int(l.networks());
  int32_t* const network = shared_memory<int32_t>();
  const int n = read_networks(l, network);
  for (int s = thread(); s < networks; s += threads()) {
    int32_t at = n > 0 ? counts[int64_t(block_x()) * networks + s] : 0;
    for (int i = 0; i < n; ++i)
      if (network[i] == s) l.w.list[at++] = int32_t(int64_t(block_x()) * kSortPairs + i);
  }
}

// ---- products

__global__ void round_input_kernel(MoeLayer l, RoundedRows to) {
  const int64_t t = block_x(), first = (int64_t(block_y()) * kTileWarps + warp()) * kRoundGroup;
  if (t < l.live.rows() && first < l.x.n) round_row(l.rounding, l.x.row(t), l.x.n, first, to, t);
}

__global__ void round_hidden_kernel(MoeLayer l, RoundedRows to) {
  const int64_t pair = block_x(), first = (int64_t(block_y()) * kTileWarps + warp()) * kRoundGroup;
  if (pair >= l.pairs(l.live.rows())) return;
  const int32_t network = l.network_of(pair);
  if (network < 0) return;
  const int64_t n = l.table->networks[network].up.rows;
  if (first < n) round_row(l.rounding, l.w.hidden + pair * l.width, n, first, to, pair);
}

// The pairs of a task by the tile's rows.
struct TaskRows {
  const int32_t* pairs;
  int n;

  __device__ int64_t operator()(int row) const { return pairs[min(row, n - 1)]; }
};

__device__ float silu(float z) {
  return z / (1.0f + expf(-z));
}

// hidden = silu(gate x) * up x. A warp's columns are first of gate, then the same of up.
template <class T>
__global__ __launch_bounds__(kTileThreads, 1) void hidden_kernel(MoeLayer l, RoundedRows x) {
  constexpr int kHalf = T::kWarpCols / 2, kFragments = T::kFragments / 2;
  const int64_t col0 = int64_t(block_x()) * (T::kCols / 2);
  if (block_y() >= *l.w.n_tasks) return;
  const MoeTask task = l.w.tasks[block_y()];
  const Network& f = l.table->networks[task.network];
  const int cols = int(min(int64_t(T::kCols / 2), f.up.rows - col0));
  if (cols <= 0) return;
  const TaskRows pair = {l.w.list + task.first, task.n};
  typename T::Sums sum;
  T::multiply_all(
      f.up.cols, x, [&](int r) { return l.token_of(pair(r)); }, task.n,
      [&](int c) {
        return WeightRow{c % T::kWarpCols < kHalf ? &f.gate : &f.up,
                         col0 + c / T::kWarpCols * kHalf + c % kHalf};
      },
      2 * cols, sum);
#pragma unroll
  for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = T::row(r, i);
      if (row >= task.n) continue;
      float* const to = l.w.hidden + pair(row) * l.width + col0;
#pragma unroll
      for (int k = 0; k < kFragments; ++k) {
        const int col = T::col(k, i) - T::col0() / 2;
        if (col < cols) to[col] = silu(sum[r][k][i]) * sum[r][k + kFragments][i];
      }
    }
}

// result = down hidden.
template <class T>
__global__ __launch_bounds__(kTileThreads, 1) void down_kernel(MoeLayer l, RoundedRows hidden) {
  const int64_t col0 = int64_t(block_x()) * T::kCols, d = l.x.n;
  if (block_y() >= *l.w.n_tasks) return;
  const MoeTask task = l.w.tasks[block_y()];
  const Matrix& down = l.table->networks[task.network].down;
  const int cols = int(min(int64_t(T::kCols), d - col0));
  const TaskRows pair = {l.w.list + task.first, task.n};
  typename T::Sums sum;
  T::multiply_all(
      down.cols, hidden, pair, task.n,
      [&](int c) {
        return WeightRow{&down, col0 + c};
      },
      cols, sum);
#pragma unroll
  for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = T::row(r, i);
      if (row >= task.n) continue;
      float* const to = l.w.result + pair(row) * d + col0;
#pragma unroll
      for (int k = 0; k < T::kFragments; ++k)
        if (T::col(k, i) < cols) to[T::col(k, i)] = sum[r][k][i];
    }
}

template <DType kType>
void launch_hidden(const MoeLayer& l, const RoundedRows& x, int64_t tasks, Stream& stream) {
  using T = Tile<kType, 1, 4>;
  static_assert(T::kRows == kTaskPairs);
  launch(hidden_kernel<T>, {ceil_div(l.width, T::kCols / 2), tasks}, kTileThreads, T::kShared, stream, l, x);
}
template <DType kType>
void launch_down(const MoeLayer& l, const RoundedRows& hidden, int64_t tasks, Stream& stream) {
  using T = Tile<kType, 1, 4>;
  launch(down_kernel<T>, {ceil_div(l.x.n, T::kCols), tasks}, kTileThreads, T::kShared, stream, l, hidden);
}

}  // namespace

bool takes_tiles(const ExpertSet& set, const Step& step) {
  bool fits = step.phase == kPrompt && !step.exact && set.activation == Activation::SwiGlu;
  const auto [up, down] = types_of(set);
  for_each_network(set, [&, up = up, down = down](const FfnWeights& f) {
    fits = fits && f.gate.dtype == up && f.up.dtype == up && f.down.dtype == down;
    for (const Tensor* t : {&f.gate, &f.up, &f.down}) fits = fits && fits_tiles(matrix_of(*t));
  });
  return fits;
}

void sort_pairs(const Graph& g, const Node& n, const Step& step, const MoeLayer& l, int pairs_per_task) {
  const MoePromptWorkspace w = moe_prompt_workspace(g, n, step.exact, g.tensor(n.workspace).data + l.w.bytes);
  const int64_t networks = l.networks(), blocks = ceil_div(l.pairs(l.live.most), kSortPairs);
  if (networks == 0) return;
  const int threads = int(std::min<int64_t>(round_up(networks, kWarp), 1024));
  launch(count_pairs_kernel, {blocks}, threads, kSortPairs * int64_t(sizeof(int32_t)), step.stream, l,
         w.counts);
  launch(make_tasks_kernel, {}, threads, networks * int64_t(sizeof(int32_t)), step.stream, l, w.counts,
         pairs_per_task);
  launch(list_pairs_kernel, {blocks}, threads, kSortPairs * int64_t(sizeof(int32_t)), step.stream, l,
         w.counts);
}

void tiled_experts(const Graph& g, const Node& n, const Step& step, const MoeLayer& l) {
  const MoePromptWorkspace w = moe_prompt_workspace(g, n, step.exact, g.tensor(n.workspace).data + l.w.bytes);
  const auto [up, down] = types_of(experts_of(g, n));
  const int64_t pairs = l.pairs(l.live.most), networks = l.networks(),
                tasks = most_tasks(pairs, networks, kTaskPairs);
  launch(round_input_kernel, {l.live.most, ceil_div(w.x.groups, kTileWarps)}, kTileThreads, 0, step.stream, l,
         w.x);
  if (up == DType::F8_E4M3)
    launch_hidden<DType::F8_E4M3>(l, w.x, tasks, step.stream);
  else
    launch_hidden<DType::BF16>(l, w.x, tasks, step.stream);
  launch(round_hidden_kernel, {pairs, ceil_div(w.hidden.groups, kTileWarps)}, kTileThreads, 0, step.stream, l,
         w.hidden);
  if (down == DType::F8_E4M3)
    launch_down<DType::F8_E4M3>(l, w.hidden, tasks, step.stream);
  else
    launch_down<DType::BF16>(l, w.hidden, tasks, step.stream);
}

}  // namespace lite::cuda
