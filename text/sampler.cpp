#include "text/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dsv3 {

using lite::Result;
using lite::Status;

Status Sampling::check() const {
  if (!(temperature >= 0) || !std::isfinite(temperature))
    return lite::invalid_argument("sampling: temperature: got ", temperature, ", expected a number from 0");
  if (top_k < 0) return lite::invalid_argument("sampling: top_k: got ", top_k, ", expected a number from 0");
  if (!(top_p >= 0 && top_p <= 1))
    return lite::invalid_argument("sampling: top_p: got ", top_p, ", expected a number from 0 to 1");
  if (!(min_p >= 0 && min_p <= 1))
    return lite::invalid_argument("sampling: min_p: got ", min_p, ", expected a number from 0 to 1");
  return {};
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

class Draw {
 public:
  Draw(const float* logits, int32_t best, const Sampling& sampling, SampleScratch* scratch)
      : logits_(logits),
        best_(best),
        sampling_(sampling),
        order_(scratch->order),
        weight_(scratch->probability) {}

  // The weight of an id is its probability over that of the best, 0 for those that are out.
  int32_t run(double random) {
    for (const int32_t id : order_)
      weight_[size_t(id)] = std::exp((double(logits_[id]) - double(logits_[best_])) / sampling_.temperature);
    cut_top_k();
    cut_top_p();
    for (double& w : weight_)
      if (w < sampling_.min_p) w = 0;
    return pick(random * sum());
  }

 private:
  // Higher logit first, then lower id.
  bool before(int32_t a, int32_t b) const {
    return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
  }
  auto by_rank() const {
    return [this](int32_t a, int32_t b) { return before(a, b); };
  }

  // Keeps the first n of order_, which must be the best n.
  void keep(size_t n) {
    for (size_t i = n; i < order_.size(); ++i) weight_[size_t(order_[i])] = 0;
    order_.resize(n);
  }

  void cut_top_k() {
    const size_t k = size_t(sampling_.top_k);
    if (k == 0 || k >= order_.size()) return;
    std::nth_element(order_.begin(), order_.begin() + std::ptrdiff_t(k), order_.end(), by_rank());
    keep(k);
  }

  // Halves the range of ranks in which the goal is reached, and sorts only what is left of it.
  void cut_top_p() {
    if (sampling_.top_p == 0 || sampling_.top_p == 1) return;
    const double total = sum(), goal = sampling_.top_p * total;
    // Weights so small that all of them together are not needed: mostly nearly all.
    const double negligible = (total - goal) / double(order_.size());
    auto begin = order_.begin();
    auto end =
        std::partition(begin, order_.end(), [&](int32_t id) { return weight_[size_t(id)] > negligible; });
    double reached = 0;
    while (end - begin > 64) {
      const auto middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end, by_rank());
      const double better = std::accumulate(begin, middle, 0.0,
                                            [this](double w, int32_t id) { return w + weight_[size_t(id)]; });
      if (reached + better >= goal) {
        end = middle;
      } else {
        reached += better;
        begin = middle;
      }
    }
    std::sort(begin, end, by_rank());
    while (begin != end && reached < goal) reached += weight_[size_t(*begin++)];
    keep(size_t(begin - order_.begin()));
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

  const float* logits_;
  int32_t best_;
  const Sampling& sampling_;
  std::vector<int32_t>& order_;  // ids that are still in, at first all with a finite logit
  std::vector<double>& weight_;  // by id
};

}  // namespace

Result<int32_t> sample(const float* logits, int32_t n, const Sampling& sampling, uint64_t seed,
                       int64_t position, SampleScratch* scratch) {
  LITE_TRY(sampling.check());
  int32_t best = -1;
  for (int32_t id = 0; id < n; ++id)
    if (std::isfinite(logits[id]) && (best < 0 || logits[id] > logits[best])) best = id;
  if (best < 0) return lite::corrupt("sampling: none of ", n, " logits is finite");
  if (sampling.temperature == 0) return best;

  scratch->order.clear();
  scratch->order.reserve(size_t(n));
  for (int32_t id = 0; id < n; ++id)
    if (std::isfinite(logits[id])) scratch->order.push_back(id);
  scratch->probability.assign(size_t(n), 0.0);
  return Draw(logits, best, sampling, scratch).run(uniform(seed, uint64_t(position)));
}

}  // namespace dsv3
