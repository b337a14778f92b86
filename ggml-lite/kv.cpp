#include "ggml-lite/kv.h"

namespace lite {

Sequences::Sequences(int32_t n_sequences, int64_t context)
    : context_(context),
      blocks_per_sequence_(ceil_div(context, kBlockRows)),
      pool_blocks_(n_sequences * blocks_per_sequence_),
      length_(n_sequences, 0),
      blocks_(pool_blocks_, 0),
      holders_(pool_blocks_, 0) {
  free_.reserve(pool_blocks_);
  for (int64_t block = pool_blocks_ - 1; block >= 0; --block) free_.push_back(int32_t(block));
}

void Sequences::resize(int32_t sequence, int64_t length) {
  int32_t* table = &blocks_[sequence * blocks_per_sequence_];
  int64_t have = ceil_div(length_[sequence], kBlockRows);
  const int64_t want = ceil_div(length, kBlockRows);
  for (; have < want; ++have) table[have] = take();
  for (; have > want; --have) drop(table[have - 1]);
  length_[sequence] = length;
}

void Sequences::fork(int32_t from, int32_t to, int64_t length) {
  resize(to, 0);
  const int32_t* table = block_table(from);
  for (int64_t i = 0; i < ceil_div(length, kBlockRows); ++i) {
    blocks_[to * blocks_per_sequence_ + i] = table[i];
    ++holders_[table[i]];
  }
  length_[to] = length;
}

std::optional<Sequences::Copy> Sequences::own_last_block(int32_t sequence) {
  if (length_[sequence] == 0) return {};
  int32_t& block = blocks_[sequence * blocks_per_sequence_ + (length_[sequence] - 1) / kBlockRows];
  if (holders_[block] == 1) return {};
  const int32_t shared = block;
  block = take();
  drop(shared);
  return Copy{shared, block};
}

int32_t Sequences::take() {
  const int32_t block = free_.back();
  free_.pop_back();
  holders_[block] = 1;
  return block;
}

void Sequences::drop(int32_t block) {
  if (--holders_[block] == 0) free_.push_back(block);
}

}  // namespace lite
