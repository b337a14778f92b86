// The cached rows of a step's sequences, as attention on the host finds them (StepInputs in graph.h).
#pragma once

#include "ggml-lite/kv.h"
#include "ggml-lite/tensor.h"

namespace lite {

struct CachedRows {
  const Tensor& stream;
  const int32_t* seqs;
  const Tensor& blocks;

  int32_t first(int64_t s) const { return seqs[3 * s]; }
  int32_t count(int64_t s) const { return seqs[3 * s + 1]; }
  int32_t length(int64_t s) const { return seqs[3 * s + 2]; }
  int64_t sequence_of(int64_t token) const {
    int64_t s = 0;
    while (token >= first(s) + count(s)) ++s;
    return s;
  }
  // Rows that token `token` of sequence s attends to: its own position and all before it.
  int64_t visible(int64_t s, int64_t token) const { return length(s) - count(s) + (token - first(s)) + 1; }
  const std::byte* row(int64_t s, int64_t position) const {
    const int64_t block = blocks.row<int32_t>(s)[position / kBlockRows];
    return stream.data + (block * kBlockRows + position % kBlockRows) * stream.stride[0];
  }
};

}  // namespace lite
