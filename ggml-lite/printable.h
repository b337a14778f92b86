// What a terminal obeys or is fooled by instead of printing it: names out of files reach terminals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lite {

// Bytes of the control character that `text`, UTF-8, begins with: U+0000 to U+001F, U+007F to U+009F, and those that
// turn the direction of writing, U+202A to U+202E and U+2066 to U+2069. 0 when it begins with none.
inline size_t control_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? uint8_t(text[i]) : uint8_t(0); };
  if (text.empty()) return 0;
  if (byte(0) < 0x20 || byte(0) == 0x7F) return 1;
  if (byte(0) == 0xC2) return byte(1) >= 0x80 && byte(1) <= 0x9F ? 2 : 0;
  if (byte(0) != 0xE2) return 0;
  const bool turns = (byte(1) == 0x80 && byte(2) >= 0xAA && byte(2) <= 0xAE) ||
                     (byte(1) == 0x81 && byte(2) >= 0xA6 && byte(2) <= 0xA9);
  return turns ? 3 : 0;
}

inline bool has_controls(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i)
    if (control_bytes(text.substr(i)) > 0) return true;
  return false;
}

// With '?' for each.
inline std::string without_controls(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t n = control_bytes(text);
    out += n > 0 ? '?' : text[0];
    text.remove_prefix(n > 0 ? n : 1);
  }
  return out;
}

}  // namespace lite
