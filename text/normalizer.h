// What a text becomes before it is cut into pieces: tokenizer.json's "normalizer".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"
#include "text/span.h"

namespace dsv3 {

// A text of which some spans are trusted.
struct MarkedText {
  std::string text;
  TextSpans trusted;
  // Where each byte comes from in the text that was given; what replaces several characters comes from all of them.
  // Empty: nobody asked.
  std::vector<TextSpan> source = {};
};

class Normalizer {
 public:
  // NFC, Prepend, Replace of one string by another, and Sequences of them. Others are Unsupported, by name.
  static lite::Result<Normalizer> read(const lite::Json& json);

  bool does_nothing() const { return steps_.empty(); }
  // What a step writes is trusted where all that it replaces is. Bytes that are not UTF-8 stay as they are.
  // Time is linear in the text up to a logarithm.
  MarkedText apply(MarkedText text) const;

 private:
  enum class Kind { Nfc, Prepend, Replace };
  struct Step {
    Kind kind;
    std::string pattern, content;
  };
  lite::Status add(const lite::Json& json, int depth);

  std::vector<Step> steps_;
  double growth_ = 1;  // of a text, at most
};

// `content` in front of a text that is not empty, coming from its first character.
MarkedText prepended(const MarkedText& text, std::string_view content);
// Every `pattern` in `text` becomes `content`, leftmost first.
MarkedText replaced(const MarkedText& text, std::string_view pattern, std::string_view content);
std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content);

}  // namespace dsv3
