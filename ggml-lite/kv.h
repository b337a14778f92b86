// Which rows of the streams belong to which sequence: block tables over one pool of rows.
//
// Rows come in blocks of kBlockRows. A sequence of n tokens owns ceil(n / kBlockRows) blocks; position p is row
// block[p / kBlockRows] * kBlockRows + p % kBlockRows of every stream. Truncation gives blocks back; nothing is copied.
// A forked sequence holds blocks of the other one too; before it writes into such a block it gets its own copy.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ggml-lite/status.h"

namespace lite {

constexpr int64_t kBlockRows = 64;

class Sequences {
 public:
  // Room for n_sequences of up to `context` rows each. Allocates here and nowhere else.
  Sequences(int32_t n_sequences, int64_t context);

  int32_t count() const { return int32_t(length_.size()); }
  int64_t context() const { return context_; }
  int64_t blocks_per_sequence() const { return blocks_per_sequence_; }
  int64_t pool_rows() const { return pool_blocks_ * kBlockRows; }  // rows every stream must have

  int64_t length(int32_t sequence) const { return length_[sequence]; }
  int32_t row(int32_t sequence, int64_t position) const {
    return block_table(sequence)[position / kBlockRows] * int32_t(kBlockRows) +
           int32_t(position % kBlockRows);
  }
  // [ceil(length / kBlockRows)] entries are valid.
  const int32_t* block_table(int32_t sequence) const { return &blocks_[sequence * blocks_per_sequence_]; }

  // Blocks that some sequence holds, each once.
  int64_t blocks_in_use() const { return pool_blocks_ - int64_t(free_.size()); }

  // Grows to, or shrinks to, `length` rows, at most `context`.
  void resize(int32_t sequence, int64_t length);

  // `to` becomes the first `length` rows of `from`, in the same blocks; what it held before is given back.
  void fork(int32_t from, int32_t to, int64_t length);

  // To be called before rows of the sequence's last block are written: a block that another sequence holds too is
  // exchanged for one of its own, into which the caller copies the rows. Nothing: the block is its own already.
  struct Copy {
    int32_t from, to;  // blocks
  };
  std::optional<Copy> own_last_block(int32_t sequence);

 private:
  int32_t take();            // a block of nobody; never fails: see pool_blocks_
  void drop(int32_t block);  // one sequence holds it no more

  int64_t context_, blocks_per_sequence_;
  int64_t pool_blocks_;           // all that the sequences can hold without sharing any
  std::vector<int64_t> length_;   // [sequence]
  std::vector<int32_t> blocks_;   // [sequence][blocks_per_sequence]
  std::vector<int32_t> holders_;  // [block] sequences that hold it
  std::vector<int32_t> free_;     // blocks of nobody, the next to be given out last
};

}  // namespace lite
