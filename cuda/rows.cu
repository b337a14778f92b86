// Ops that treat each row for itself.
#include "cuda/stages/rows.h"

namespace lite::cuda {
namespace {

// Blocks for a thread per element of `rows` rows of n.
Grid grid_of(int64_t rows, int64_t n) {
  return {rows, ceil_div(n, kStageThreads)};
}

StreamRows stream_of(const Tensor& t) {
  return {reinterpret_cast<uint8_t*>(t.data), t.stride[0], t.dtype};
}

const int32_t* integers(const Graph& g, Var v) {
  return g.tensor(v).row<int32_t>(0);
}

Values<float> values(const Graph& g, Var v) {
  return values_of<float>(g.tensor(v));
}

// A stage that makes a value of two, element by element of the result.
template <class S>
void give_of_two(const Graph& g, const Node& n, const Step& step) {
  const S stage = {values(g, n.in[0]), values(g, n.in[1]), values(g, n.out[0]),
                   live_rows(g, n, n.in[0], step)};
  give(step, stage, grid_of(stage.live.most, stage.y.n));
}

}  // namespace

void embed(const Graph& g, const Node& n, const Step& step) {
  const Embed stage = {matrix_of(g.tensor(n.in[0])), integers(g, n.in[1]), values(g, n.out[0]),
                       live_rows(g, n, n.out[0], step)};
  give(step, stage, grid_of(stage.live.most, ceil_div(stage.table.cols, kPiece)));
}

void rms_norm(const Graph& g, const Node& n, const Step& step) {
  const RmsNorm stage = {values(g, n.in[0]), vector_of(g.tensor(n.in[1])), values(g, n.out[0]),
                         std::get<NormParams>(n.params).eps, live_rows(g, n, n.in[0], step)};
  give(step, stage, {stage.live.most * stage.x.heads}, kSumBytes);
}

void layer_norm(const Graph& g, const Node& n, const Step& step) {
  const LayerNorm stage = {
      values(g, n.in[0]),  vector_of(g.tensor(n.in[1])),       vector_of(g.tensor(n.in[2])),
      values(g, n.out[0]), std::get<NormParams>(n.params).eps, live_rows(g, n, n.in[0], step)};
  give(step, stage, {stage.live.most}, kSumBytes);
}

void rope(const Graph& g, const Node& n, const Step& step) {
  const Rope stage = {values(g, n.in[0]),  integers(g, n.in[1]),           g.tensor(n.in[2]).row<float>(0),
                      values(g, n.out[0]), std::get<RopeParams>(n.params), live_rows(g, n, n.in[0], step)};
  give(step, stage, grid_of(stage.live.most, stage.x.heads * (stage.x.n / 2)));
}

void stream_write(const Graph& g, const Node& n, const Step& step) {
  const Values<float> b = n.in[3] ? values(g, n.in[3]) : Values<float>{};
  const StreamWrite stage = {stream_of(g.tensor(n.in[0])), integers(g, n.in[1]), values(g, n.in[2]), b,
                             live_rows(g, n, n.in[1], step)};
  give(step, stage, grid_of(stage.live.most, stage.a.n + b.n));
}

void stream_read(const Graph& g, const Node& n, const Step& step) {
  const StreamRead stage = {stream_of(g.tensor(n.in[0])), integers(g, n.in[1]), values(g, n.out[0]),
                            live_rows(g, n, n.in[1], step)};
  give(step, stage, grid_of(stage.live.most, stage.y.n));
}

void silu_mul(const Graph& g, const Node& n, const Step& step) {
  give_of_two<SiluMul>(g, n, step);
}

void add(const Graph& g, const Node& n, const Step& step) {
  give_of_two<Add>(g, n, step);
}

void concat(const Graph& g, const Node& n, const Step& step) {
  give_of_two<Concat>(g, n, step);
}

void select_rows(const Graph& g, const Node& n, const Step& step) {
  const CopyRows stage = {values_of<uint32_t>(g.tensor(n.in[0])), integers(g, n.in[1]),
                          values_of<uint32_t>(g.tensor(n.out[0])), live_rows(g, n, n.out[0], step)};
  give(step, stage, grid_of(stage.live.most, stage.y.n));
}

// A value whose rows are contiguous, to another device or from it. Everything that moves has elements of 4 bytes.
void copy(const Graph& g, const Node& n, const Step& step) {
  const auto flat = [&](Var v) {
    const Tensor& t = g.tensor(v);
    return Values<uint32_t>{t.row<uint32_t>(0), t.stride[0] / 4, 0, 1, t.elements() / t.shape[0]};
  };
  const CopyRows stage = {flat(n.in[0]), nullptr, flat(n.out[0]), live_rows(g, n, n.in[0], step)};
  give(step, stage, grid_of(stage.live.most, stage.y.n));
}

}  // namespace lite::cuda
