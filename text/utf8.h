// UTF-8, one sequence at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dsv3 {

// The code point at the start of `bytes` and its length; length 0 where no valid sequence begins (RFC 3629:
// no overlong form, no surrogate, nothing beyond U+10FFFF) or `bytes` is empty.
struct Decoded {
  uint32_t code_point = 0;
  size_t length = 0;
};
Decoded utf8_decode(std::string_view bytes);

// The same for text known to be valid and not empty: no checks.
inline Decoded utf8_decode_valid(const char* at) {
  const auto byte = [at](int i) { return uint32_t(uint8_t(at[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

// How many leading bytes are valid UTF-8.
size_t utf8_valid_prefix(std::string_view bytes);

}  // namespace dsv3
