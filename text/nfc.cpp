#include "text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "text/utf8.h"

namespace dsv3 {

namespace {

int combining_class(utf8proc_int32_t c) {
  return utf8proc_get_property(c)->combining_class;
}

}  // namespace

std::string nfc(std::string_view text) {
  constexpr auto kOptions = utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  constexpr size_t kLongest = 8;  // canonical decompositions have at most 4 characters
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Decoded d = utf8_decode_valid(&text[at]);
    utf8proc_int32_t parts[kLongest];
    int boundary = 0;
    const utf8proc_ssize_t n =
        utf8proc_decompose_char(utf8proc_int32_t(d.code_point), parts, kLongest, kOptions, &boundary);
    characters.insert(characters.end(), parts, parts + n);
    at += d.length;
  }
  // utf8proc_map would order the marks after a letter by exchanging neighbours: quadratic in their number.
  for (size_t i = 0; i < characters.size(); ++i) {
    size_t end = i;
    while (end < characters.size() && combining_class(characters[end]) != 0) ++end;
    if (end - i > 1)
      std::stable_sort(characters.begin() + std::ptrdiff_t(i), characters.begin() + std::ptrdiff_t(end),
                       [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
  const utf8proc_ssize_t n =
      utf8proc_normalize_utf32(characters.data(), utf8proc_ssize_t(characters.size()), kOptions);
  std::string out;
  for (utf8proc_ssize_t i = 0; i < n; ++i) {
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t length = utf8proc_encode_char(characters[size_t(i)], bytes);
    out.append(reinterpret_cast<const char*>(bytes), size_t(length));
  }
  return out;
}

}  // namespace dsv3
