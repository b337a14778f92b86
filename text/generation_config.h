// A checkpoint's generation_config.json: which tokens end a text, and how its makers sample.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/sampler.h"

namespace dsv3 {

struct GenerationConfig {
  std::vector<int32_t> end_ids;
  // What the file does not name is left open, as the released models' own servers do; do_sample without a temperature
  // means 1, and without do_sample the choice is greedy.
  Sampling sampling;
};

// Null counts as absent, and keys of other programs are skipped. Corrupt for text that is no JSON object and for values
// of another type; InvalidArgument for sampling that is out of range.
lite::Result<GenerationConfig> read_generation_config(std::string_view text);

}  // namespace dsv3
