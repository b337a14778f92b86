#include "text/jinja/text.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>

#include "text/utf8.h"

namespace dsv3::jinja {

namespace {

int64_t code_points(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(), [](char c) { return (uint8_t(c) & 0xC0) != 0x80; });
}

}  // namespace

bool Text::is_trusted() const {
  return bytes_.empty() ||
         (trusted_.size() == 1 && trusted_[0].begin == 0 && trusted_[0].end == bytes_.size());
}

void Text::append(std::string_view bytes, bool trusted) {
  if (bytes.empty()) return;
  const size_t begin = bytes_.size(), end = begin + bytes.size();
  bytes_ += bytes;
  length_ += code_points(bytes);
  if (!trusted) return;
  if (!trusted_.empty() && trusted_.back().end == begin)
    trusted_.back().end = end;
  else
    trusted_.push_back({begin, end});
}

void Text::append(const Text& other, size_t begin, size_t end) {
  const auto& spans = other.trusted_;
  auto span = std::lower_bound(spans.begin(), spans.end(), begin,
                               [](const TextSpan& s, size_t at) { return s.end <= at; });
  const std::string_view bytes = other.bytes_;
  for (; span != spans.end() && span->begin < end; ++span) {
    const size_t from = std::max(begin, span->begin), to = std::min(end, span->end);
    append(bytes.substr(begin, from - begin), false);
    append(bytes.substr(from, to - from), true);
    begin = to;
  }
  append(bytes.substr(begin, end - begin), false);
}

Text Text::sub(size_t begin, size_t end) const {
  Text out;
  out.append(*this, begin, end);
  return out;
}

size_t Text::byte_of(int64_t i) const {
  if (is_ascii()) return size_t(i);
  size_t at = 0;
  for (; i > 0; --i) at += utf8_decode_valid(bytes_.data() + at).length;
  return at;
}

bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

size_t leading_space(std::string_view text) {
  size_t n = 0;
  while (n < text.size()) {
    const Decoded c = utf8_decode_valid(text.data() + n);
    if (!is_space(c.code_point)) break;
    n += c.length;
  }
  return n;
}

size_t trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && (uint8_t(text[begin]) & 0xC0) == 0x80) --begin;
    if (!is_space(utf8_decode_valid(text.data() + begin).code_point)) break;
    end = begin;
  }
  return text.size() - end;
}

size_t find_text(std::string_view text, std::string_view part, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (part.empty()) return from;
  // memmem is linear whatever the texts; string_view::find is not.
  const void* at = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return at ? size_t(static_cast<const char*>(at) - text.data()) : std::string_view::npos;
}

size_t rfind_text(std::string_view text, std::string_view part) {
  const std::string backwards(text.rbegin(), text.rend()), part_backwards(part.rbegin(), part.rend());
  const size_t at = find_text(backwards, part_backwards);
  return at == std::string_view::npos ? at : text.size() - at - part.size();
}

uint32_t to_upper(uint32_t c) {
  return uint32_t(utf8proc_toupper(utf8proc_int32_t(c)));
}

uint32_t to_lower(uint32_t c) {
  return uint32_t(utf8proc_tolower(utf8proc_int32_t(c)));
}

bool is_printable(uint32_t c) {
  if (c == ' ') return true;
  switch (utf8proc_category(utf8proc_int32_t(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    default: return true;
  }
}

std::string utf8(uint32_t c) {
  if (c < 0x80) return {char(c)};
  const auto rest = [c](int shift) { return char(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x800) return {char(0xC0 | c >> 6), rest(0)};
  if (c < 0x10000) return {char(0xE0 | c >> 12), rest(6), rest(0)};
  return {char(0xF0 | c >> 18), rest(12), rest(6), rest(0)};
}

}  // namespace dsv3::jinja
