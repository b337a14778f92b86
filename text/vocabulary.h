// The tokens: id to text and bytes, and back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/status.h"

namespace dsv3 {

class Vocabulary {
 public:
  // For `n_tokens` tokens. Ids may have gaps, but not such that memory would grow out of proportion to the
  // file.
  explicit Vocabulary(size_t n_tokens);

  // Corrupt for an id out of range or given twice, and for a text that another token has. `spoken`: find()
  // gives it; tokens that no text can become are not.
  lite::Status add(int64_t id, std::string_view text, bool spoken);
  // What a token stands for where that is not its text: the token U+2581 is a space.
  lite::Status set_bytes(int32_t id, std::string_view bytes);
  void set_special(int32_t id) { tokens_[size_t(id)].special = true; }

  int32_t size() const { return int32_t(tokens_.size()); }  // one more than the largest id
  bool contains(int32_t id) const { return id >= 0 && id < size() && tokens_[size_t(id)].exists; }
  bool is_special(int32_t id) const { return contains(id) && tokens_[size_t(id)].special; }
  std::string_view text(int32_t id) const;    // as merging knows it; empty for an id without a token
  std::string_view bytes(int32_t id) const;   // as it is shown; empty for an id without a token
  int32_t find(std::string_view text) const;  // -1: none

 private:
  struct Part {
    uint32_t begin = 0, length = 0;  // in text_
  };
  struct Token {
    Part text, bytes;
    bool exists = false, special = false;
  };
  lite::Status keep(std::string_view text, Part* part);
  std::string_view view(const Part& part) const {
    return std::string_view(text_).substr(part.begin, part.length);
  }
  size_t slot(std::string_view text) const;  // where it is or belongs; index_.size() when too many collide

  size_t max_id_;
  std::string text_;            // the tokens' texts and bytes one after the other
  std::vector<Token> tokens_;   // by id
  std::vector<int32_t> index_;  // hash table of ids, -1 empty, at most half full
};

}  // namespace dsv3
