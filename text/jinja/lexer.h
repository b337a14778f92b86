// The text of a template as tokens: what is outside of {{ }}, {% %} and {# #}, and the words inside.
//
// Space around tags goes away as in transformers' environment: trim_blocks, lstrip_blocks, the signs "-" and "+", and
// no newline at the very end.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/status.h"

namespace dsv3::jinja {

struct Token {
  enum class Kind {
    Text,         // outside of tags
    OutputBegin,  // {{
    OutputEnd,    // }}
    TagBegin,     // {%
    TagEnd,       // %}
    Name,
    String,  // text: without quotes, escapes resolved
    Integer,
    Float,
    Operator,  // text: "+", "==", "(", ...
    End
  };
  Kind kind = Kind::End;
  std::string text;
  int line = 1;

  bool is(Kind k, std::string_view t) const { return kind == k && text == t; }
};

// Corrupt, with the line, for text that no template can have.
lite::Result<std::vector<Token>> lex(std::string_view source);

}  // namespace dsv3::jinja
