// Cuts a text into the pieces within which tokens are formed: Split steps one after the other, each applied
// to every piece of the step before, for which a piece is then the whole text (look-aheads see its end as the
// end of the text).
#pragma once

#include <string_view>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"
#include "text/regex.h"

namespace dsv3 {

class PreTokenizer {
 public:
  // From tokenizer.json's "pre_tokenizer": Split, Digits and, at the end, ByteLevel. Others are Unsupported,
  // by name.
  static lite::Result<PreTokenizer> read(const lite::Json& json);
  static lite::Result<PreTokenizer> split_by(std::string_view pattern);

  // Pieces of `text`, valid UTF-8, in order; together they are the text.
  lite::Result<std::vector<std::string_view>> pieces(std::string_view text, const MatchTime& time) const;

 private:
  lite::Status add_pattern(std::string_view pattern);
  lite::Status add_step(const lite::Json& json);
  lite::Status add_split(const lite::Json& json);
  lite::Status add_byte_level(const lite::Json& json);

  std::vector<Regex> steps_;
  bool byte_level_ = false;
};

}  // namespace dsv3
