// Ops that treat each row for itself.
#include "cuda/matrix.h"

namespace lite::cuda {
namespace {

constexpr int kThreads = 256;

// Blocks for every element of `rows` rows of n; a kernel finds its own with here().
Grid grid_of(int64_t rows, int64_t n) {
  return {rows, ceil_div(n, kThreads)};
}
struct Place {
  int64_t row, i;
};
__device__ Place here() {
  return {block_x(), int64_t(block_y()) * threads() + thread()};
}

// The sum of a value over the block's threads, in a fixed order; every thread gets it. Takes a float of shared memory per warp.
__device__ float block_sum(float value) {
  float* part = shared_memory<float>();
  float one[1] = {value};
  warp_sum(one);
  if (lane() == 0) part[warp()] = one[0];
  sync_block();
  float sum = 0;
  for (int w = 0; w < threads() / kWarp; ++w) sum += part[w];
  sync_block();
  return sum;
}

// Threads for a row of n when they work on it together: by its length, so that its bits depend on nothing else.
int threads_for(int64_t n) {
  return int(std::min<int64_t>(kThreads, round_up(ceil_div(n, 4), kWarp)));
}
int64_t shared_for(int threads) {
  return threads / kWarp * int64_t(sizeof(float));
}

__global__ void embed_kernel(Matrix table, const int32_t* ids, Values<float> y, Live live) {
  const auto [t, i] = here();
  const int64_t j = i * kPiece;
  if (t >= live.rows() || j >= table.cols) return;
  float value[kPiece];
  table.piece(ids[t], j, value);
#pragma unroll
  for (int k = 0; k < kPiece; ++k)
    if (j + k < table.cols) y.row(t)[j + k] = value[k];
}

__global__ void rms_norm_kernel(Values<float> x, Vector w, Values<float> y, float eps, Live live) {
  const int64_t t = block_x() / x.heads, h = block_x() % x.heads;
  if (t >= live.rows()) return;
  const float* from = x.row(t, h);
  float* to = y.row(t, h);
  float squares = 0;
  for (int64_t i = thread(); i < x.n; i += threads()) squares += from[i] * from[i];
  const float factor = 1.0f / sqrtf(block_sum(squares) / float(x.n) + eps);
  for (int64_t i = thread(); i < x.n; i += threads()) to[i] = from[i] * factor * w.at(i);
}

__global__ void layer_norm_kernel(Values<float> x, Vector w, Vector bias, Values<float> y, float eps,
                                  Live live) {
  const int64_t t = block_x();
  if (t >= live.rows()) return;
  const float* from = x.row(t);
  float sum = 0;
  for (int64_t i = thread(); i < x.n; i += threads()) sum += from[i];
  const float mean = block_sum(sum) / float(x.n);
  float squares = 0;
  for (int64_t i = thread(); i < x.n; i += threads()) squares += (from[i] - mean) * (from[i] - mean);
  const float factor = 1.0f / sqrtf(block_sum(squares) / float(x.n) + eps);
  for (int64_t i = thread(); i < x.n; i += threads())
    y.row(t)[i] = (from[i] - mean) * factor * w.at(i) + bias.at(i);
}

__global__ void rope_kernel(Values<float> x, const int32_t* positions, const float* inv_freq, Values<float> y,
                            RopeParams p, Live live) {
  const auto [t, i] = here();
  const int64_t half = x.n / 2;
  if (t >= live.rows() || i >= half) return;
  // The angle is rounded to f32, as every released implementation does; its cosine and sine are exact.
  const double angle = float(positions[t]) * inv_freq[i];
  const float c = float(cos(angle)) * p.scale, s = float(sin(angle)) * p.scale;
  const int64_t a = p.interleaved ? 2 * i : i, b = p.interleaved ? 2 * i + 1 : i + half;
  for (int64_t h = 0; h < x.heads; ++h) {
    const float xa = x.row(t, h)[a], xb = x.row(t, h)[b];
    y.row(t, h)[a] = xa * c - xb * s;
    y.row(t, h)[b] = xa * s + xb * c;
  }
}

// Rows of a stream, of any float type.
struct StreamRows {
  uint8_t* data;
  int64_t stride;
  DType dtype;
};
StreamRows stream_of(const Tensor& t) {
  return {reinterpret_cast<uint8_t*>(t.data), t.stride[0], t.dtype};
}

__global__ void stream_write_kernel(StreamRows stream, const int32_t* rows, Values<float> a, Values<float> b,
                                    Live live) {
  const auto [t, i] = here();
  if (t >= live.rows() || i >= a.n + b.n) return;
  const float value = i < a.n ? a.row(t)[i] : b.row(t)[i - a.n];
  encode(stream.dtype, value, stream.data + rows[t] * stream.stride, i);
}

__global__ void stream_read_kernel(StreamRows stream, const int32_t* rows, Values<float> y, Live live) {
  const auto [t, i] = here();
  if (t >= live.rows() || i >= y.n) return;
  y.row(t)[i] = decode(stream.dtype, stream.data + rows[t] * stream.stride, i);
}

__global__ void silu_mul_kernel(Values<float> gate, Values<float> up, Values<float> y, Live live) {
  const auto [t, i] = here();
  if (t >= live.rows() || i >= y.n) return;
  const float z = gate.row(t)[i];
  y.row(t)[i] = z / (1.0f + expf(-z)) * up.row(t)[i];
}

__global__ void add_kernel(Values<float> a, Values<float> b, Values<float> y, Live live) {
  const auto [t, i] = here();
  if (t < live.rows() && i < y.n) y.row(t)[i] = a.row(t)[i] + b.row(t)[i];
}

__global__ void concat_kernel(Values<float> a, Values<float> b, Values<float> y, Live live) {
  const auto [t, i] = here();
  if (t < live.rows() && i < y.n) y.row(t)[i] = i < a.n ? a.row(t)[i] : b.row(t)[i - a.n];
}

// rows null: row t of x.
__global__ void copy_kernel(Values<uint32_t> x, const int32_t* rows, Values<uint32_t> y, Live live) {
  const auto [t, i] = here();
  if (t < live.rows() && i < y.n) y.row(t)[i] = x.row(rows ? rows[t] : t)[i];
}

const int32_t* integers(const Graph& g, Var v) {
  return g.tensor(v).row<int32_t>(0);
}

}  // namespace

void embed(const Graph& g, const Node& n, const Step& step) {
  const Tensor& table = g.tensor(n.in[0]);
  const Live live = live_rows(g, n, n.out[0], step);
  launch(embed_kernel, {live.most, ceil_div(ceil_div(table.shape[1], kPiece), kThreads)}, kThreads, 0,
         step.stream, matrix_of(table), integers(g, n.in[1]), values_of<float>(g.tensor(n.out[0])), live);
}

void rms_norm(const Graph& g, const Node& n, const Step& step) {
  const auto x = values_of<float>(g.tensor(n.in[0])), y = values_of<float>(g.tensor(n.out[0]));
  const Live live = live_rows(g, n, n.in[0], step);
  const int threads = threads_for(x.n);
  launch(rms_norm_kernel, {live.most * x.heads}, threads, shared_for(threads), step.stream, x,
         vector_of(g.tensor(n.in[1])), y, std::get<NormParams>(n.params).eps, live);
}

void layer_norm(const Graph& g, const Node& n, const Step& step) {
  const auto x = values_of<float>(g.tensor(n.in[0])), y = values_of<float>(g.tensor(n.out[0]));
  const Live live = live_rows(g, n, n.in[0], step);
  const int threads = threads_for(x.n);
  launch(layer_norm_kernel, {live.most}, threads, shared_for(threads), step.stream, x,
         vector_of(g.tensor(n.in[1])), vector_of(g.tensor(n.in[2])), y, std::get<NormParams>(n.params).eps,
         live);
}

void rope(const Graph& g, const Node& n, const Step& step) {
  const auto x = values_of<float>(g.tensor(n.in[0])), y = values_of<float>(g.tensor(n.out[0]));
  const Live live = live_rows(g, n, n.in[0], step);
  launch(rope_kernel, grid_of(live.most, x.n / 2), kThreads, 0, step.stream, x, integers(g, n.in[1]),
         g.tensor(n.in[2]).row<float>(0), y, std::get<RopeParams>(n.params), live);
}

void stream_write(const Graph& g, const Node& n, const Step& step) {
  const Tensor& stream = g.tensor(n.in[0]);
  const Live live = live_rows(g, n, n.in[1], step);
  const Values<float> b = n.in[3] ? values_of<float>(g.tensor(n.in[3])) : Values<float>{};
  launch(stream_write_kernel, grid_of(live.most, stream.shape[1]), kThreads, 0, step.stream,
         stream_of(stream), integers(g, n.in[1]), values_of<float>(g.tensor(n.in[2])), b, live);
}

void stream_read(const Graph& g, const Node& n, const Step& step) {
  const auto y = values_of<float>(g.tensor(n.out[0]));
  const Live live = live_rows(g, n, n.in[1], step);
  launch(stream_read_kernel, grid_of(live.most, y.n), kThreads, 0, step.stream, stream_of(g.tensor(n.in[0])),
         integers(g, n.in[1]), y, live);
}

namespace {

// What makes a value of two, element by element of the result.
void of_two(void (*kernel)(Values<float>, Values<float>, Values<float>, Live), const Graph& g, const Node& n,
            const Step& step) {
  const auto y = values_of<float>(g.tensor(n.out[0]));
  const Live live = live_rows(g, n, n.in[0], step);
  launch(kernel, grid_of(live.most, y.n), kThreads, 0, step.stream, values_of<float>(g.tensor(n.in[0])),
         values_of<float>(g.tensor(n.in[1])), y, live);
}

}  // namespace

void silu_mul(const Graph& g, const Node& n, const Step& step) {
  of_two(silu_mul_kernel, g, n, step);
}

void add(const Graph& g, const Node& n, const Step& step) {
  of_two(add_kernel, g, n, step);
}

void concat(const Graph& g, const Node& n, const Step& step) {
  of_two(concat_kernel, g, n, step);
}

void select_rows(const Graph& g, const Node& n, const Step& step) {
  const auto y = values_of<uint32_t>(g.tensor(n.out[0]));
  const Live live = live_rows(g, n, n.out[0], step);
  launch(copy_kernel, grid_of(live.most, y.n), kThreads, 0, step.stream,
         values_of<uint32_t>(g.tensor(n.in[0])), integers(g, n.in[1]), y, live);
}

// A value whose rows are contiguous, to another device or from it. Everything that moves has elements of 4 bytes.
void copy(const Graph& g, const Node& n, const Step& step) {
  const auto flat = [&](Var v) {
    const Tensor& t = g.tensor(v);
    return Values<uint32_t>{t.row<uint32_t>(0), t.stride[0] / 4, 0, 1, t.elements() / t.shape[0]};
  };
  const Live live = live_rows(g, n, n.in[0], step);
  launch(copy_kernel, grid_of(live.most, flat(n.out[0]).n), kThreads, 0, step.stream, flat(n.in[0]), nullptr,
         flat(n.out[0]), live);
}

}  // namespace lite::cuda
