// A string of the template language: UTF-8, and which of its bytes the template itself wrote.
//
// Only these bytes, "trusted", may later be read as special tokens. Whatever makes a text from others goes through
// append(), so trust is never gained on the way: bytes are trusted because a literal of the template or a special
// token of the checkpoint put them there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/span.h"

namespace dsv3::jinja {

class Text {
 public:
  Text() = default;
  static Text trusted(std::string_view bytes) { return Text(bytes, true); }
  static Text typed(std::string_view bytes) { return Text(bytes, false); }

  const std::string& bytes() const { return bytes_; }
  const std::vector<TextSpan>& trusted_spans() const { return trusted_; }  // ascending, never touching
  int64_t length() const { return length_; }                               // code points
  bool is_ascii() const { return size_t(length_) == bytes_.size(); }
  bool is_trusted() const;  // all of it

  void append(std::string_view bytes, bool trusted);
  void append(const Text& other) { append(other, 0, other.bytes_.size()); }
  void append(const Text& other, size_t begin, size_t end);  // bytes begin..end-1 of other
  Text sub(size_t begin, size_t end) const;

  // Byte at which code point i begins, 0 <= i <= length().
  size_t byte_of(int64_t i) const;

 private:
  Text(std::string_view bytes, bool trusted) { append(bytes, trusted); }

  std::string bytes_;
  std::vector<TextSpan> trusted_;
  int64_t length_ = 0;
};

// What Python's str calls white space.
bool is_space(uint32_t code_point);
// How many bytes at the beginning, or at the end, are white space.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);

// First and last place of `part` at `from` or later; npos. Linear in the text.
size_t find_text(std::string_view text, std::string_view part, size_t from = 0);
size_t rfind_text(std::string_view text, std::string_view part);

// Simple case mapping of every character, as Unicode's data file has it (no "SS" for a sharp s).
uint32_t to_upper(uint32_t code_point);
uint32_t to_lower(uint32_t code_point);
// What Python's repr() does not spell out.
bool is_printable(uint32_t code_point);
std::string utf8(uint32_t code_point);

}  // namespace dsv3::jinja
