// Products with weight matrices.
#include <algorithm>

#include "ggml-lite/cpu/cpu.h"
#include "ggml-lite/ref/ref.h"

namespace lite::cpu {
namespace {

bool rounds(const LinearParams& p, const Tensor& w) {
  return p.rounding != Rounding::None && w.dtype == DType::F8_E4M3;
}

struct LinearMemory {
  float* rounded;               // [T, in], when rounding
  uint16_t* packed;             // [T, in], for the matrix unit
  const float** row = nullptr;  // this thread's: [T]
  std::byte* product = nullptr;
  int64_t bytes;

  LinearMemory(const Graph& g, const Node& n, std::byte* base, int threads, int thread, const Arithmetic& a) {
    const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]);
    const LinearParams& p = std::get<LinearParams>(n.params);
    Carver carve(base);
    rounded = carve.take<float>(rounds(p, w) ? x.shape[0] * x.shape[1] : 0);
    packed = carve.take<uint16_t>(tiles_take(a, w, p.f32) ? packed_rows(x.shape[0], x.shape[1]) : 0);
    for (int i = 0; i < threads; ++i) {
      const float** const rows = carve.take<const float*>(x.shape[0]);
      std::byte* const scratch = carve.take<std::byte>(ProductScratch::bytes(w.shape[1]));
      if (i == thread) row = rows, product = scratch;
    }
    bytes = carve.used();
  }
};

}  // namespace

int64_t linear_workspace(const Graph& g, const Node& n, int threads, const Arithmetic& a) {
  return LinearMemory(g, n, nullptr, threads, 0, a).bytes;
}

void linear(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const int64_t rows = g.live_rows(n, n.in[0]), in = w.shape[1], out = w.shape[0];
  if (rows == 0) return;  // a pass without logits does not read the head
  const LinearParams& p = std::get<LinearParams>(n.params);
  LinearMemory memory(g, n, g.tensor(n.workspace).data, team.size, team.index, a);
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
  const bool prompt = is_prompt(g, n), tiles = prompt && tiles_take(a, w, p.f32);
  if (tiles) {
    const auto [first, end] = team.share(ceil_div(rows, kTile));
    for (int64_t i = first; i < end; ++i)
      pack_rows(a, memory.row + i * kTile, std::min(kTile, rows - i * kTile), in,
                memory.packed + i * packed_group(in));
    team.barrier();
  }
  const TileUse use(a, tiles);
  int64_t width = decode_rows(out, team.size), tokens = rows;
  if (prompt) {
    // Whole panels, which are decoded once; with few of them the activations are split too.
    width = std::min(tiles ? kTileRows : kPanelRows, out);
    const int64_t panels = ceil_div(out, width), parts = std::max<int64_t>(1, 8 * team.size / panels);
    tokens = std::max<int64_t>(64, round_up(ceil_div(rows, parts), 64));
  }
  const int64_t parts = ceil_div(rows, tokens);
  team.tasks(ceil_div(out, width) * parts, [&](int64_t i) {
    const int64_t o = i / parts * width, t = i % parts * tokens;
    const int64_t count = std::min(width, out - o), m = std::min(tokens, rows - t);
    float* to = y.row<float>(t) + o;
    const int64_t stride = y.stride[0] / int64_t(sizeof(float));
    if (tiles)
      tile_product(a, w, o, count, memory.packed + t / kTile * packed_group(in), m, to, stride, scratch);
    else if (prompt)
      prompt_product(a, w, o, count, memory.row + t, m, to, stride, scratch, p.f32);
    else
      decode_product(a, w, o, count, memory.row + t, m, to, stride, scratch, p.f32);
    if (n.in[2])
      for (int64_t j = 0; j < count; ++j) {
        const float bias = element(g.tensor(n.in[2]), o + j);
        for (int64_t r = 0; r < m; ++r) to[r * stride + j] += bias;
      }
  });
}

namespace {

constexpr int64_t kTransposedRows = 16;  // weight rows decoded at once for a transposed product

// This thread's.
struct PerHeadMemory {
  const float** row = nullptr;
  float* panel = nullptr;
  uint16_t* packed = nullptr;
  std::byte* product = nullptr;
  int64_t bytes;

  PerHeadMemory(const Graph& g, const Node& n, std::byte* base, int threads, int thread,
                const Arithmetic& a) {
    const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]);
    Carver carve(base);
    for (int i = 0; i < threads; ++i) {
      const float** const rows = carve.take<const float*>(x.shape[0]);
      float* const decoded = carve.take<float>(kTransposedRows * w.shape[1]);
      uint16_t* const tiles =
          carve.take<uint16_t>(on_tiles(n, w, a) ? packed_rows(x.shape[0], w.shape[1]) : 0);
      std::byte* const scratch = carve.take<std::byte>(ProductScratch::bytes(w.shape[1]));
      if (i == thread) row = rows, panel = decoded, packed = tiles, product = scratch;
    }
    bytes = carve.used();
  }
  // In prompts. A transposed product adds up weight rows and stays f32.
  static bool on_tiles(const Node& n, const Tensor& w, const Arithmetic& a) {
    return !std::get<LinearPerHeadParams>(n.params).transposed && tiles_take(a, w);
  }
};

}  // namespace

int64_t linear_per_head_workspace(const Graph& g, const Node& n, int threads, const Arithmetic& a) {
  return PerHeadMemory(g, n, nullptr, threads, 0, a).bytes;
}

void linear_per_head(const Graph& g, const Node& n, const Team& team, const Arithmetic& a) {
  const Tensor &x = g.tensor(n.in[0]), &w = g.tensor(n.in[1]), &y = g.tensor(n.out[0]);
  const auto p = std::get<LinearPerHeadParams>(n.params);
  const int64_t rows = g.live_rows(n, n.in[0]), cols = w.shape[1];
  PerHeadMemory memory(g, n, g.tensor(n.workspace).data, team.size, team.index, a);
  ProductScratch scratch(memory.product, cols);
  const int64_t x_stride = x.stride[0] / int64_t(sizeof(float)),
                y_stride = y.stride[0] / int64_t(sizeof(float));
  const bool prompt = is_prompt(g, n), tiles = prompt && PerHeadMemory::on_tiles(n, w, a);
  const TileUse use(a, tiles);
  team.tasks(x.shape[1], [&](int64_t h) {
    const int64_t first = h * p.head_rows + p.row0;
    if (!p.transposed) {
      for (int64_t t = 0; t < rows; ++t) memory.row[t] = x.row<float>(t, h);
      float* const to = y.row<float>(0, h);
      if (tiles) {
        pack_rows(a, memory.row, rows, cols, memory.packed);
        tile_product(a, w, first, p.rows, memory.packed, rows, to, y_stride, scratch);
      } else if (prompt) {
        prompt_product(a, w, first, p.rows, memory.row, rows, to, y_stride, scratch);
      } else {
        decode_product(a, w, first, p.rows, memory.row, rows, to, y_stride, scratch);
      }
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
