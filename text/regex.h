// Regular expressions of pre-tokenizers: PCRE2, told to mean what the reference implementations mean.
//
// A pattern is written for Oniguruma's Ruby syntax (Hugging Face tokenizers) or Rust's regex crate
// (tiktoken). Where these and PCRE2 differ it is rewritten first: \s is Unicode White_Space, \p{Han} the
// script itself, [a&&b] an intersection; $ matches at line ends. What we cannot say in PCRE2 is Unsupported,
// by name. Character classes are those of PCRE2's own Unicode version (14 in Debian 12's). Patterns and texts
// come from strangers: a match that takes too many steps or too much stack is an error.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/status.h"

namespace dsv3 {

class Regex {
 public:
  static lite::Result<Regex> compile(std::string_view pattern);
  // Matches exactly this text.
  static lite::Result<Regex> literal(std::string_view text);

  // Cuts `text`, valid UTF-8, into its matches and what lies between them, and appends these pieces: the
  // behaviour that Hugging Face calls Isolated. No piece is empty. Thread-safe.
  lite::Status split(std::string_view text, std::vector<std::string_view>* pieces) const;

 private:
  struct Free {
    void operator()(void* code) const;
  };
  explicit Regex(void* code) : code_(code) {}
  std::unique_ptr<void, Free> code_;  // pcre2_code
};

// A pattern that matches exactly this text.
std::string quoted_pattern(std::string_view text);

// The pattern in PCRE2's terms; for tests.
lite::Result<std::string> pcre2_pattern(std::string_view pattern);

}  // namespace dsv3
