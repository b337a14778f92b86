#include "text/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace dsv3 {

using lite::Result;
using lite::Status;

namespace {

// Beyond any use; below, no logit can become infinite.
constexpr double kLargest = 1e6;

Status check_range(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return {};  // false for NaN
  return lite::invalid_argument("sampling: ", name, ": got ", value, ", expected a number from ", low, " to ",
                                high);
}

}  // namespace

Status Sampling::check() const {
  for (const LogitBias& b : logit_bias)
    LITE_TRY(check_range("logit_bias", b.bias, -kLargest, kLargest).in(lite::str("id ", b.id)));
  if (penalty_window < 0)
    return lite::invalid_argument("sampling: penalty_window: got ", penalty_window,
                                  ", expected a number from 0");
  LITE_TRY(check_range("repetition_penalty", repetition_penalty, 1 / kLargest, kLargest));
  LITE_TRY(check_range("presence_penalty", presence_penalty, -kLargest, kLargest));
  LITE_TRY(check_range("frequency_penalty", frequency_penalty, -kLargest, kLargest));
  if (!(temperature >= 0) || !std::isfinite(temperature))
    return lite::invalid_argument("sampling: temperature: got ", temperature, ", expected a number from 0");
  if (top_k < 0) return lite::invalid_argument("sampling: top_k: got ", top_k, ", expected a number from 0");
  LITE_TRY(check_range("top_p", top_p, 0, 1));
  LITE_TRY(check_range("min_p", min_p, 0, 1));
  return check_range("typical_p", typical_p, 0, 1);
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * counter[0];
    const uint64_t b = uint64_t(0xCD9E8D57u) * counter[2];
    counter = {uint32_t(b >> 32) ^ counter[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ counter[3] ^ key[1],
               uint32_t(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

double uniform(uint64_t seed, uint64_t counter) {
  const std::array<uint32_t, 4> block =
      philox4x32({uint32_t(counter), uint32_t(counter >> 32), 0, 0}, {uint32_t(seed), uint32_t(seed >> 32)});
  return double((uint64_t(block[0]) << 32 | block[1]) >> 11) * 0x1p-53;
}

namespace {

Status check_id(const char* what, int32_t id, int32_t n) {
  if (id >= 0 && id < n) return {};
  return lite::invalid_argument("sampling: ", what, ": id ", id, " is not in 0..", n - 1);
}

// The logits with bias and penalties, in scratch->logit.
Status adjust(const float* logits, int32_t n, const Sampling& sampling, SampleScratch* scratch) {
  std::vector<double>& logit = scratch->logit;
  logit.assign(logits, logits + n);
  for (int32_t id = 0; id < n; ++id)
    if (!(logit[size_t(id)] <= std::numeric_limits<float>::max()))
      return lite::corrupt("sampling: the logit of id ", id, " is ", logits[id],
                           "; the weights or the evaluation are damaged");
  for (const LogitBias& b : sampling.logit_bias) {
    LITE_TRY(check_id("logit_bias", b.id, n));
    logit[size_t(b.id)] += b.bias;
  }
  if (sampling.repetition_penalty == 1 && sampling.presence_penalty == 0 && sampling.frequency_penalty == 0)
    return {};

  std::span<const int32_t> history = sampling.history;
  const size_t window = size_t(sampling.penalty_window);
  if (window > 0 && window < history.size()) history = history.last(window);
  std::vector<int32_t>& recent = scratch->recent;
  recent.assign(history.begin(), history.end());
  std::sort(recent.begin(), recent.end());
  for (auto i = recent.begin(); i != recent.end();) {
    LITE_TRY(check_id("history", *i, n));
    const auto end = std::upper_bound(i, recent.end(), *i);
    double& l = logit[size_t(*i)];
    l = l > 0 ? l / sampling.repetition_penalty : l * sampling.repetition_penalty;
    l -= sampling.presence_penalty + sampling.frequency_penalty * double(end - i);
    i = end;
  }
  return {};
}

class Draw {
 public:
  Draw(int32_t best, const Sampling& sampling, SampleScratch* scratch)
      : logit_(scratch->logit),
        best_(best),
        sampling_(sampling),
        order_(scratch->order),
        weight_(scratch->probability) {}

  // The weight of an id is its probability over that of the best, 0 for those that are out.
  int32_t run(double random) {
    for (const int32_t id : order_) weight_[size_t(id)] = std::exp(log_weight(id));
    cut_top_k();
    cut_top_p();
    cut_min_p();
    cut_typical_p();
    return pick(random * sum());
  }

 private:
  using Ids = std::vector<int32_t>::iterator;

  double log_weight(int32_t id) const {
    return (logit_[size_t(id)] - logit_[size_t(best_)]) / sampling_.temperature;
  }

  // Higher logit first, then lower id.
  bool before(int32_t a, int32_t b) const {
    return logit_[size_t(a)] != logit_[size_t(b)] ? logit_[size_t(a)] > logit_[size_t(b)] : a < b;
  }
  auto by_rank() const {
    return [this](int32_t a, int32_t b) { return before(a, b); };
  }

  // Keeps those of order_ before `end`.
  void keep(Ids end) {
    for (auto i = end; i != order_.end(); ++i) weight_[size_t(*i)] = 0;
    order_.erase(end, order_.end());
  }

  // The end of the fewest ids, first by `before`, whose weights reach `goal`. Halves the range in which it is
  // reached, and sorts only what is left of it.
  template <class Before>
  Ids reach(Ids begin, Ids end, double goal, Before before) {
    double reached = 0;
    while (end - begin > 64) {
      const auto middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end, before);
      const double first = std::accumulate(begin, middle, 0.0,
                                           [this](double w, int32_t id) { return w + weight_[size_t(id)]; });
      if (reached + first >= goal) {
        end = middle;
      } else {
        reached += first;
        begin = middle;
      }
    }
    std::sort(begin, end, before);
    while (begin != end && reached < goal) reached += weight_[size_t(*begin++)];
    return begin;
  }

  void cut_top_k() {
    const size_t k = size_t(sampling_.top_k);
    if (k == 0 || k >= order_.size()) return;
    const auto end = order_.begin() + std::ptrdiff_t(k);
    std::nth_element(order_.begin(), end, order_.end(), by_rank());
    keep(end);
  }

  void cut_top_p() {
    if (sampling_.top_p == 0 || sampling_.top_p == 1) return;
    const double total = sum(), goal = sampling_.top_p * total;
    // Weights so small that all of them together are not needed: mostly nearly all.
    const double negligible = (total - goal) / double(order_.size());
    const auto end = std::partition(order_.begin(), order_.end(),
                                    [&](int32_t id) { return weight_[size_t(id)] > negligible; });
    keep(reach(order_.begin(), end, goal, by_rank()));
  }

  void cut_min_p() {
    if (sampling_.min_p == 0) return;
    keep(std::partition(order_.begin(), order_.end(),
                        [this](int32_t id) { return weight_[size_t(id)] >= sampling_.min_p; }));
  }

  void cut_typical_p() {
    if (sampling_.typical_p == 0 || sampling_.typical_p == 1) return;
    const double total = sum();
    // log(weight) of a token as surprising as the mean: -log(w / total) = entropy.
    double typical = 0;
    for (const int32_t id : order_)
      if (const double w = weight_[size_t(id)]; w > 0) typical += w / total * log_weight(id);
    keep(reach(order_.begin(), order_.end(), sampling_.typical_p * total, [&](int32_t a, int32_t b) {
      const double far_a = std::abs(log_weight(a) - typical), far_b = std::abs(log_weight(b) - typical);
      return far_a != far_b ? far_a < far_b : before(a, b);
    }));
  }

  double sum() const {
    double total = 0;
    for (const double w : weight_) total += w;
    return total;
  }

  // The first id at which the running sum exceeds `target`; the last one that is left if rounding keeps it
  // from that.
  int32_t pick(double target) const {
    double reached = 0;
    int32_t last = best_;
    for (size_t id = 0; id < weight_.size(); ++id) {
      if (weight_[id] == 0) continue;
      last = int32_t(id);
      reached += weight_[id];
      if (reached > target) break;
    }
    return last;
  }

  const std::vector<double>& logit_;  // adjusted
  int32_t best_;
  const Sampling& sampling_;
  std::vector<int32_t>& order_;  // ids that are still in, at first all that are not masked
  std::vector<double>& weight_;  // by id
};

}  // namespace

Result<int32_t> sample(const float* logits, int32_t n, const Sampling& sampling, uint64_t seed,
                       int64_t position, SampleScratch* scratch) {
  LITE_TRY(sampling.check());
  LITE_TRY(adjust(logits, n, sampling, scratch));
  const std::vector<double>& logit = scratch->logit;
  scratch->order.clear();
  scratch->order.reserve(size_t(n));
  int32_t best = -1;
  for (int32_t id = 0; id < n; ++id) {
    if (std::isinf(logit[size_t(id)])) continue;
    scratch->order.push_back(id);
    if (best < 0 || logit[size_t(id)] > logit[size_t(best)]) best = id;
  }
  if (best < 0) return lite::corrupt("sampling: all of ", n, " logits are masked");
  if (sampling.temperature == 0) return best;

  scratch->probability.assign(size_t(n), 0.0);
  return Draw(best, sampling, scratch).run(uniform(seed, uint64_t(position)));
}

}  // namespace dsv3
