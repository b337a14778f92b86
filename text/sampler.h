// Logits to a token id: a pure function of its arguments.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "ggml-lite/status.h"

namespace dsv3 {

struct LogitBias {
  int32_t id = 0;
  float bias = 0;
};

// Applied in the order of the fields: bias and penalties change logits; temperature makes them probabilities;
// top_k, top_p, min_p and typical_p each drop tokens from what the one before has left; one of the rest is
// drawn. The defaults change nothing.
struct Sampling {
  std::span<const LogitBias> logit_bias = {};  // added to the logits
  // Penalties are for the tokens among the last penalty_window of history, the text so far; 0: all of it.
  std::span<const int32_t> history = {};
  int32_t penalty_window = 0;
  double repetition_penalty = 1;  // once a token: divides a logit above 0, multiplies one below
  double presence_penalty = 0;    // then, once a token: subtracted
  double frequency_penalty = 0;   // and for every time that it is there: subtracted
  double temperature = 0;         // 0: greedy, the largest logit, whatever the rest says
  int32_t top_k = 0;              // keep the k most likely; 0: all
  // Keep the fewest of the most likely whose probabilities, adding up to 1 over what is left, reach top_p: the
  // one that reaches it stays. 0 and 1: all.
  double top_p = 1;
  double min_p = 0;  // drop tokens less likely than min_p times the most likely one; 0: none
  // Keep the fewest whose probabilities, adding up to 1 over what is left, reach typical_p, those first whose
  // -log(probability) is nearest to its mean, the entropy. 0 and 1: all. (Meister et al., Locally typical
  // sampling, 2022.)
  double typical_p = 1;
  lite::Status check() const;  // InvalidArgument for what is out of range or not finite; not the ids
};

// Memory that sample() keeps between calls; what is in it means nothing.
struct SampleScratch {
  std::vector<double> logit, probability;
  std::vector<int32_t> order, recent;
};

// Picks one of `n` logits. The random number is a function of (seed, position) alone, so the same seed gives
// the same text however it is evaluated. Equal logits rank by lower id. A logit of minus infinity, which is how
// a caller masks an id, is never picked. Corrupt for a logit that is NaN or plus infinity, and when all are
// masked; InvalidArgument for ids of bias and history that are not in 0..n-1. All is computed in double.
// Allocates nothing once `scratch` has held n logits and such a history.
lite::Result<int32_t> sample(const float* logits, int32_t n, const Sampling& sampling, uint64_t seed,
                             int64_t position, SampleScratch* scratch);

// Uniform in [0, 1) with 53 bits: the upper bits of words 0 and 1 of philox4x32 with counter {counter, 0} and
// key seed, low words first.
double uniform(uint64_t seed, uint64_t counter);

// Philox 4x32-10, a counter-based generator: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC
// 2011).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace dsv3
