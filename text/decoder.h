// What the text of a token stands for: tokenizer.json's "decoder".
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"

namespace dsv3 {

class Decoder {
 public:
  // ByteLevel; Metaspace; or a Sequence of Replaces, ByteFallback, Fuse and, after Fuse, Strip. Others are
  // Unsupported, by name.
  static lite::Result<Decoder> read(const lite::Json& json);

  // The vocabulary is written in ByteLevel's alphabet: a token is the bytes that its characters stand for.
  bool byte_level() const { return byte_level_; }
  // Otherwise: the bytes of a token, written as `text`, anywhere but at the beginning of a text.
  std::string bytes(std::string_view text) const;
  // At the beginning of a text, which bytes() of the first token and all others make, spaces that the
  // normalizer put there go away.
  void strip_beginning(std::string_view first_token, std::string* text) const;

 private:
  lite::Status add(const lite::Json& json);

  bool byte_level_ = false, byte_fallback_ = false, fused_ = false;
  std::string metaspace_;  // the first token loses all of these; empty: not
  std::vector<std::pair<std::string, std::string>> replaces_;
  std::string strip_;   // a character
  size_t n_strip_ = 0;  // most of them that the text loses at its beginning
};

}  // namespace dsv3
