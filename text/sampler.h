// Logits to a token id: a pure function of its arguments.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ggml-lite/status.h"

namespace dsv3 {

// Applied in this order: temperature, top_k, top_p, min_p, draw.
struct Sampling {
  double temperature = 0;  // 0: greedy, the largest logit, whatever the rest says
  int32_t top_k = 0;       // keep the k most likely; 0: all
  // Of these, keep the fewest of the most likely whose probabilities, adding up to 1 over what top_k kept,
  // reach top_p: the one that reaches it stays. 0 and 1: all.
  double top_p = 1;
  double min_p = 0;  // drop tokens less likely than min_p times the most likely one; 0: none
  lite::Status check() const;
};

// Memory that sample() keeps between calls; what is in it means nothing.
struct SampleScratch {
  std::vector<int32_t> order;
  std::vector<double> probability;
};

// Picks one of `n` logits. The random number is a function of (seed, position) alone, so the same seed gives
// the same text however it is evaluated. Equal logits rank by lower id. Logits that are not finite are never
// picked (minus infinity is how a caller masks one); Corrupt when no other is left. Probabilities are in
// double. Allocates nothing once `scratch` has held n.
lite::Result<int32_t> sample(const float* logits, int32_t n, const Sampling& sampling, uint64_t seed,
                             int64_t position, SampleScratch* scratch);

// Uniform in [0, 1) with 53 bits: the upper bits of words 0 and 1 of philox4x32 with counter {counter, 0} and
// key seed, low words first.
double uniform(uint64_t seed, uint64_t counter);

// Philox 4x32-10, a counter-based generator: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC
// 2011).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace dsv3
