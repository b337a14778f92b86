// Experts that are brought to another device while a step runs.
#include "ggml-lite/staging.h"

#include <algorithm>

#include "tests/unit/support.h"

using namespace lite;
using test::Rng;

TEST_CASE("weights that are brought while a step runs: what they say, and room for two at a time") {
  const auto host = make_ref_backend(2), other = make_ref_backend(1);
  const std::vector<Backend*> both = {host.get(), other.get()};
  Rng rng(62);
  ExpertSet all;
  std::deque<test::Weight> weights;
  const auto make = [&](int64_t rows, int64_t cols) {
    weights.push_back(test::make_weight(
        rng, rows, cols, {.dtype = DType::F8_E4M3, .scales = test::Scales::F32, .row0 = 5, .col0 = 16}));
    return weights.back().tensor;
  };
  for (int e = 0; e < 6; ++e) all.slots.push_back({make(130, 64), make(130, 64), make(64, 130), {}, {}});
  const test::Weight table = test::make_weight(rng, 4, 64), router = test::make_weight(rng, 6, 64);
  std::vector<std::vector<float>> results;
  int64_t unstaged = 0;
  for (const int groups : {0, 2, 6}) {
    Graph g;
    Builder b(&g);
    const StepInputs in = b.step_inputs({.tokens = 4, .sequences = 1, .blocks = 1, .outputs = 1});
    const Var x = b.embed(b.weight(table.tensor), in.ids);
    const auto [ids, shares] = b.route(b.linear(x, b.weight(router.tensor)), Var::none(),
                                       {Scoring::Softmax, GroupScore::None, 1, 1, 1, false, 1});
    Var sum;
    int64_t one = 0;
    for (int first = 0; first < 6; first += 6 / std::max(groups, 1)) {
      ExpertSet set;
      set.slot_of_expert.assign(6, -1);
      for (int e = first; e < first + 6 / std::max(groups, 1); ++e) {
        set.slot_of_expert[size_t(e)] = int32_t(set.slots.size());
        set.slots.push_back(all.slots[size_t(e)]);
      }
      one = staged_bytes(set);
      const Var staged = groups ? b.stage(set, 1) : Var::none();
      b.set_device(groups ? 1 : 0);
      const Var part = b.moe_ffn(x, ids, shares, set, Rounding::None, staged);
      sum = sum ? b.add(sum, part) : part;  // one expert a token: all other parts are zeros
    }
    const Var kept = b.keep(sum);
    REQUIRE_MESSAGE(b.status().ok(), b.status().message());
    const auto plan = make_plan(&g, both);
    REQUIRE(plan.ok());
    const auto aside =
        std::count_if(plan->segments.begin(), plan->segments.end(), [](const Segment& s) { return s.aside; });
    CHECK(aside == groups);  // each comes by itself, beside the device's work
    if (groups == 0)
      unstaged = plan->arena_bytes[0];
    else
      CHECK(plan->arena_bytes[0] < unstaged + 2 * (one + kStagedRow) + (32 << 10));
    auto memory = allocate_arenas(plan->arena_bytes, both);
    REQUIRE(memory.ok());
    std::byte* const arenas[] = {(*memory)[0].get(), (*memory)[1].get()};
    lite::bind(&g, *plan, arenas, {});
    g.tensor(in.counts).row<int32_t>(0)[kTokens] = 4;
    for (int t = 0; t < 4; ++t) g.tensor(in.ids).row<int32_t>(0)[t] = t;
    const std::atomic<bool> cancel = false;
    REQUIRE(lite::run(g, *plan, both, cancel).ok());
    const float* y = g.tensor(kept).row<float>(0);
    results.emplace_back(y, y + 4 * 64);
  }
  CHECK(results[1] == results[0]);
  CHECK(results[2] == results[0]);
}
