#include "text/utf8.h"

#include <algorithm>

#include "text/tokenizer.h"

namespace dsv3 {

namespace {

// Length of the sequence that `lead` begins, and the range its second byte must lie in (Unicode 16.0, table
// 3-7); the others are 80..BF. Length 0: no sequence begins so.
struct Shape {
  size_t length;
  uint8_t second_low, second_high;
};

Shape shape(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead < 0xF0) return {3, uint8_t(lead == 0xE0 ? 0xA0 : 0x80), uint8_t(lead == 0xED ? 0x9F : 0xBF)};
  if (lead < 0xF5) return {4, uint8_t(lead == 0xF0 ? 0x90 : 0x80), uint8_t(lead == 0xF4 ? 0x8F : 0xBF)};
  return {0, 0, 0};
}

// How many bytes at the start of `bytes` belong to the sequence that its first byte begins.
size_t matching(std::string_view bytes, const Shape& s) {
  size_t n = 1;
  for (; n < std::min(s.length, bytes.size()); ++n) {
    const uint8_t b = uint8_t(bytes[n]);
    if (n == 1 ? b < s.second_low || b > s.second_high : (b & 0xC0) != 0x80) break;
  }
  return n;
}

}  // namespace

Decoded utf8_decode(std::string_view bytes) {
  if (bytes.empty()) return {};
  const Shape s = shape(uint8_t(bytes[0]));
  if (s.length == 0 || matching(bytes, s) != s.length) return {};
  return utf8_decode_valid(bytes.data());
}

size_t utf8_valid_prefix(std::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    if (uint8_t(bytes[at]) < 0x80) {
      ++at;
      continue;
    }
    const size_t length = utf8_decode(bytes.substr(at)).length;
    if (length == 0) break;
    at += length;
  }
  return at;
}

size_t utf8_complete_prefix(std::string_view bytes) {
  // An unfinished sequence has at most three bytes; its lead is the last byte that is not a continuation.
  for (size_t back = 1; back <= std::min<size_t>(3, bytes.size()); ++back) {
    const std::string_view tail = bytes.substr(bytes.size() - back);
    const uint8_t lead = uint8_t(tail[0]);
    if ((lead & 0xC0) == 0x80) continue;
    const Shape s = shape(lead);
    return bytes.size() - (s.length > back && matching(tail, s) == back ? back : 0);
  }
  return bytes.size();
}

}  // namespace dsv3
