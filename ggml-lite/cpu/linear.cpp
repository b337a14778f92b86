// Products with weight matrices.
#include <algorithm>

#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/ref/ref.h"

namespace lite::cpu {
namespace {

bool rounds(const LinearParams& p, const Tensor& w) {
  return p.rounding != Rounding::None && w.dtype == DType::F8_E4M3;
}

// Rows of a matrix that one task takes: enough tasks for every thread, in whole groups of what a kernel reads at once.
int64_t rows_per_task(int64_t rows, int threads) {
  return std::clamp<int64_t>(round_up(ceil_div(rows, int64_t(threads) * 16), 8), 8, kPanelRows);
}

struct LinearMemory {
  float* rounded;               // [T, in], when rounding
  const float** row = nullptr;  // this thread's: [T]
  std::byte* product = nullptr;
  int64_t bytes;

  LinearMemory(const Graph& g, const Node& n, std::byte* base, int threads, int thread) {
    const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]);
    Carver carve(base);
    rounded = carve.take<float>(rounds(std::get<LinearParams>(n.params), w) ? x.shape[0] * x.shape[1] : 0);
    for (int i = 0; i < threads; ++i) {
      const float** const rows = carve.take<const float*>(x.shape[0]);
      std::byte* const scratch = carve.take<std::byte>(ProductScratch::bytes(w.shape[1]));
      if (i == thread) row = rows, product = scratch;
    }
    bytes = carve.used();
  }
};

}  // namespace

int64_t linear_workspace(const Graph& g, const Node& n, int threads) {
  return LinearMemory(g, n, nullptr, threads, 0).bytes;
}

void linear(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const int64_t rows = g.live_rows(n, n.in[0]), in = w.shape[1], out = w.shape[0];
  if (rows == 0) return;  // a pass without logits does not read the head
  const LinearParams& p = std::get<LinearParams>(n.params);
  LinearMemory memory(g, n, g.tensor(n.workspace).data, team.size, team.index);
  ProductScratch scratch(memory.product, in);
  for (int64_t t = 0; t < rows; ++t) memory.row[t] = x.row<float>(t);
  if (rounds(p, w)) {
    const auto [first, end] = team.share(rows);
    for (int64_t t = first; t < end; ++t)
      ref::round_row(p.rounding, x.row<float>(t), memory.rounded + t * in, in);
    for (int64_t t = 0; t < rows; ++t) memory.row[t] = memory.rounded + t * in;
    team.barrier();
  }

  // A task: some rows of the weights with some of the activations.
  const bool prompt = is_prompt(g, n);
  int64_t width = rows_per_task(out, team.size), tokens = rows;
  if (prompt) {
    // Whole panels, which are decoded once; with few of them the activations are split too.
    width = std::min(kPanelRows, out);
    const int64_t panels = ceil_div(out, width), parts = std::max<int64_t>(1, 8 * team.size / panels);
    tokens = std::max<int64_t>(64, round_up(ceil_div(rows, parts), 64));
  }
  const int64_t parts = ceil_div(rows, tokens);
  team.tasks(ceil_div(out, width) * parts, [&](int64_t i) {
    const int64_t o = i / parts * width, t = i % parts * tokens;
    const int64_t count = std::min(width, out - o), m = std::min(tokens, rows - t);
    float* to = y.row<float>(t) + o;
    const int64_t stride = y.stride[0] / int64_t(sizeof(float));
    if (prompt)
      prompt_product(a, w, o, count, memory.row + t, m, to, stride, scratch, p.f32);
    else
      decode_product(a, w, o, count, memory.row + t, m, to, stride, scratch);
    if (n.in[2])
      for (int64_t j = 0; j < count; ++j) {
        const float bias = element(g.tensor(n.in[2]), o + j);
        for (int64_t r = 0; r < m; ++r) to[r * stride + j] += bias;
      }
  });
}

namespace {

constexpr int64_t kTransposedRows = 16;  // weight rows decoded at once for a transposed product

struct PerHeadMemory {
  const float** row = nullptr;
  float* panel = nullptr;
  std::byte* product = nullptr;
  int64_t bytes;

  PerHeadMemory(const Graph& g, const Node& n, std::byte* base, int threads, int thread) {
    const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]);
    Carver carve(base);
    for (int i = 0; i < threads; ++i) {
      const float** const rows = carve.take<const float*>(x.shape[0]);
      float* const decoded = carve.take<float>(kTransposedRows * w.shape[1]);
      std::byte* const scratch = carve.take<std::byte>(ProductScratch::bytes(w.shape[1]));
      if (i == thread) row = rows, panel = decoded, product = scratch;
    }
    bytes = carve.used();
  }
};

}  // namespace

int64_t linear_per_head_workspace(const Graph& g, const Node& n, int threads) {
  return PerHeadMemory(g, n, nullptr, threads, 0).bytes;
}

void linear_per_head(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const auto p = std::get<LinearPerHeadParams>(n.params);
  const int64_t rows = g.live_rows(n, n.in[0]), cols = w.shape[1];
  PerHeadMemory memory(g, n, g.tensor(n.workspace).data, team.size, team.index);
  ProductScratch scratch(memory.product, cols);
  const int64_t x_stride = x.stride[0] / int64_t(sizeof(float)),
                y_stride = y.stride[0] / int64_t(sizeof(float));
  const bool prompt = is_prompt(g, n);
  team.tasks(x.shape[1], [&](int64_t h) {
    const int64_t first = h * p.head_rows + p.row0;
    if (!p.transposed) {
      for (int64_t t = 0; t < rows; ++t) memory.row[t] = x.row<float>(t, h);
      if (prompt)
        prompt_product(a, w, first, p.rows, memory.row, rows, y.row<float>(0, h), y_stride, scratch);
      else
        decode_product(a, w, first, p.rows, memory.row, rows, y.row<float>(0, h), y_stride, scratch);
      return;
    }
    for (int64_t t = 0; t < rows; ++t) std::fill_n(y.row<float>(t, h), cols, 0.0f);
    for (int64_t i = 0; i < p.rows; i += kTransposedRows) {
      const int64_t count = std::min(kTransposedRows, p.rows - i);
      decode_panel(*a.k, w, first + i, count, 0, cols, memory.panel);
      a.k->accumulate(Elem::F32, x.row<float>(0, h) + i, x_stride, rows, memory.panel, cols * 4, count,
                      y.row<float>(0, h), y_stride, cols);
    }
  });
}

void silu_mul(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  const Tensor &gate = g.tensor(n.in[0]), &up = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const int64_t rows = g.live_rows(n, n.in[0]), width = y.shape[1];
  // Few rows are split by columns, in whole vectors.
  const int64_t part = rows >= team.size ? width : round_up(ceil_div(width, int64_t(team.size)), 64);
  const int64_t parts = ceil_div(width, part);
  const auto [first, end] = team.share(rows * parts);
  for (int64_t i = first; i < end; ++i) {
    const int64_t t = i / parts, c = i % parts * part;
    a.k->silu_mul(gate.row<float>(t) + c, up.row<float>(t) + c, y.row<float>(t) + c,
                  std::min(part, width - c));
  }
}

}  // namespace lite::cpu
