// Products with weight matrices.
#include "cuda/product.h"
#include "cuda/stages/linear.h"
#include "cuda/stages/rows.h"

namespace lite::cuda {
namespace {

void give_linear(const Step& step, const Linear& stage) {
  give(step, stage,
       {ceil_div(stage.head.out, stage.rows_of_block()), ceil_div(stage.live.most, kTogether), stage.x.heads},
       kRingsBytes + kSumsBytes);
}

}  // namespace

void linear(const Graph& g, const Node& n, const Step& step) {
  if (takes_tiles(g, n, step)) return tiled_linear(g, n, step);
  const Tensor& w = g.tensor(n.in[1]);
  const Live live = live_rows(g, n, n.in[0], step);
  auto x = values_of<float>(g.tensor(n.in[0]));
  if (rounds_linear(g, n)) {
    Values<float> rounded = x;
    rounded.data = g.tensor(n.workspace).row<float>(0);
    rounded.row_stride = x.n;
    give(step, Round{std::get<LinearParams>(n.params).rounding, x, rounded, live},
         {live.most, ceil_div(x.n, kStageWarps * kRoundGroup)});
    x = rounded;
  }
  const Vector bias = n.in[2] ? vector_of(g.tensor(n.in[2])) : Vector{};
  give_linear(step, {matrix_of(w),
                     {w.shape[0], 0, w.shape[0]},
                     x,
                     bias,
                     values_of<float>(g.tensor(n.out[0])),
                     live,
                     added_of(g, n, step)});
}

void per_head(const Step& step, const Matrix& w, const Head& head, bool transposed, const Values<float>& x,
              const Values<float>& y, const Live& live) {
  if (!transposed) return give_linear(step, {w, head, x, {}, y, live, {}});
  const Transposed stage = {w, head, x, y, live};
  give(step, stage, {ceil_div(w.cols, kSpan), ceil_div(live.most, kTogether), x.heads}, stage.shared_bytes());
}

void linear_per_head(const Graph& g, const Node& n, const Step& step) {
  const auto p = std::get<LinearPerHeadParams>(n.params);
  per_head(step, matrix_of(g.tensor(n.in[1])), {p.head_rows, p.row0, p.rows}, p.transposed,
           values_of<float>(g.tensor(n.in[0])), values_of<float>(g.tensor(n.out[0])),
           live_rows(g, n, n.in[0], step));
}

}  // namespace lite::cuda
