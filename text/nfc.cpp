#include "text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "text/utf8.h"

namespace dsv3 {

namespace {

struct Range {
  uint32_t first, last;
};
constexpr Range kUnknown[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}};

int combining_class(utf8proc_int32_t c) {
  return utf8proc_get_property(c)->combining_class;
}

}  // namespace

bool unknown_to_reference(uint32_t c) {
  const auto range = std::lower_bound(std::begin(kUnknown), std::end(kUnknown), c,
                                      [](const Range& r, uint32_t value) { return r.last < value; });
  return range != std::end(kUnknown) && range->first <= c;
}

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
