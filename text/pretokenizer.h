// Cuts a text into the pieces within which tokens are formed: Split steps one after the other, each applied
// to every piece of the step before, for which a piece is then the whole text (look-aheads see its end as the
// end of the text).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"
#include "text/normalizer.h"
#include "text/regex.h"

namespace dsv3 {

// Spaces are written as another character, and one may be put in front of the text.
struct Metaspace {
  std::string replacement;                                                // one character
  enum class Prepend { Always, First, Never } prepend = Prepend::Always;  // First: of the whole text only
  bool split = true;                                                      // a piece begins at each
};
lite::Result<Metaspace> read_metaspace(const lite::Json& json);

class PreTokenizer {
 public:
  // From tokenizer.json's "pre_tokenizer": null, Split, Digits, Metaspace at the beginning, ByteLevel at the
  // end. Others are Unsupported, by name.
  static lite::Result<PreTokenizer> read(const lite::Json& json);
  static lite::Result<PreTokenizer> split_by(std::string_view pattern);

  // The vocabulary is written in ByteLevel's alphabet: its symbols are bytes, otherwise characters.
  bool byte_level() const { return byte_level_; }
  // True if rewrite() must come before pieces(). `first`: nothing is before this text.
  bool rewrites() const { return metaspace_.has_value(); }
  MarkedText rewrite(MarkedText text, bool first) const;
  // Pieces of `text`, valid UTF-8, in order; together they are the text.
  lite::Result<std::vector<std::string_view>> pieces(std::string_view text, const MatchTime& time) const;

 private:
  lite::Status add_pattern(std::string_view pattern);
  lite::Status add_step(const lite::Json& json);
  lite::Status add_split(const lite::Json& json);
  lite::Status add_byte_level(const lite::Json& json);
  lite::Status add_metaspace(const lite::Json& json);

  std::vector<Regex> steps_;
  std::optional<Metaspace> metaspace_;
  bool byte_level_ = false;
};

}  // namespace dsv3
