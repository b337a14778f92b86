// Byte-pair encoding: the bytes or characters of a piece become tokens, and the adjacent pair whose merge has
// the lowest rank is merged, leftmost first among equals, until no pair has a merge.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "ggml-lite/status.h"

namespace dsv3 {

class Bpe {
 public:
  explicit Bpe(size_t n_merges);

  // Symbols are bytes, unless there are characters; then bytes are those that stand for a character without a
  // token (byte_fallback).
  void set_byte(uint8_t byte, int32_t id) { byte_id_[byte] = id; }
  void set_character(uint32_t code_point, int32_t id);
  // For what has no token; `fuse`: one for several that follow each other.
  void set_unknown(int32_t id, bool fuse) {
    unknown_ = id;
    fuse_unknown_ = fuse;
  }
  // Ranks are given in the order of calls, n_merges of them at most. Corrupt for a pair that has a merge
  // already.
  lite::Status add_merge(int32_t left, int32_t right, int32_t merged);

  struct Token {
    int32_t id;
    uint32_t n_bytes;  // of the piece
  };
  // Replaces *tokens by the piece's, in its order. InvalidArgument for a byte or character that has none: some
  // vocabularies leave out bytes that UTF-8 never has. O(n log n) for n bytes.
  lite::Status encode(std::string_view piece, std::vector<Token>* tokens) const;

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kNoPair = UINT64_MAX;
  // What a pair of neighbours would become: rank << 32 | id; kNone, above all, for nothing.
  static constexpr uint64_t kNone = UINT64_MAX;

  size_t slot(uint64_t pair) const;
  uint64_t look_up(int32_t left, int32_t right) const;
  lite::Result<size_t> symbols_of(std::string_view piece, Token* symbols) const;
  int32_t character(uint32_t code_point) const {
    return code_point < character_id_.size() ? character_id_[code_point] : -1;
  }
  size_t merge_short(size_t n, Token* symbols) const;
  size_t merge_long(size_t n, Token* symbols) const;

  std::array<int32_t, 256> byte_id_;
  std::vector<int32_t> character_id_;  // by code point, -1: none; empty: symbols are bytes
  int32_t unknown_ = -1;
  bool fuse_unknown_ = false;
  std::vector<Merge> merges_;  // hash table, at most half full
  uint32_t n_merges_ = 0;
};

}  // namespace dsv3
