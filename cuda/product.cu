// The products of linear in prompts.
#include "cuda/product.h"
#include "cuda/tile.h"

namespace lite::cuda {
namespace {

// By columns of y in groups of kRoundGroup, one of a warp.
__global__ void round_kernel(Rounding rounding, Values<float> x, RoundedRows to, Live live) {
  const int64_t t = block_x(), first = (int64_t(block_y()) * kTileWarps + warp()) * kRoundGroup;
  if (t < live.rows() && first < x.n) round_row(rounding, x.row(t), x.n, first, to, t);
}

template <class T>
__global__ __launch_bounds__(kTileThreads, 1) void product_kernel(Matrix w, RoundedRows x, Vector bias,
                                                                  Values<float> y, Live live) {
  const int64_t row0 = int64_t(block_x()) * T::kRows, col0 = int64_t(block_y()) * T::kCols;
  const int rows = int(min(int64_t(T::kRows), live.rows() - row0)),
            cols = int(min(int64_t(T::kCols), w.rows - col0));
  if (rows <= 0) return;
  typename T::Sums sum;
  T::multiply_all(
      w.cols, x, [&](int r) { return row0 + min(r, rows - 1); }, rows,
      [&](int c) {
        return WeightRow{&w, col0 + c};
      },
      cols, sum);
#pragma unroll
  for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
    for (int f = 0; f < T::kFragments; ++f)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = T::row(r, i), col = T::col(f, i);
        if (row < rows && col < cols)
          y.row(row0 + row)[col0 + col] = sum[r][f][i] + (bias.data ? bias.at(col0 + col) : 0.0f);
      }
}

template <class T>
void launch_product(const Matrix& w, const RoundedRows& x, const Vector& bias, const Values<float>& y,
                    const Live& live, const Step& step) {
  launch(product_kernel<T>, {ceil_div(live.most, T::kRows), ceil_div(w.rows, T::kCols)}, kTileThreads,
         T::kShared, step.stream, w, x, bias, y, live);
}

// Wide tiles for many rows; for few, narrow ones, so that many blocks read the weights.
template <DType kType>
void launch_products(const Matrix& w, const RoundedRows& x, const Vector& bias, const Values<float>& y,
                     const Live& live, const Step& step) {
  if (live.most <= kWarpRows)
    launch_product<Tile<kType, 1, 1>>(w, x, bias, y, live, step);
  else
    launch_product<Tile<kType, 2, kType == DType::F8_E4M3 ? 6 : 4>>(w, x, bias, y, live, step);
}

}  // namespace

bool takes_tiles(const Graph& g, const Node& n, const Step& step) {
  return step.phase == kPrompt && !step.exact && !std::get<LinearParams>(n.params).f32 &&
         fits_tiles(matrix_of(g.tensor(n.in[1])));
}

void tiled_linear(const Graph& g, const Node& n, const Step& step) {
  const Matrix w = matrix_of(g.tensor(n.in[1]));
  const auto x = values_of<float>(g.tensor(n.in[0])), y = values_of<float>(g.tensor(n.out[0]));
  const Vector bias = n.in[2] ? vector_of(g.tensor(n.in[2])) : Vector{};
  const Live live = live_rows(g, n, n.in[0], step);
  Carver carve(g.tensor(n.workspace).data);
  const RoundedRows rounded = rounded_of_linear(g, n, &carve);
  launch(round_kernel, {live.most, ceil_div(rounded.groups, kTileWarps)}, kTileThreads, 0, step.stream,
         std::get<LinearParams>(n.params).rounding, x, rounded, live);
  if (w.dtype == DType::F8_E4M3)
    launch_products<DType::F8_E4M3>(w, rounded, bias, y, live, step);
  else
    launch_products<DType::BF16>(w, rounded, bias, y, live, step);
}

}  // namespace lite::cuda
