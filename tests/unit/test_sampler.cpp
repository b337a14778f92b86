// The sampler against its definition: known answers of the generator, exact probabilities, a second
// implementation.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
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

// The definition, written down with a full sort.
int32_t slow_sample(const std::vector<float>& logits, const Sampling& s, double random) {
  Ids order;
  for (size_t i = 0; i < logits.size(); ++i)
    if (std::isfinite(logits[i])) order.push_back(int32_t(i));
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
  if (s.temperature == 0) return order[0];
  const double best = logits[size_t(order[0])];
  std::vector<double> weight(logits.size());
  const auto total = [&] {
    double sum = 0;
    for (double w : weight) sum += w;
    return sum;
  };
  if (s.top_k > 0 && size_t(s.top_k) < order.size()) order.resize(size_t(s.top_k));
  for (int32_t id : order) weight[size_t(id)] = std::exp((double(logits[size_t(id)]) - best) / s.temperature);
  if (s.top_p > 0 && s.top_p < 1) {
    const double goal = s.top_p * total();
    double sum = 0;
    for (int32_t id : order) {
      if (sum >= goal) {
        weight[size_t(id)] = 0;
      } else {
        sum += weight[size_t(id)];
      }
    }
  }
  for (double& w : weight)
    if (w < s.min_p) w = 0;
  const double target = random * total();
  double sum = 0;
  for (size_t i = 0; i < weight.size(); ++i) {
    sum += weight[i];
    if (weight[i] > 0 && sum > target) return int32_t(i);
  }
  return order[0];
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

TEST_CASE("greedy takes the largest logit, the lowest id of equals, and no NaN") {
  CHECK(pick({1, 3, 2}, {}) == 1);
  CHECK(pick({3, 1, 3, 3}, {}) == 0);
  CHECK(pick({-0.0f, 0.0f}, {}) == 0);
  CHECK(pick({kNan, -5, kNan, -4, kNan}, {}) == 3);
  CHECK(pick({-kInfinity, -1e30f}, {}) == 1);
  CHECK(pick({kInfinity, 1}, {}) == 1);
  CHECK(pick({1, 5, 3}, {.top_k = 1, .top_p = 0.1, .min_p = 1}) == 1);
}

TEST_CASE("no finite logit is an error, and so is an option out of range") {
  SampleScratch scratch;
  for (const double temperature : {0.0, 1.0}) {
    const std::vector<float> none = {kNan, -kInfinity, kInfinity};
    const auto id = sample(none.data(), 3, {.temperature = temperature}, 1, 0, &scratch);
    CHECK(id.status().code() == lite::Code::Corrupt);
    CHECK(sample(none.data(), 0, {.temperature = temperature}, 1, 0, &scratch).status().code() ==
          lite::Code::Corrupt);
  }
  const double nan = std::numeric_limits<double>::quiet_NaN(),
               infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::pair<Sampling, const char*>> wrong = {{{.temperature = -1}, "temperature"},
                                                               {{.temperature = nan}, "temperature"},
                                                               {{.temperature = infinity}, "temperature"},
                                                               {{.top_k = -1}, "top_k"},
                                                               {{.top_p = -0.1}, "top_p"},
                                                               {{.top_p = 1.1}, "top_p"},
                                                               {{.top_p = nan}, "top_p"},
                                                               {{.min_p = -0.1}, "min_p"},
                                                               {{.min_p = 1.5}, "min_p"},
                                                               {{.min_p = nan}, "min_p"}};
  const float logit = 0;
  for (const auto& [sampling, name] : wrong) {
    const lite::Status status = sample(&logit, 1, sampling, 1, 0, &scratch).status();
    CHECK(status.code() == lite::Code::InvalidArgument);
    CHECK(status.message().find(name) != std::string::npos);
    CHECK(sampling.check().code() == lite::Code::InvalidArgument);
  }
  CHECK(Sampling{}.check().ok());
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
  CHECK(support({kNan, 1, -kInfinity, 1, kInfinity}, {.temperature = 5}) == Ids{1, 3});
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
      if (random() % 50 == 0) l = random() % 2 ? kNan : -kInfinity;
    }
    logits[random() % logits.size()] = 1;
    const Sampling sampling{.temperature = choose(0, 0.3, 1, 3),
                            .top_k = int32_t(choose(0, 1, 5, 64, 65, 500)),
                            .top_p = choose(0, 0.1, 0.5, 0.95, 0.999, 1),
                            .min_p = choose(0, 0, 0.01, 0.5)};
    const auto id = sample(logits.data(), int32_t(logits.size()), sampling, seed, round, &scratch);
    REQUIRE(id.ok());
    REQUIRE(*id == slow_sample(logits, sampling, uniform(seed, uint64_t(round))));
  }
}

TEST_CASE("sampling keeps its memory") {
  std::vector<float> logits(1000, 0.0f);
  SampleScratch scratch;
  const Sampling sampling{.temperature = 1, .top_k = 500, .top_p = 0.9, .min_p = 0.1};
  REQUIRE(sample(logits.data(), 1000, sampling, 1, 0, &scratch).ok());
  const int32_t* order = scratch.order.data();
  const double* probability = scratch.probability.data();
  for (int32_t n : {1000, 10, 1000}) REQUIRE(sample(logits.data(), n, sampling, 1, 1, &scratch).ok());
  CHECK(scratch.order.data() == order);
  CHECK(scratch.probability.data() == probability);
}
