// The C API of choosing tokens and of stop texts: what it computes is tested below it; here, what it takes and refuses.
#include <cmath>

#include "tests/unit/api_model.h"

using namespace api_test;

namespace {

dsv3_sampling greedy() {
  dsv3_sampling s = {};
  s.struct_size = sizeof s;
  return s;
}

}  // namespace

TEST_CASE("penalties know the sequence, bias the token") {
  const Model model = open("ds3-f32");
  const Session s = session(model, options(64, 2));
  ok(eval(s, {5, 6, 7}, {0, 0, 0}));
  int32_t best = -1, next = -1;
  dsv3_sampling sampling = greedy();
  ok(dsv3_sample(s.get(), 2, &sampling, 1, &best));

  const dsv3_logit_bias ban[] = {{best, -1e6f}};
  sampling.logit_bias = ban;
  sampling.n_logit_bias = 1;
  ok(dsv3_sample(s.get(), 2, &sampling, 1, &next));
  CHECK(next != best);

  // The sequence has the token: so it is not chosen again. Another sequence does not have it.
  ok(eval(s, {best}));
  const dsv3_logit_bias force[] = {{best, 1e5f}};
  sampling.logit_bias = force;
  ok(dsv3_sample(s.get(), 0, &sampling, 1, &next));
  CHECK(next == best);
  sampling.presence_penalty = 9e5;
  ok(dsv3_sample(s.get(), 0, &sampling, 1, &next));
  CHECK(next != best);
  ok(eval(s, {5, 6}, {1, 1}));
  ok(dsv3_sample(s.get(), 1, &sampling, 1, &next));
  CHECK(next == best);
}

TEST_CASE("sampling refuses what makes no sense, and says it") {
  const Model model = open("ds3-f32");
  const Session s = session(model, options(64, 1));
  ok(eval(s, {5}));
  int32_t token = 77;
  const auto refused = [&](auto change, const char* part) {
    dsv3_sampling sampling = greedy();
    change(sampling);
    failed(dsv3_sample(s.get(), 0, &sampling, 1, &token), DSV3_INVALID_ARGUMENT, part);
  };
  refused([](auto& o) { o.temperature = NAN; }, "temperature");
  refused([](auto& o) { o.temperature = INFINITY; }, "temperature");
  refused([](auto& o) { o.typical_p = 2; }, "typical_p");
  refused([](auto& o) { o.repetition_penalty = -1; }, "repetition_penalty");
  refused([](auto& o) { o.presence_penalty = NAN; }, "presence_penalty");
  refused([](auto& o) { o.frequency_penalty = -INFINITY; }, "frequency_penalty");
  refused([](auto& o) { o.penalty_window = -1; }, "penalty_window");
  refused([](auto& o) { o.n_logit_bias = -1; }, "n_logit_bias");
  refused([](auto& o) { o.n_logit_bias = 1; }, "logit_bias is null");
  const dsv3_logit_bias one[] = {{1, 1}};
  refused([&](auto& o) { o.n_logit_bias = INT32_MAX, o.logit_bias = one; }, "n_logit_bias");
  const dsv3_logit_bias outside[] = {{1 << 30, 1}};
  refused([&](auto& o) { o.n_logit_bias = 1, o.logit_bias = outside; }, "logit_bias");
  CHECK(token == 77);

  // A struct of a program older than typical_p means what it meant.
  dsv3_sampling old = greedy();
  old.struct_size = offsetof(dsv3_sampling, typical_p);
  old.typical_p = 5;
  ok(dsv3_sample(s.get(), 0, &old, 1, &token));
}

TEST_CASE("stop texts: arguments, and an answer") {
  dsv3_stop* stop = nullptr;
  const char* texts[] = {"end", nullptr};
  const size_t sizes[] = {3, 1};
  failed(dsv3_stop_new(texts, sizes, 2, &stop), DSV3_INVALID_ARGUMENT, "texts[i]");
  failed(dsv3_stop_new(nullptr, sizes, 1, &stop), DSV3_INVALID_ARGUMENT, "texts");
  failed(dsv3_stop_new(texts, nullptr, 1, &stop), DSV3_INVALID_ARGUMENT, "n_bytes");
  failed(dsv3_stop_new(texts, sizes, -1, &stop), DSV3_INVALID_ARGUMENT, "n: got -1");
  // Too much is refused before the rest of it is looked at.
  failed(dsv3_stop_new(texts, sizes, INT32_MAX, &stop), DSV3_INVALID_ARGUMENT, "expected 0..256");
  const size_t huge[] = {SIZE_MAX};
  failed(dsv3_stop_new(texts, huge, 1, &stop), DSV3_INVALID_ARGUMENT, "n_bytes[0]: got");
  failed(dsv3_stop_new(texts, sizes, 1, nullptr), DSV3_INVALID_ARGUMENT, "stop");
  CHECK(stop == nullptr);
  dsv3_stop_free(nullptr);

  ok(dsv3_stop_new(texts, sizes, 1, &stop));
  const char* shown = nullptr;
  size_t n = 9;
  int stopped = 9;
  failed(dsv3_stop_add(stop, nullptr, 1, &shown, &n, &stopped), DSV3_INVALID_ARGUMENT, "text");
  failed(dsv3_stop_add(stop, "a", 1, nullptr, &n, &stopped), DSV3_INVALID_ARGUMENT, "shown");
  failed(dsv3_stop_add(stop, "a", 1, &shown, nullptr, &stopped), DSV3_INVALID_ARGUMENT, "n_shown");
  failed(dsv3_stop_add(stop, "a", 1, &shown, &n, nullptr), DSV3_INVALID_ARGUMENT, "stopped");
  failed(dsv3_stop_add(nullptr, "a", 1, &shown, &n, &stopped), DSV3_INVALID_ARGUMENT, "stop");
  failed(dsv3_stop_finish(nullptr, &shown, &n), DSV3_INVALID_ARGUMENT, "stop");
  CHECK((n == 9 && stopped == 9));
  ok(dsv3_stop_add(stop, "the en", 6, &shown, &n, &stopped));
  CHECK(std::string(shown, n) == "the ");
  CHECK(stopped == 0);
  ok(dsv3_stop_add(stop, "ding", 4, &shown, &n, &stopped));
  CHECK(n == 0);
  CHECK(stopped == 1);
  ok(dsv3_stop_finish(stop, &shown, &n));
  CHECK(n == 0);
  dsv3_stop_free(stop);
}
