// The sampler against its definition: known answers of the generator, exact probabilities, a second
// implementation.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "text/sampler.h"

using namespace dsv3;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t pick(const std::vector<float>& logits, const Sampling& sampling, uint64_t seed = 1,
             int64_t position = 0) {
  SampleScratch scratch;
  auto id = sample(logits.data(), int32_t(logits.size()), sampling, seed, position, &scratch);
  REQUIRE_MESSAGE(id.ok(), id.status().message());
  return *id;
}

std::vector<float> logs(std::vector<double> probabilities) {
  std::vector<float> out;
  for (double p : probabilities) out.push_back(float(std::log(p)));
  return out;
}

// Which ids can be drawn at all: drawn often enough that one of 5 % is missed once in 10^20.
std::vector<int32_t> support(const std::vector<float>& logits, const Sampling& sampling) {
  std::vector<int32_t> ids;
  for (int64_t position = 0; position < 900; ++position) ids.push_back(pick(logits, sampling, 7, position));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

using Ids = std::vector<int32_t>;

// The definition, written down plainly: one token after the other, probabilities normalised at every step, full sorts.
int32_t slow_sample(const std::vector<float>& given, const Sampling& s, double random) {
  std::vector<double> logits(given.begin(), given.end());
  for (const LogitBias& b : s.logit_bias) logits[size_t(b.id)] += b.bias;
  std::map<int32_t, int> count;
  for (size_t i = 0; i < s.history.size(); ++i)
    if (s.penalty_window == 0 || i + size_t(s.penalty_window) >= s.history.size()) ++count[s.history[i]];
  for (const auto& [id, n] : count) {
    double& l = logits[size_t(id)];
    if (l > 0)
      l /= s.repetition_penalty;
    else
      l *= s.repetition_penalty;
    l -= s.presence_penalty + s.frequency_penalty * n;
  }
  Ids left;
  for (size_t i = 0; i < logits.size(); ++i)
    if (std::isfinite(logits[i])) left.push_back(int32_t(i));
  const auto rank = [&] {
    std::stable_sort(left.begin(), left.end(),
                     [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
  };
  rank();
  if (s.temperature == 0) return left[0];
  std::map<int32_t, double> p;  // of what is left; adds up to 1
  const auto normalise = [&] {
    std::sort(left.begin(), left.end());
    double sum = 0;
    p.clear();
    const double best = *std::max_element(logits.begin(), logits.end());
    for (int32_t id : left) sum += p[id] = std::exp((logits[size_t(id)] - best) / s.temperature);
    for (auto& [id, x] : p) x /= sum;
    rank();
  };
  const auto keep_until = [&](double share) {  // the first of left
    double sum = 0;
    size_t n = 0;
    while (n < left.size() && sum < share) sum += p[left[n++]];
    left.resize(n);
  };
  if (s.top_k > 0 && size_t(s.top_k) < left.size()) left.resize(size_t(s.top_k));
  normalise();
  if (s.top_p > 0 && s.top_p < 1) keep_until(s.top_p);
  normalise();
  const double most = p[left[0]];
  std::erase_if(left, [&](int32_t id) { return p[id] < s.min_p * most; });
  normalise();
  if (s.typical_p > 0 && s.typical_p < 1) {
    double entropy = 0;
    for (int32_t id : left)
      if (p[id] > 0) entropy -= p[id] * std::log(p[id]);
    std::stable_sort(left.begin(), left.end(), [&](int32_t a, int32_t b) {
      return std::abs(-std::log(p[a]) - entropy) < std::abs(-std::log(p[b]) - entropy);
    });
    keep_until(s.typical_p);
    normalise();
  }
  std::sort(left.begin(), left.end());
  double sum = 0;
  for (int32_t id : left) {
    sum += p[id];
    if (sum > random) return id;
  }
  return left.back();
}

}  // namespace

TEST_CASE("philox gives the known answers of Random123's kat_vectors") {
  using Block = std::array<uint32_t, 4>;
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("uniform is 53 bits of the first two words") {
  CHECK(uniform(0, 0) == double(0x6627e8d5e169c58dull >> 11) / 9007199254740992.0);
  CHECK(uniform(1, 0) != uniform(0, 0));
  CHECK(uniform(uint64_t(1) << 32, 0) != uniform(0, 0));
  CHECK(uniform(0, uint64_t(1) << 32) != uniform(0, 0));
  double sum = 0, square = 0;
  for (uint64_t i = 0; i < 100000; ++i) {
    const double u = uniform(42, i);
    REQUIRE((u >= 0 && u < 1));
    sum += u;
    square += u * u;
  }
  CHECK(sum / 100000 == doctest::Approx(0.5).epsilon(0.01));          // standard error 0.0009
  CHECK(square / 100000 == doctest::Approx(1.0 / 3).epsilon(0.015));  // standard error 0.0009
}

TEST_CASE("greedy takes the largest logit, the lowest id of equals, and none that is masked") {
  CHECK(pick({1, 3, 2}, {}) == 1);
  CHECK(pick({3, 1, 3, 3}, {}) == 0);
  CHECK(pick({-0.0f, 0.0f}, {}) == 0);
  CHECK(pick({-kInfinity, -5, -kInfinity, -4}, {}) == 3);
  CHECK(pick({-kInfinity, -1e30f}, {}) == 1);
  CHECK(pick({1, 5, 3}, {.top_k = 1, .top_p = 0.1, .min_p = 1}) == 1);
}

TEST_CASE("logits that are no numbers, and options out of range, are errors that say which") {
  SampleScratch scratch;
  const auto status = [&](const std::vector<float>& logits, const Sampling& sampling) {
    return sample(logits.data(), int32_t(logits.size()), sampling, 1, 0, &scratch).status();
  };
  const auto has = [](const lite::Status& s, lite::Code code, const std::string& part) {
    CHECK(s.code() == code);
    CHECK_MESSAGE(s.message().find(part) != std::string::npos, s.message());
  };
  for (const double temperature : {0.0, 1.0}) {
    has(status({-kInfinity, -kInfinity}, {.temperature = temperature}), lite::Code::Corrupt,
        "all of 2 logits");
    has(status({}, {.temperature = temperature}), lite::Code::Corrupt, "all of 0 logits");
    has(status({1, kNan, 2}, {.temperature = temperature}), lite::Code::Corrupt, "the logit of id 1 is nan");
    has(status({1, 2, kInfinity}, {.temperature = temperature}), lite::Code::Corrupt,
        "the logit of id 2 is inf");
  }
  const double nan = std::numeric_limits<double>::quiet_NaN(),
               infinity = std::numeric_limits<double>::infinity();
  std::vector<std::pair<Sampling, const char*>> wrong = {{{.penalty_window = -1}, "penalty_window"},
                                                         {{.repetition_penalty = 0}, "repetition_penalty"},
                                                         {{.repetition_penalty = -1}, "repetition_penalty"},
                                                         {{.top_k = -1}, "top_k"},
                                                         {{.temperature = -1}, "temperature"},
                                                         {{.top_p = -0.1}, "top_p"},
                                                         {{.top_p = 1.1}, "top_p"},
                                                         {{.min_p = -0.1}, "min_p"},
                                                         {{.min_p = 1.5}, "min_p"},
                                                         {{.typical_p = -0.1}, "typical_p"},
                                                         {{.typical_p = 1.5}, "typical_p"}};
  for (const double value : {nan, infinity, -infinity})
    for (const auto& [field, name] : std::vector<std::pair<double Sampling::*, const char*>>{
             {&Sampling::repetition_penalty, "repetition_penalty"},
             {&Sampling::presence_penalty, "presence_penalty"},
             {&Sampling::frequency_penalty, "frequency_penalty"},
             {&Sampling::temperature, "temperature"},
             {&Sampling::top_p, "top_p"},
             {&Sampling::min_p, "min_p"},
             {&Sampling::typical_p, "typical_p"}}) {
      Sampling s;
      s.*field = value;
      wrong.emplace_back(s, name);
    }
  for (const auto& [sampling, name] : wrong) {
    has(status({0}, sampling), lite::Code::InvalidArgument, name);
    CHECK(sampling.check().code() == lite::Code::InvalidArgument);
  }
  CHECK(Sampling{}.check().ok());
  for (const float bias : {kNan, kInfinity, -kInfinity, 2e6f}) {
    const LogitBias biases[] = {{0, bias}};
    has(status({0}, {.logit_bias = biases}), lite::Code::InvalidArgument, "logit_bias");
  }
  for (const int32_t id : {-1, 2, INT32_MAX}) {
    const LogitBias biases[] = {{1, 0}, {id, 1}};
    has(status({0, 0}, {.logit_bias = biases}), lite::Code::InvalidArgument,
        lite::str("logit_bias: id ", id));
    const Ids history = {1, id};
    has(status({0, 0}, {.history = history, .presence_penalty = 1}), lite::Code::InvalidArgument,
        lite::str("history: id ", id));
  }
}

TEST_CASE("bias and penalties, by hand") {
  const LogitBias bias[] = {{0, 2}, {0, 2}, {2, -3}};
  CHECK(pick({1, 4, 6}, {.logit_bias = bias}) == 0);  // 5 4 3
  const Ids history = {2, 2, 1, 2};
  CHECK(pick({1, 4, 6}, {.history = history}) == 2);
  CHECK(pick({1, 4, 6}, {.history = history, .repetition_penalty = 7}) == 0);     // 1 4/7 6/7
  CHECK(pick({-8, -4, -1}, {.history = history, .repetition_penalty = 7}) == 2);  // -8 -28 -7
  CHECK(pick({1, 4, 6}, {.history = history, .presence_penalty = 3}) == 2);       // 1 1 3
  CHECK(pick({1, 4, 6}, {.history = history, .frequency_penalty = 1}) == 1);      // 1 3 3
  CHECK(pick({1, 4, 6}, {.history = history, .frequency_penalty = -1}) == 2);     // 1 5 9
  CHECK(pick({1, 4, 6}, {.history = history, .penalty_window = 1, .frequency_penalty = 3}) == 1);    // 1 4 3
  CHECK(pick({1, 4, 6}, {.history = history, .penalty_window = 2, .frequency_penalty = 2}) == 2);    // 1 2 4
  CHECK(pick({1, 4, 6}, {.history = history, .penalty_window = 100, .frequency_penalty = 2}) == 1);  // 1 2 0
  CHECK(pick({-kInfinity, 4, 6}, {.history = history, .repetition_penalty = 1e6, .presence_penalty = 1e6}) ==
        2);
  CHECK(pick({3e38f, -3e38f}, {.history = Ids{1}, .repetition_penalty = 1e6}) == 0);
}

TEST_CASE("typical sampling keeps what is as surprising as the mean") {
  // -log p: 0.51, 1.61, 2.30, 2.30; entropy 1.09: the most likely token is 0.58 from it, the next 0.52.
  const std::vector<float> logits = logs({0.6, 0.2, 0.1, 0.1});
  CHECK(support(logits, {.temperature = 1, .typical_p = 0.1}) == Ids{1});
  CHECK(support(logits, {.temperature = 1, .typical_p = 0.3}) == Ids{0, 1});
  CHECK(support(logits, {.temperature = 1, .typical_p = 0.85}) == Ids{0, 1, 2});  // of equals the lower id
  CHECK(support(logits, {.temperature = 1, .typical_p = 0.95}) == Ids{0, 1, 2, 3});
  CHECK(support(logits, {.temperature = 1, .typical_p = 0}) == Ids{0, 1, 2, 3});
  CHECK(support(logits, {.temperature = 1, .typical_p = 1}) == Ids{0, 1, 2, 3});
  CHECK(support({1, 1, 1}, {.temperature = 1, .typical_p = 0.5}) == Ids{0, 1});
  CHECK(support({0, 3e38f, -3e38f}, {.temperature = 1e-300, .typical_p = 0.5}) == Ids{1});
}

TEST_CASE("draws follow the probabilities") {
  const uint64_t seed = 20250101;
  INFO("seed ", seed);
  const std::vector<double> p = {0.4, 0.05, 0.25, 0.2, 0.1};
  const auto frequencies = [&](const Sampling& sampling) {
    std::vector<double> count(p.size());
    for (int64_t position = 0; position < 100000; ++position)
      count[size_t(pick(logs(p), sampling, seed, position))] += 1e-5;
    return count;
  };
  const auto check = [&](const Sampling& sampling, const std::vector<double>& expected) {
    const std::vector<double> found = frequencies(sampling);
    for (size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      CHECK(std::abs(found[i] - expected[i]) <= 5 * std::sqrt(expected[i] * (1 - expected[i]) / 1e5));
    }
  };
  check({.temperature = 1}, p);
  double squares = 0;
  for (double x : p) squares += x * x;
  check({.temperature = 0.5},
        {0.16 / squares, 0.0025 / squares, 0.0625 / squares, 0.04 / squares, 0.01 / squares});
  check({.temperature = 1, .top_k = 2}, {0.4 / 0.65, 0, 0.25 / 0.65, 0, 0});
  check({.temperature = 1, .top_p = 0.8}, {0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85, 0});
  check({.temperature = 1, .min_p = 0.3}, {0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85, 0});
}

TEST_CASE("what is kept, at the boundaries") {
  const std::vector<float> equal(4, 2.0f);
  CHECK(support(equal, {.temperature = 1}) == Ids{0, 1, 2, 3});
  CHECK(support(equal, {.temperature = 1, .top_k = 2}) == Ids{0, 1});
  CHECK(support(equal, {.temperature = 1, .top_k = 4}) == Ids{0, 1, 2, 3});
  CHECK(support(equal, {.temperature = 1, .top_k = 1000}) == Ids{0, 1, 2, 3});
  CHECK(support(equal, {.temperature = 1, .top_p = 0.5}) == Ids{0, 1});  // two reach it exactly
  CHECK(support(equal, {.temperature = 1, .top_p = 0.5000001}) == Ids{0, 1, 2});
  CHECK(support(equal, {.temperature = 1, .top_p = 1e-12}) == Ids{0});
  CHECK(support(equal, {.temperature = 1, .top_p = 0}) == Ids{0, 1, 2, 3});
  CHECK(support(equal, {.temperature = 1, .min_p = 1}) == Ids{0, 1, 2, 3});
  CHECK(support({1, 0, 1, 0, 1}, {.temperature = 1, .top_k = 4}) ==
        Ids{0, 1, 2, 4});  // of equals the lower id
  // top_p counts the probabilities that top_k left: 0.5 and 0.3 become 0.625 and 0.375.
  CHECK(support(logs({0.5, 0.3, 0.2}), {.temperature = 1, .top_k = 2, .top_p = 0.6}) == Ids{0});
  // min_p is a share of the largest probability, after the temperature.
  CHECK(support(logs({0.5, 0.3, 0.2}), {.temperature = 1, .min_p = 0.5}) == Ids{0, 1});
  CHECK(support(logs({0.5, 0.3, 0.2}), {.temperature = 2, .min_p = 0.5}) == Ids{0, 1, 2});
  // Masked ids are not there at all.
  CHECK(support({-kInfinity, 1, -kInfinity, 1}, {.temperature = 5}) == Ids{1, 3});
  // Extreme temperatures: greedy in the limit; all alike in the other, where ranks still follow the logits.
  CHECK(support({1, 2, 3}, {.temperature = 1e-300}) == Ids{2});
  CHECK(support({1, 2, 3}, {.temperature = 1e300}) == Ids{0, 1, 2});
  CHECK(support({1, 2, 3}, {.temperature = 1e300, .top_k = 1}) == Ids{2});
  CHECK(support({-1e38f, 1e38f}, {.temperature = 1}) == Ids{1});
}

TEST_CASE("the sampler equals the definition written with a full sort") {
  const uint32_t seed = 5;
  INFO("seed ", seed);
  std::mt19937 random(seed);
  const auto choose = [&](auto... values) {
    const std::vector<double> v = {double(values)...};
    return v[random() % v.size()];
  };
  SampleScratch scratch;
  for (int round = 0; round < 4000; ++round) {
    CAPTURE(round);
    std::vector<float> logits(1 + random() % 700);
    const double spread = choose(0.1, 1, 5, 30);
    for (float& l : logits) {
      l = float(std::normal_distribution<double>(0, spread)(random));
      if (random() % 4 == 0) l = std::round(l);  // ties
      if (random() % 50 == 0) l = -kInfinity;
    }
    logits[random() % logits.size()] = 1;
    const auto any_id = [&] { return int32_t(random() % logits.size()); };
    std::vector<LogitBias> bias(random() % 4);
    for (LogitBias& b : bias) b = {any_id(), float(choose(-100, -2, 0.5, 5))};
    Ids history(random() % 100);
    for (int32_t& id : history) id = any_id();
    const Sampling sampling{.logit_bias = bias,
                            .history = history,
                            .penalty_window = int32_t(choose(0, 1, 64)),
                            .repetition_penalty = choose(1, 1, 1.3, 0.8),
                            .presence_penalty = choose(0, 0, 0.7, -1),
                            .frequency_penalty = choose(0, 0, 0.3),
                            .temperature = choose(0, 0.3, 1, 3),
                            .top_k = int32_t(choose(0, 1, 5, 64, 65, 500)),
                            .top_p = choose(0, 0.1, 0.5, 0.95, 0.999, 1),
                            .min_p = choose(0, 0, 0.01, 0.5),
                            .typical_p = choose(1, 1, 0.2, 0.9)};
    const auto id = sample(logits.data(), int32_t(logits.size()), sampling, seed, round, &scratch);
    REQUIRE(id.ok());
    REQUIRE(*id == slow_sample(logits, sampling, uniform(seed, uint64_t(round))));
  }
}

TEST_CASE("sampling keeps its memory") {
  std::vector<float> logits(1000, 0.0f);
  SampleScratch scratch;
  const Ids history(100, 5);
  const Sampling sampling{.history = history,
                          .presence_penalty = 1,
                          .temperature = 1,
                          .top_k = 500,
                          .top_p = 0.9,
                          .min_p = 0.1,
                          .typical_p = 0.9};
  REQUIRE(sample(logits.data(), 1000, sampling, 1, 0, &scratch).ok());
  const int32_t* order = scratch.order.data();
  const double* probability = scratch.probability.data();
  const int32_t* recent = scratch.recent.data();
  for (int32_t n : {1000, 10, 1000}) REQUIRE(sample(logits.data(), n, sampling, 1, 1, &scratch).ok());
  CHECK(scratch.order.data() == order);
  CHECK(scratch.probability.data() == probability);
  CHECK(scratch.recent.data() == recent);
}
