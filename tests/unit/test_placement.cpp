// Placement: what goes where, what it takes to the byte, and that a divided model computes the same.
#include <doctest/doctest.h>

#include <cmath>

#include "convert/random.h"
#include "cuda/cuda.h"
#include "model/session.h"
#include "model/speed.h"
#include "tests/cuda_host/queue.h"
#include "tests/unit/api_model.h"
#include "tests/unit/support.h"
#include "tests/unit/temp_dir.h"

using namespace dsv3;
using test::Rng;

namespace {

const std::string kConfigs = DSV3_SOURCE_DIR "/bench/configs/";
const std::string kCases = DSV3_SOURCE_DIR "/tests/golden/cases/";
constexpr int64_t kDriver = int64_t(512) << 20;

template <class T>
T take(Result<T> result) {
  REQUIRE_MESSAGE(result.ok(), result.status().message());
  return std::move(*result);
}

// A GPU of the host layer that counts what is asked of the host for it.
class Counting final : public lite::Backend {
 public:
  Counting(int gpu, int64_t* shared) : inner_(take(lite::make_cuda_backend(gpu, true))), shared_(*shared) {}
  std::string name() const override { return inner_->name(); }
  Result<lite::Buffer> allocate(int64_t bytes) override { return inner_->allocate(bytes); }
  Result<lite::Buffer> allocate_shared(int64_t bytes) override {
    shared_ += bytes;
    return inner_->allocate_shared(bytes);
  }
  Status copy(std::byte* to, const std::byte* from, int64_t bytes) override {
    return inner_->copy(to, from, bytes);
  }
  Status check(const lite::Graph& g, const lite::Node& n) const override { return inner_->check(g, n); }
  int64_t workspace_bytes(const lite::Graph& g, const lite::Node& n) const override {
    return inner_->workspace_bytes(g, n);
  }
  bool joins_next(const lite::Graph& g, int32_t node) const override { return inner_->joins_next(g, node); }
  int64_t recording_bytes(const lite::Graph& g, const lite::Plan& plan, int device,
                          std::span<const lite::Phase> phases) const override {
    return inner_->recording_bytes(g, plan, device, phases);
  }
  bool asynchronous() const override { return true; }
  Status prepare(const lite::Graph& g, const lite::Plan& plan, int device,
                 std::span<const lite::Phase> phases) override {
    return inner_->prepare(g, plan, device, phases);
  }
  Status start(const lite::Graph& g, const lite::Plan& plan, int device) override {
    LITE_TRY(inner_->start(g, plan, device));
    if (started) started();
    return {};
  }
  Status poll() override { return inner_->poll(); }
  Status wait() override { return inner_->wait(); }

  std::function<void()> started;  // called when the GPU has been given a step

 private:
  std::unique_ptr<lite::Backend> inner_;
  int64_t& shared_;
};

SessionOptions options_of(const Model& model, int gpus) {
  SessionOptions o = {};
  o.context = 96;
  o.max_seqs = 2;
  o.max_batch_tokens = 16;
  o.max_logits = 16;
  o.n_threads = 1;
  o.exact = true;
  o.kv = lite::DType::F32;
  o.mtp = model.config().num_nextn_predict_layers > 0;
  for (int gpu = 0; gpu < gpus; ++gpu)
    o.device.gpus.push_back(
        {[](bool exact) { return Result<std::unique_ptr<lite::Backend>>(lite::make_cuda_planner(exact)); },
         nullptr});
  return o;
}

// The logits of a prompt and of two tokens after it.
std::vector<float> logits_of(Model& model, const SessionOptions& options) {
  const auto session = take(Session::plan(model, options));
  const Status allocated = session->allocate();
  REQUIRE_MESSAGE(allocated.ok(), allocated.message());
  std::vector<float> out;
  const std::vector<int32_t> ids = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4};
  const auto eval = [&](std::span<const int32_t> tokens) {
    const Status status = session->eval({tokens, nullptr, nullptr, nullptr, {}});
    REQUIRE_MESSAGE(status.ok(), status.message());
    const int32_t last = int32_t(tokens.size()) - 1;
    const size_t width = size_t(model.config().output_size());
    out.insert(out.end(), session->logits(last), session->logits(last) + width);
    if (options.mtp) out.insert(out.end(), session->mtp_logits(last), session->mtp_logits(last) + width);
  };
  eval(ids);
  eval(std::span(ids).first(1));
  eval(std::span(ids).first(1));
  return out;
}

std::string random_rules(Rng& rng, const Config& c, int gpus) {
  const char* const roles[] = {"embed",          "attention",      "dense_ffn", "router",
                               "shared_experts", "routed_experts", "mtp",       "head"};
  std::string rules;
  for (int64_t n = rng.between(0, 6); n > 0; --n) {
    const int64_t first = rng.below(int64_t(c.layers.size())),
                  last = rng.between(first, int64_t(c.layers.size()) - 1);
    const std::string layers = lite::str("layers ", first, "-", last, " "),
                      device = device_text(int(rng.between(0, gpus)));
    std::string rule;
    if (rng.below(2)) {
      const int64_t experts = c.layers.back().n_routed_experts, from = rng.below(experts);
      rule = lite::str(layers, "experts ", from, "-", rng.between(from, experts - 1), " = ", device);
    } else {
      const char* role = roles[rng.below(8)];
      rule = lite::str(rng.below(2) ? layers : "", role, " = ", device);
    }
    if (parse_place(rule, c, gpus).ok()) rules += rule + "; ";
  }
  return rules;
}

}  // namespace

TEST_CASE(
    "any division computes what the host computes, run for run to the bit, in the bytes that were planned") {
  const TempDir dir;
  const uint64_t seed = 20261122;
  CAPTURE(seed);
  Rng rng(seed);
  for (const char* name : {"ds3-mtp", "ds2-lite", "qwen3-moe"}) {
    RandomOptions random;
    random.config = kCases + name + "/config.json";
    random.out = dir / lite::str(name, ".dsv3");
    random.dtype = lite::DType::F8_E4M3;
    REQUIRE(write_random_model(random).ok());
    const std::vector<float> want = [&] {
      const auto model = take(Model::open(random.out));
      return logits_of(*model, options_of(*model, 0));
    }();
    double largest = 0;
    for (const float v : want) largest = std::max(largest, std::abs(double(v)));
    for (int round = 0; round < 8; ++round) {
      const auto model = take(Model::open(random.out));  // its copies of weights are counted once a session
      const int gpus = int(rng.between(1, 2));
      SessionOptions o = options_of(*model, gpus);
      o.place = random_rules(rng, model->config(), gpus);
      if (rng.below(2) || gpus == 2) o.gpu_memory = kDriver + rng.between(300'000, 5'000'000);
      CAPTURE(name);
      CAPTURE(o.place);
      CAPTURE(o.gpu_memory);
      CAPTURE(gpus);
      const auto plan = Session::plan(*model, o);
      if (!plan.ok()) {
        CHECK_MESSAGE(plan.status().code() == lite::Code::OutOfMemory, plan.status().message());
        CHECK(plan.status().message().find(" more than driver and activations leave") != std::string::npos);
        continue;
      }
      const int64_t before[] = {lite::cuda::host::allocated(0), lite::cuda::host::allocated(1)};
      int64_t shared = 0;
      o.device.gpus.clear();
      for (int gpu = 0; gpu < gpus; ++gpu)
        o.device.gpus.push_back({[&shared, gpu](bool) -> Result<std::unique_ptr<lite::Backend>> {
                                   return std::unique_ptr<lite::Backend>(new Counting(gpu, &shared));
                                 },
                                 nullptr});
      const std::vector<float> first = logits_of(*model, o);
      for (int gpu = 1; gpu <= gpus; ++gpu) {
        const MemoryUse& use = (*plan)->layout().memory[size_t(gpu)];
        CHECK(lite::cuda::host::allocated(gpu - 1) - before[gpu - 1] ==
              use.weights + use.cache + use.activations);
        CHECK(model->device_weights().bytes(gpu) == use.weights);
        if (o.gpu_memory) CHECK(use.total() <= o.gpu_memory);
      }
      const int64_t rows =
          (o.mtp ? 2 : 1) * o.max_logits * model->config().output_size() * int64_t(sizeof(float));
      CHECK(shared == (*plan)->layout().memory[0].activations - rows);
      double worst = 0;
      for (size_t i = 0; i < want.size(); ++i)
        worst = std::max(worst, std::abs(double(first[i]) - double(want[i])));
      CHECK(worst < 1e-4 * largest);
      CHECK(logits_of(*model, o) == first);
    }
  }
}

TEST_CASE("every budget ends in a plan: what is streamed yields where nothing else is left") {
  const auto model = take(Model::open(api_test::packed("ds3-fp8")));
  for (const int64_t beyond : {-kDriver + 1, int64_t(-1), int64_t(1000), int64_t(100'000), int64_t(400'000)})
    for (const int64_t from : {0, 1}) {
      SessionOptions o = options_of(*model, 1);
      o.gpu_memory = kDriver + beyond;
      o.stream_from = from;
      CAPTURE(beyond);
      const auto plan = Session::plan(*model, o);
      REQUIRE_MESSAGE(plan.ok(), plan.status().message());
      CHECK((*plan)->layout().memory[1].total() <= o.gpu_memory);
    }
}

TEST_CASE("what a plan takes, less a few bytes, is a budget like any other") {
  const auto model = take(Model::open(api_test::packed("ds3-fp8")));
  SessionOptions o = options_of(*model, 1);
  o.gpu_memory = kDriver + 400'000;
  for (int i = 0; i < 12; ++i) {
    const auto plan = take(Session::plan(*model, o));
    const int64_t taken = plan->layout().memory[1].total();
    CAPTURE(o.gpu_memory);
    CHECK(taken <= o.gpu_memory);
    if (taken == 0) break;
    o.gpu_memory = taken - (i % 2 ? 1 : 100);
  }
}

TEST_CASE("a divided session that is cancelled in the middle of a step can be used on") {
  const auto model = take(Model::open(api_test::packed("ds3-fp8")));
  SessionOptions o = options_of(*model, 0);
  o.place = "routed_experts=cpu; layers 0 attention=cpu";
  int64_t shared = 0;
  Session* running = nullptr;
  bool cancels = false;
  o.device.gpus.push_back({[&](bool) -> Result<std::unique_ptr<lite::Backend>> {
                             auto gpu = std::make_unique<Counting>(0, &shared);
                             gpu->started = [&] {
                               if (cancels) running->cancel();
                             };
                             return std::unique_ptr<lite::Backend>(std::move(gpu));
                           },
                           nullptr});
  const auto session = take(Session::plan(*model, o));
  running = session.get();
  REQUIRE(session->allocate().ok());
  const std::vector<int32_t> ids = {3, 1, 4, 1, 5};
  const Batch batch = {ids, nullptr, nullptr, nullptr, {}};
  const auto logits = [&] {
    const float* row = session->logits(int32_t(ids.size()) - 1);
    return std::vector<float>(row, row + model->config().output_size());
  };
  REQUIRE(session->eval(batch).ok());
  const std::vector<float> want = logits();
  CHECK(session->crossings().count > 0);
  CHECK(session->crossings().bytes > int64_t(ids.size()) * model->config().hidden_size * 4);
  CHECK(session->crossings().waited >= 0);
  for (int repeat = 0; repeat < 5; ++repeat) {
    session->sequences().resize(0, 0);
    cancels = true;
    CHECK(session->eval(batch).code() == lite::Code::Cancelled);
    CHECK(session->sequences().length(0) == 0);
    cancels = false;
    REQUIRE(session->eval(batch).ok());
    CHECK(logits() == want);
  }
}

TEST_CASE("a configuration alone is planned as its converted model") {
  for (const char* name : {"ds3-mtp", "ds2-lite", "ds3-fp8", "qwen3-moe-fp8"}) {
    CAPTURE(std::string(name));
    const auto outline = take(Model::outline(kCases + name + "/config.json"));
    const auto model = take(Model::open(api_test::packed(name)));
    const Parts a(*outline), b(*model);
    for (int layer = -1; layer < int(model->config().layers.size()); ++layer)
      for (int role = 0; role < kRoles; ++role) {
        CHECK(a.of(layer, Role(role)).file == b.of(layer, Role(role)).file);
        CHECK(a.of(layer, Role(role)).copied == b.of(layer, Role(role)).copied);
        CHECK(a.of(layer, Role(role)).read == b.of(layer, Role(role)).read);
      }
    int64_t file = 0;
    for (const auto& extent : model->file().extents()) file += extent.bytes;
    SessionOptions o = options_of(*model, 0);
    CHECK(take(Session::plan(*outline, o))->layout().memory[0].weights == file);
    CHECK(std::abs(double(model->bytes_per_token()) -
                   decode_speed(model->config(), b, Placement(model->config(), 0),
                                {false, 0, lite::DType::F32, std::vector<double>{1}, 1})
                       .read[0]) < 8);
  }
}

TEST_CASE("the released V3 is divided by bytes read per byte stored") {
  const auto model = take(Model::outline(kConfigs + "deepseek-v3.json"));
  const Config& c = model->config();
  SessionOptions o = options_of(*model, 1);
  o.context = 4096;
  o.max_batch_tokens = 512;
  o.mtp = false;
  o.kv = lite::DType::BF16;
  o.gpu_memory = int64_t(24) << 30;
  const SessionPlan plan = take(Session::plan(*model, o))->layout();
  const Placement& p = plan.placement;
  CHECK(p.device(-1, Role::Embed) == 0);
  CHECK(p.device(-1, Role::Head) == 1);
  int on_gpu = 0;
  for (int layer = 0; layer < 61; ++layer) {
    CHECK(p.device(layer, Role::Attention) == 1);
    for (int e = 0; layer >= 3 && e < 256; ++e) on_gpu += p.expert_device(layer, e);
  }
  const int64_t expert = Parts(*model).expert(3, 0).copied;
  CHECK(expert == 3 * (2048 * 7168 + 16 * 56 * 4));
  // One expert more does not fit.
  CHECK(plan.memory[1].total() <= o.gpu_memory);
  CHECK(plan.memory[1].total() + expert > o.gpu_memory);
  CHECK(on_gpu > 100);
  CHECK(on_gpu < 256);
  // Every part is somewhere, once: 671e9 parameters of about a byte.
  CHECK(plan.memory[0].weights + plan.memory[1].weights > int64_t(671e9));
  CHECK(plan.memory[0].weights + plan.memory[1].weights < int64_t(676e9));

  o = options_of(*model, 8);
  o.mtp = false;
  o.gpu_memory = int64_t(80) << 30;
  const Placement eight = take(Session::plan(*model, o))->layout().placement;
  for (int layer = 0; layer < 61; ++layer) {
    CHECK(eight.device(layer, Role::Attention) >= (layer ? eight.device(layer - 1, Role::Attention) : 1));
    for (int e = 0; layer >= 3 && e < 256; ++e) CHECK(eight.expert_device(layer, e) > 0);
  }
  CHECK(eight.device(60, Role::Attention) == 8);
  CHECK(c.layers.size() == 62);
}

TEST_CASE("speed: devices of one layer work side by side, all else one after the other") {
  const auto model = take(Model::outline(kConfigs + "deepseek-v3.json"));
  const Parts parts(*model);
  const std::vector<double> bandwidth = {100e9, 1000e9};
  const auto speed = [&](const Placement& p) {
    return decode_speed(model->config(), parts, p, {false, 0, lite::DType::BF16, bandwidth, 25e9});
  };
  Placement p(model->config(), 0);
  DecodeSpeed s = speed(p);
  CHECK(s.read[0] == doctest::Approx(double(s.seconds) * 100e9));
  CHECK(s.crossed == 0);
  CHECK(s.crossings == 0);
  const double all = s.read[0];
  p = Placement(model->config(), 1);
  for (int layer = 3; layer < 61; ++layer) p.put(layer, Role::RoutedExperts, 0);
  s = speed(p);
  CHECK(s.read[0] + s.read[1] == doctest::Approx(all));
  CHECK(s.crossed == 58 * (2 * 7168 * 4 + 8 * 8));
  CHECK(s.crossings == 58 * 2);
  const double shared = 58 * parts.of(3, Role::SharedExperts).read;  // hidden behind the host's experts
  CHECK(s.seconds == doctest::Approx(s.read[0] / 100e9 + (s.read[1] - shared) / 1000e9 + s.crossed / 25e9));
}

TEST_CASE("rules: the last one holds, and what is not understood is refused with what is") {
  const auto model = take(Model::outline(kCases + "ds3-mtp/config.json"));
  const Config& c = model->config();
  const auto refused = [&](const std::string& text, const std::string& part) {
    const auto rules = parse_place(text, c, 2);
    REQUIRE_MESSAGE(!rules.ok(), text);
    CHECK(rules.status().code() == lite::Code::InvalidArgument);
    CHECK_MESSAGE(rules.status().message().find(part) != std::string::npos, rules.status().message());
  };
  refused("layers 1 foo=cuda", "got \"foo\", expected [layers A-B] and embed, attention");
  refused("attention", "got its end");
  refused("attention=gpu", "got \"gpu\"");
  refused("attention=cuda:2", "got GPU 2, but there are 2 in use");
  refused("attention=cuda:x", "\"cuda:x\"");
  refused("attention=cuda:99999999999", "cuda:99999999999");
  refused("attention=cpu cuda", "got \"cuda\"");
  refused("=cuda", "expected [layers");
  refused("layers 0-99 router=cpu", "\"0-99\", expected a number or A-B in 0..");
  refused("layers 2-1 router=cpu", "\"2-1\"");
  refused("layers -1 router=cpu", "\"-1\"");
  refused("layers", "got nothing");
  refused("experts 0-9999=cpu", "experts: got \"0-9999\"");
  refused("layers 0 routed_experts=cpu", "no such part");
  refused("layers 1 head=cpu", "no such part");
  refused("kv=cpu", "cached rows lie with their layer's attention");

  const auto rules =
      take(parse_place("attention = cuda:1; layers 1 experts 2-3=cuda\nlayers 1 experts 3 =cpu;;", c, 2));
  Demand demand;
  demand.room.assign(3, 0);
  demand.cache.assign(c.layers.size() + 1, 0);
  demand.room = {0, int64_t(1) << 20, int64_t(1) << 40};
  demand.room[1] = Parts(*model).expert(1, 2).copied;
  const Placement p = take(choose_placement(c, Parts(*model), demand, rules, 2));
  CHECK(p.device(0, Role::Attention) == 2);
  CHECK(p.expert_device(1, 2) == 1);
  CHECK(p.expert_device(1, 3) == 0);
  demand.room[1] -= 1;
  const auto tight = choose_placement(c, Parts(*model), demand, rules, 2);
  REQUIRE(!tight.ok());
  CHECK(tight.status().code() == lite::Code::OutOfMemory);
  CHECK(tight.status().message().find(", 1 more than driver and activations leave") != std::string::npos);
}
