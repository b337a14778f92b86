#include "model/routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace dsv3 {

double load_balancing_loss(std::span<const float* const> logits, int64_t n_rows, int64_t n_experts,
                           int64_t chosen, const uint8_t* mask) {
  std::vector<double> p(static_cast<size_t>(n_experts)), share(p.size()), mean(p.size());
  std::vector<int64_t> order(p.size());
  double rows = 0;
  for (const float* layer : logits)
    for (int64_t r = 0; r < n_rows; ++r) {
      if (mask && !mask[r]) continue;
      const float* x = layer + r * n_experts;
      if (!std::all_of(x, x + n_experts, [](float v) { return std::isfinite(v); })) return NAN;
      const double largest = *std::max_element(x, x + n_experts);
      double sum = 0;
      for (int64_t e = 0; e < n_experts; ++e) sum += p[e] = std::exp(x[e] - largest);
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + chosen, order.end(),
                        [&](int64_t a, int64_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
      for (int64_t k = 0; k < chosen; ++k) share[order[k]] += 1;
      for (int64_t e = 0; e < n_experts; ++e) mean[e] += p[e] / sum;
      rows += 1;
    }
  double loss = 0;
  for (int64_t e = 0; e < n_experts; ++e) loss += share[e] / rows * (mean[e] / rows);
  return loss * double(n_experts);
}

}  // namespace dsv3
