// The twin of cuda/device.h that runs kernels on the host (tests/cuda_host), and weights in the memory of devices.
#include "cuda/device.h"
#include "ggml-lite/device_weights.h"
#include "tests/unit/support.h"

using namespace lite;

namespace {

constexpr int kThreads = 96;

// Every thread leaves its number, then reads that of the thread opposite; block (x, y, z) has its own row.
__global__ void reverse(int* out, int x, int y) {
  int* const place = cuda::shared_memory<int>();
  place[cuda::thread()] = cuda::thread();
  cuda::sync_block();
  const int row = (cuda::block_z() * y + cuda::block_y()) * x + cuda::block_x();
  out[row * kThreads + cuda::thread()] = place[cuda::threads() - 1 - cuda::thread()] + row;
}

// Lanes that arrive at different times: the higher, the more exchanges of its own warp lie behind it.
__global__ void exchange(float* sums, int* partners) {
  const int lane = cuda::thread() % cuda::kWarp, warp = cuda::thread() / cuda::kWarp;
  float value[2] = {float(lane), 1};
  for (int i = 0; i <= warp; ++i) cuda::warp_sum(value);
  sums[cuda::thread()] = value[0];
  partners[cuda::thread()] = cuda::shuffle_xor(cuda::thread(), 5);
  cuda::sync_block();
  sums[cuda::thread()] += value[1];
}

// c [16, 8] = a [16, 16] b [16, 8], elements of a and b rounded to bf16 on the way.
__global__ void product(const float* a, const float* b, float* c) {
  const int g = cuda::thread() / 4, i = cuda::thread() % 4 * 2;
  uint32_t of_a[4], of_b[2];
  for (int k = 0; k < 4; ++k) {
    const float* at = a + (g + k % 2 * 8) * 16 + i + k / 2 * 8;
    of_a[k] = cuda::bf16x2_of(at[0], at[1]);
  }
  for (int k = 0; k < 2; ++k) of_b[k] = cuda::bf16x2_of(b[(i + k * 8) * 8 + g], b[(i + k * 8 + 1) * 8 + g]);
  float d[4] = {};
  cuda::multiply(d, of_a, of_b);
  for (int k = 0; k < 4; ++k) c[(g + k / 2 * 8) * 8 + i + k % 2] = d[k];
}

// Rows of 16 elements: the matrices are their left and right halves, of rows 0 to 7 and 8 to 15.
__global__ void matrices(const uint16_t* from, uint32_t* plain, uint32_t* transposed) {
  uint16_t* const rows = cuda::shared_memory<uint16_t>();
  for (int i = 0; i < 8; ++i) rows[cuda::thread() * 8 + i] = from[cuda::thread() * 8 + i];
  cuda::sync_block();
  const int lane = cuda::thread();
  uint32_t words[4];
  cuda::load_matrices(words, rows + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
  for (int m = 0; m < 4; ++m) plain[lane * 4 + m] = words[m];
  cuda::load_matrices_transposed(words, rows + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
  for (int m = 0; m < 4; ++m) transposed[lane * 4 + m] = words[m];
}

// Each thread reads what its two copies have brought so far: after the first has been waited for, and after both.
__global__ void copies(const int* from, int* to) {
  int* const place = cuda::shared_memory<int>() + cuda::thread() * 8;
  for (int i = 0; i < 8; ++i) place[i] = -1;
  for (int i = 0; i < 2; ++i) {
    cuda::copy16_async(place + 4 * i, from + cuda::thread() * 8 + 4 * i);
    cuda::commit_copies();
  }
  int* const out = to + cuda::thread() * 3;
  cuda::wait_copies<1>();
  out[0] = place[3], out[1] = place[7];
  cuda::wait_copies<0>();
  out[2] = place[7];
}

__global__ void add_one(int* value) {
  *value += cuda::thread() == 0;
}

cuda::Stream make_stream() {
  auto stream = cuda::Stream::create(0);
  REQUIRE(stream.ok());
  return *stream;
}

}  // namespace

TEST_CASE("kernels on the host: blocks, barriers, shared memory") {
  cuda::Stream stream = make_stream();
  std::vector<int> out(2 * 3 * 2 * kThreads);
  cuda::launch(reverse, {2, 3, 2}, kThreads, kThreads * 4, stream, out.data(), 2, 3);
  CHECK(stream.wait().ok());
  for (int row = 0; row < 12; ++row)
    for (int i = 0; i < kThreads; ++i) REQUIRE(out[row * kThreads + i] == kThreads - 1 - i + row);
}

TEST_CASE("kernels on the host: exchanges of a warp") {
  cuda::Stream stream = make_stream();
  std::vector<float> sums(kThreads);
  std::vector<int> partners(kThreads);
  cuda::launch(exchange, {}, kThreads, 0, stream, sums.data(), partners.data());
  CHECK(stream.wait().ok());
  for (int i = 0; i < kThreads; ++i) {
    const int more = i / 32;  // sums of equal values
    CHECK(sums[i] == float(std::pow(32, more) * (31 * 32 / 2) + std::pow(32, more + 1)));
    CHECK(partners[i] == (i ^ 5));
  }
}

TEST_CASE("kernels on the host: a product of the matrix unit") {
  cuda::Stream stream = make_stream();
  test::Rng rng(61);
  std::vector<float> a(16 * 16), b(16 * 8), c(16 * 8);
  for (std::vector<float>* v : {&a, &b})
    for (float& x : *v) x = f32_from_bf16(bf16_from_f32(float(rng.uniform())));
  cuda::launch(product, {}, 32, 0, stream, a.data(), b.data(), c.data());
  CHECK(stream.wait().ok());
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = 0;
      for (int k = 0; k < 16; ++k) sum += double(a[row * 16 + k]) * b[k * 8 + column];
      REQUIRE(std::fabs(c[row * 8 + column] - sum) < 1e-5);
    }
}

TEST_CASE("kernels on the host: matrices of shared memory as the matrix unit takes them") {
  cuda::Stream stream = make_stream();
  std::vector<uint16_t> from(16 * 16);
  for (size_t i = 0; i < from.size(); ++i) from[i] = uint16_t(i);
  std::vector<uint32_t> plain(32 * 4), transposed(32 * 4);
  cuda::launch(matrices, {}, 32, 16 * 16 * 2, stream, from.data(), plain.data(), transposed.data());
  CHECK(stream.wait().ok());
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      const auto element = [&](int row, int column) {
        return uint32_t((row + m / 2 * 8) * 16 + column + m % 2 * 8);
      };
      const int a = lane / 4, b = lane % 4 * 2;
      CHECK(plain[lane * 4 + m] == (element(a, b + 1) << 16 | element(a, b)));
      CHECK(transposed[lane * 4 + m] == (element(b + 1, a) << 16 | element(b, a)));
    }
}

TEST_CASE("kernels on the host: copies arrive when they are waited for, not before") {
  cuda::Stream stream = make_stream();
  std::vector<int> from(64 * 8), to(64 * 3);
  for (int i = 0; i < int(from.size()); ++i) from[i] = i;
  cuda::launch(copies, {}, 64, int64_t(from.size() * sizeof(int)), stream, from.data(), to.data());
  CHECK(stream.wait().ok());
  for (int i = 0; i < 64; ++i) {
    CHECK(to[3 * i] == 8 * i + 3);
    CHECK(to[3 * i + 1] == -1);
    CHECK(to[3 * i + 2] == 8 * i + 7);
  }
}

TEST_CASE("kernels on the host: what is recorded runs when it is replayed, in order") {
  cuda::Stream stream = make_stream();
  int value = 0;
  REQUIRE(stream.begin_recording().ok());
  for (int i = 0; i < 3; ++i) cuda::launch(add_one, {5}, 32, 0, stream, &value);
  const auto recording = stream.end_recording();
  REQUIRE(recording.ok());
  CHECK(stream.wait().ok());
  CHECK(value == 0);
  for (int i = 0; i < 2; ++i) CHECK(stream.replay(*recording).ok());
  CHECK(stream.wait().ok());
  CHECK(value == 30);
}

TEST_CASE("device weights: what another device reads is copied there once, with its scales") {
  test::Rng rng(60);
  const test::Weight table = test::make_weight(rng, 10, 64),
                     matrix = test::make_weight(
                         rng, 130, 64,
                         {.dtype = DType::F8_E4M3, .scales = test::Scales::F32, .row0 = 5, .col0 = 16}),
                     expert = test::make_weight(rng, 64, 64, {.dtype = DType::BF16});
  const std::unique_ptr<Backend> owned[] = {make_ref_backend(1), make_ref_backend(1)};
  Backend* const backends[] = {owned[0].get(), owned[1].get()};
  DeviceWeights weights;
  struct Built {
    Graph graph;
    Var table, matrix;
  };
  const auto build = [&](Built* g) {
    Builder b(&g->graph);
    const StepInputs in = b.step_inputs({.tokens = 2, .sequences = 1, .blocks = 1, .outputs = 1});
    const Var x = b.embed(g->table = b.weight(table.tensor), in.ids);
    b.set_device(1);
    b.linear(x, g->matrix = b.weight(matrix.tensor));
    ExpertSet set;
    set.slot_of_expert = {0};
    set.slots = {{expert.tensor, expert.tensor, expert.tensor, {}, {}}};
    const auto [ids, scores] = b.route(b.linear(x, b.weight(table.tensor)), Var::none(),
                                       {Scoring::Softmax, GroupScore::None, 1, 1, 1, false, 1});
    b.moe_ffn(x, ids, scores, set, Rounding::None);
    REQUIRE_MESSAGE(b.status().ok(), b.status().message());
    REQUIRE(weights.upload(&g->graph, backends).ok());
  };
  Built first, second;
  build(&first);
  build(&second);

  CHECK(first.graph.tensor(first.table).data == table.tensor.data);  // the host's stays
  const auto same = [](const Tensor& copy, const Tensor& original) {
    CHECK(copy.data != original.data);
    std::vector<float> a(copy.shape[1]), b(copy.shape[1]);
    for (int64_t i = 0; i < copy.shape[0]; ++i) {
      decode_row(copy, i, a.data());
      decode_row(original, i, b.data());
      REQUIRE(a == b);
    }
  };
  const Tensor& copy = first.graph.tensor(first.matrix);
  same(copy, matrix.tensor);
  CHECK(copy.scale.data != matrix.tensor.scale.data);
  for (const Tensor& t : {first.graph.experts[0].slots[0].gate, first.graph.experts[0].slots[0].down})
    same(t, expert.tensor);
  CHECK(second.graph.tensor(second.matrix).data == copy.data);
  CHECK(second.graph.tensor(second.matrix).scale.data == copy.scale.data);
  CHECK(second.graph.experts[0].slots[0].up.data == first.graph.experts[0].slots[0].gate.data);
}
