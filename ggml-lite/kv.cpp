#include "ggml-lite/kv.h"

namespace lite {

Sequences::Sequences(int32_t n_sequences, int64_t context)
    : context_(context),
      blocks_per_sequence_(ceil_div(context, kBlockRows)),
      pool_blocks_(n_sequences * blocks_per_sequence_),
      length_(n_sequences, 0),
      blocks_(pool_blocks_, 0) {
  free_.reserve(pool_blocks_);
  for (int64_t block = pool_blocks_ - 1; block >= 0; --block) free_.push_back(int32_t(block));
}

void Sequences::resize(int32_t sequence, int64_t length) {
  int32_t* table = &blocks_[sequence * blocks_per_sequence_];
  int64_t have = ceil_div(length_[sequence], kBlockRows);
  const int64_t want = ceil_div(length, kBlockRows);
  for (; have < want; ++have) {
    table[have] = free_.back();
    free_.pop_back();
  }
  for (; have > want; --have) free_.push_back(table[have - 1]);
  length_[sequence] = length;
}

}  // namespace lite
