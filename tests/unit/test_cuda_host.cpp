// The twin of cuda/device.h that runs kernels on the host (tests/cuda_host), levels of stages, and weights in the memory of devices.
#include <atomic>
#include <thread>

#include "cuda/cuda.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/program.h"
#include "cuda/tile.h"
#include "cuda/upload.h"
#include "ggml-lite/device_weights.h"
#include "ggml-lite/plan.h"
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

// Sums of 8 values over the lanes, of which every lane gets one; then what the lanes have left in shared memory.
__global__ void one_sum(float* sums, int* left) {
  float value[8];
  for (int i = 0; i < 8; ++i) value[i] = float(i * 100 + cuda::thread());
  sums[cuda::thread()] = cuda::warp_sums(value);
  int* const place = cuda::shared_memory<int>();
  place[cuda::thread()] = cuda::thread();
  cuda::sync_warp();
  left[cuda::thread()] = place[cuda::thread() ^ 31];
}

// Codes by the conversion for GPUs that have one, and by shifts, two of each word.
__global__ void convert(const uint32_t* codes, float* converted, float* shifted) {
  const int i = cuda::thread();
  cuda::f32_of_e4m3x4(codes[i], converted + 4 * i);
  for (int k = 0; k < 4; ++k)
    shifted[4 * i + k] =
        cuda::f32_of_f16(uint16_t(cuda::f16x2_of_e4m3x2(codes[i] >> 8 * (k % 2)) >> 16 * (k / 2))) * 256;
}

__global__ void read_words(const uint32_t* from, uint32_t* to) {
  const cuda::Words<1> one = cuda::load<1>(from + 3);
  const cuda::Words<2> two = cuda::load_once<2>(from + 2);
  const cuda::Words<4> four = cuda::load<4>(from + 4);
  to[0] = one.word[0], to[1] = two.word[0], to[2] = two.word[1], to[3] = four.word[0], to[4] = four.word[3];
}

// Writes down which block of which level has been done, in order.
__global__ void walk(int first, int end, const int* blocks, std::vector<std::pair<int, int>>* order) {
  for (int l = first; l < end; ++l)
    for (int b = cuda::block_x(); b < blocks[l]; b += cuda::blocks())
      if (cuda::thread() == 0) order->push_back({l, b});
}

// All codes of e4m3 as bf16; each thread has four.
__global__ void codes(uint32_t* to) {
  const uint32_t first = uint32_t(4 * cuda::thread());
  uint32_t pairs[2];
  cuda::bf16_of_e4m3x4(first | (first + 1) << 8 | (first + 2) << 16 | (first + 3) << 24, pairs);
  for (int i = 0; i < 2; ++i) to[2 * cuda::thread() + i] = pairs[i];
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

TEST_CASE("kernels on the host: bf16 of every code of e4m3") {
  cuda::Stream stream = make_stream();
  std::vector<uint32_t> pairs(128);
  cuda::launch(codes, {}, 64, 0, stream, pairs.data());
  CHECK(stream.wait().ok());
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    const uint16_t got = uint16_t(pairs[code / 2] >> code % 2 * 16);
    const float nan = code & 0x80 ? -480.0f : 480.0f;
    CHECK(got == bf16_from_f32((code & 0x7F) == 0x7F ? nan : f32_from_f8(uint8_t(code))));
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

TEST_CASE("kernels on the host: a lane's share of sums, and a warp that meets") {
  cuda::Stream stream = make_stream();
  std::vector<float> sums(32);
  std::vector<int> left(32);
  cuda::launch(one_sum, {}, 32, 32 * 4, stream, sums.data(), left.data());
  CHECK(stream.wait().ok());
  for (int i = 0; i < 32; ++i) {
    CHECK(sums[i] == float(i / 4 * 100 * 32 + 31 * 32 / 2));
    CHECK(left[i] == (i ^ 31));
  }
}

TEST_CASE("kernels on the host: every e4m3 code, by table and by shifts") {
  cuda::Stream stream = make_stream();
  std::vector<uint32_t> codes(64);
  std::vector<float> converted(256), shifted(256);
  for (uint32_t i = 0; i < 256; ++i) codes[i / 4] |= i << i % 4 * 8;
  cuda::launch(convert, {}, 64, 0, stream, codes.data(), converted.data(), shifted.data());
  CHECK(stream.wait().ok());
  for (int i = 0; i < 256; ++i) {
    CAPTURE(i);
    if (i % 128 == 127) {
      CHECK(std::isnan(converted[i]));
      CHECK(std::isnan(shifted[i]));
      continue;
    }
    CHECK(double(converted[i]) == test::e4m3(uint8_t(i)));
    CHECK(shifted[i] == converted[i]);
    CHECK(std::signbit(shifted[i]) == (i >= 128));
  }
}

TEST_CASE("kernels on the host: loads of words") {
  cuda::Stream stream = make_stream();
  alignas(16) const uint32_t from[8] = {10, 11, 12, 13, 14, 15, 16, 17};
  uint32_t to[5];
  cuda::launch(read_words, {}, 32, 0, stream, &from[0], &to[0]);
  CHECK(stream.wait().ok());
  CHECK(std::vector<uint32_t>(to, to + 5) == std::vector<uint32_t>{13, 12, 13, 14, 17});
}

TEST_CASE("kernels on the host: levels come one after the other, all blocks of one in any order") {
  cuda::Stream stream = make_stream();
  const int blocks[] = {3, 60, 1};
  std::vector<std::pair<int, int>> order;
  cuda::launch_levels(walk, {3, 60, 1}, 32, 0, stream, &blocks[0], &order);
  CHECK(stream.wait().ok());
  REQUIRE(order.size() == 64);
  CHECK(order.front() == std::pair(0, 2));
  CHECK(std::is_sorted(order.begin(), order.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; }));
  CHECK_FALSE(std::is_sorted(order.begin(), order.end()));
  std::sort(order.begin(), order.end());
  CHECK(std::unique(order.begin(), order.end()) == order.end());
}

TEST_CASE("levels: what neither writes what another reads or writes runs side by side") {
  std::byte memory[64];
  const auto at = [&](int begin, int end) { return cuda::Range{memory + begin, memory + end}; };
  cuda::Levels levels;
  const auto first_level = [&](cuda::Access access, int stages) {
    levels.begin(std::move(access));
    const int first = levels.next();
    for (int i = 1; i < stages; ++i) CHECK(levels.next() == first + i);
    return first;
  };
  CHECK(first_level({{}, {at(0, 16)}}, 1) == 0);
  CHECK(first_level({{at(0, 16)}, {at(16, 24)}}, 2) == 1);   // reads it; two stages
  CHECK(first_level({{at(0, 8)}, {at(24, 32)}}, 1) == 1);    // beside it
  CHECK(first_level({{at(20, 28)}, {at(32, 40)}}, 1) == 3);  // after both, of which one has two stages
  // Memory that is used again: nothing is handed on, but these bytes are still read, or written, by an earlier one.
  CHECK(first_level({{}, {at(8, 9)}}, 1) == 3);
  CHECK(first_level({{}, {at(39, 48)}}, 1) == 4);
  CHECK(first_level({{}, {at(48, 64)}}, 1) == 0);  // nobody's
  CHECK(first_level({{at(48, 64)}, {}}, 1) == 1);
  CHECK(first_level({{at(60, 64)}, {}}, 1) == 1);  // readers do not mind each other
}

TEST_CASE("levels: of a graph in which an arena gives the same bytes to several values") {
  Graph g;
  Builder b(&g);
  const StepInputs in = b.step_inputs({.tokens = 2, .sequences = 1, .blocks = 1, .outputs = 1});
  test::Rng rng(62);
  const test::Weight table = test::make_weight(rng, 10, 64), w = test::make_weight(rng, 64, 64);
  const Var x = b.embed(b.weight(table.tensor), in.ids);
  const Var p = b.linear(x, b.weight(w.tensor)), q = b.linear(x, b.weight(w.tensor));
  const Var y = b.add(p, q), z = b.add(y, y), last = b.add(z, z);
  b.keep(last);
  REQUIRE_MESSAGE(b.status().ok(), b.status().message());
  const std::unique_ptr<Backend> backend = make_cuda_planner(true);
  Backend* const backends[] = {backend.get()};
  auto plan = make_plan(&g, backends);
  REQUIRE(plan.ok());
  std::vector<std::byte> arena(size_t(plan->arena_bytes[0]));
  std::byte* const arenas[] = {arena.data()};
  bind(&g, *plan, arenas, {});
  CHECK(g.tensor(z).data < arena.data() + arena.size());
  const auto levels_of = [&] {
    cuda::Levels levels;
    std::vector<int> found;
    for (size_t i = 0; i < g.nodes.size(); ++i) {
      levels.begin(cuda::access_of(g, std::span(g.nodes).subspan(i, 1)));
      found.push_back(levels.next());
    }
    return found;
  };
  CHECK(levels_of() == std::vector<int>{0, 1, 1, 2, 3, 4});
  // The second product where the first one's input lies: it must wait for the first.
  g.values[q.id].tensor.data = g.tensor(x).data;
  CHECK(levels_of() == std::vector<int>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("levels: a product and what is added to it are one, and share no memory with what they read") {
  Graph g;
  Builder b(&g);
  const StepInputs in = b.step_inputs({.tokens = 2, .sequences = 1, .blocks = 1, .outputs = 1});
  test::Rng rng(63);
  const test::Weight table = test::make_weight(rng, 10, 64), w = test::make_weight(rng, 64, 64);
  const Var x = b.embed(b.weight(table.tensor), in.ids), y = b.linear(x, b.weight(w.tensor));
  const Var p = b.linear(y, b.weight(w.tensor)), sum = b.add(x, p);
  b.keep(b.linear(sum, b.weight(w.tensor)));
  REQUIRE_MESSAGE(b.status().ok(), b.status().message());
  const std::unique_ptr<Backend> backend = make_cuda_planner(true);
  std::vector<bool> joined;
  for (size_t i = 0; i < g.nodes.size(); ++i) joined.push_back(backend->joins_next(g, int32_t(i)));
  CHECK(joined == std::vector<bool>{false, false, true, false, false});
  Backend* const backends[] = {backend.get()};
  const auto plan = make_plan(&g, backends);
  REQUIRE(plan.ok());
  const auto apart = [&](Var one, Var other) {
    const size_t i = size_t(g.value(one).storage), j = size_t(g.value(other).storage);
    return plan->offset[i] + g.storages[i].bytes <= plan->offset[j] ||
           plan->offset[j] + g.storages[j].bytes <= plan->offset[i];
  };
  // The product is read for the last time by the node that makes p, and the sum made by the next one.
  CHECK(apart(y, sum));
  CHECK(apart(x, sum));
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

TEST_CASE(
    "kernels on the host: streams that record together run side by side, and wait where they are told to") {
  cuda::Stream first = make_stream(), second = make_stream();
  constexpr int kPlain = 7;
  int32_t go = 0;
  int value = 0, seen[2] = {}, from = kPlain, to = 0;
  REQUIRE(first.begin_recording().ok());
  auto mark = first.mark();
  REQUIRE(mark.ok());
  REQUIRE(second.await(*mark).ok());
  // The first waits for what only the second does; then the second for the first.
  cuda::await_segment(&go, nullptr, first);
  cuda::launch(add_one, {}, 32, 0, first, &value);
  cuda::tell_segment(&go, nullptr, second);
  mark = first.mark();
  REQUIRE(mark.ok());
  REQUIRE(second.await(*mark).ok());
  REQUIRE(second.copy(reinterpret_cast<std::byte*>(&seen[0]), reinterpret_cast<const std::byte*>(&value), 4)
              .ok());
  REQUIRE(second.copy(reinterpret_cast<std::byte*>(&to), reinterpret_cast<const std::byte*>(&from), 4).ok());
  mark = second.mark();
  REQUIRE(mark.ok());
  REQUIRE(first.await(*mark).ok());
  const auto recording = first.end_recording();
  REQUIRE(recording.ok());
  for (int round = 1; round <= 3; ++round) {
    go = kPending, to = 0;
    CHECK(first.replay(*recording).ok());
    CHECK(first.wait().ok());
    CHECK(seen[0] == round);
    CHECK(to == kPlain);
  }
  cuda::launch(add_one, {}, 32, 0, second, &value);  // it does not record any more
  CHECK(second.wait().ok());
  CHECK(value == 4);
}

TEST_CASE("kernels on the host: every ceiling is measured") {
  const auto meter = make_cuda_meter(0);
  REQUIRE(meter.ok());
  const auto c = (*meter)->measure();
  REQUIRE(c.ok());
  for (const double ceiling : {c->read_GBps, c->f32_GFLOPS, c->matrix_GFLOPS, c->link_GBps}) {
    CHECK(std::isfinite(ceiling));
    CHECK(ceiling > 0);
  }
  CHECK(make_cuda_meter(7).status().code() == Code::NotFound);
}

TEST_CASE("kernels on the host: a segment waits for a word, and a stopped one leaves no rows") {
  cuda::Stream first = make_stream(), second = make_stream();
  for (const Finished said : {kDone, kStopped}) {
    int value = 0;
    int32_t words[2] = {kPending, kPending}, counts[kCounts] = {5, 1, 2, kPrompt};
    cuda::await_segment(&words[0], counts, first);
    cuda::launch(add_one, {}, 32, 0, first, &value);
    cuda::tell_segment(&words[1], counts, first);
    cuda::await_segment(&words[1], nullptr, second);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    CHECK(cuda::load_acquire(&words[1]) == kPending);
    CHECK(first.poll().ok());
    cuda::store_release(&words[0], said);
    CHECK(second.wait().ok());
    CHECK(words[1] == said);
    CHECK(value == 1);
    CHECK(counts[kTokens] == (said == kDone ? 5 : 0));
    CHECK(counts[kOutputs] == (said == kDone ? 2 : 0));
    CHECK(first.wait().ok());
  }
}

TEST_CASE("uploads: pieces of any size arrive at their places, through parts of any size") {
  test::Rng rng(62);
  for (int round = 0; round < 40; ++round) {
    std::deque<std::vector<std::byte>> from;
    std::vector<Piece> pieces;
    int64_t end = 0;
    for (int64_t n = rng.between(0, 12); n > 0; --n) {
      std::vector<std::byte>& bytes = from.emplace_back(size_t(rng.between(1, rng.below(2) ? 9 : 5000)));
      for (std::byte& b : bytes) b = std::byte(rng.below(256));
      end += rng.below(3) ? 0 : rng.below(300);
      pieces.push_back({end, bytes.data(), int64_t(bytes.size())});
      end += int64_t(bytes.size());
    }
    std::vector<std::byte> to(size_t(end) + 1, std::byte{0xA5});
    CHECK(cuda::upload(0, to.data(), pieces, rng.between(1, 4000)).ok());
    for (size_t i = 0; i < pieces.size(); ++i)
      REQUIRE(std::equal(from[i].begin(), from[i].end(), to.begin() + pieces[i].place));
    CHECK(to.back() == std::byte{0xA5});
  }
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
