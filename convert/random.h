// A model with random weights, of any geometry, straight to a packed file: for tests and benchmarks. Every part
// matters to its results: norm weights lie around 1, expert biases on both sides of 0, and activations keep their
// size through any number of layers.
#pragma once

#include "convert/convert.h"

namespace dsv3 {

struct RandomOptions {
  std::string config;             // a config.json
  std::string out;                // OUT.dsv3; written as OUT.dsv3.partial until it is complete
  uint64_t seed = 1;              // a value is a function of the seed, its tensor's name and its place in it
  std::optional<int64_t> layers;  // keep the first so many, and no multi-token-prediction layer
  lite::DType dtype = lite::DType::BF16;  // of projections and experts: F32, BF16, F16 or F8_E4M3
  bool f8_head = false;                   // the output head in F8_E4M3
  bool force = false;                     // replace an existing packed file
  int64_t split_bytes = 0;                // several files of at most this; 0: one
};

// Like convert(): memory does not depend on the model's size, the same options give the same bytes whatever the number
// of threads, and on any error `out` is as it was before. Types are those of a released checkpoint: what is not said
// above is BF16, scales and expert biases are F32. The file has no tokenizer.
lite::Result<ConvertSummary> write_random_model(const RandomOptions& options,
                                                const ConvertCallbacks& callbacks = {});

}  // namespace dsv3
