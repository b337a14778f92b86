// What templates do to strings: the methods of Python's str, shared with the filters of the same name.
#include "text/jinja/strings.h"

#include <algorithm>

#include "text/utf8.h"

namespace dsv3::jinja {

using lite::invalid_argument;

namespace {

bool is_cased(uint32_t c) {
  return to_upper(c) != c || to_lower(c) != c;
}

// Calls use(code point, begin, end) for every character.
template <class Use>
void each_character(std::string_view bytes, Use use) {
  for (size_t at = 0; at < bytes.size();) {
    const Decoded c = utf8_decode_valid(bytes.data() + at);
    use(c.code_point, at, at + c.length);
    at += c.length;
  }
}

bool is_line_end(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace

Text map_case(const Text& text, Case how) {
  Text out;
  auto span = text.trusted_spans().begin();
  bool begins = true;  // of a word, or of the text
  each_character(text.bytes(), [&](uint32_t c, size_t begin, size_t) {
    while (span != text.trusted_spans().end() && span->end <= begin) ++span;
    const bool trusted = span != text.trusted_spans().end() && span->begin <= begin;
    const bool up = how == Case::Upper || (how != Case::Lower && begins);
    out.append(utf8(up ? to_upper(c) : to_lower(c)), trusted);
    if (how == Case::Title)
      begins = !is_cased(c);
    else if (how == Case::TitleWords)  // Jinja's own rule for the filter
      begins = is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    else
      begins = false;
  });
  return out;
}

bool all_characters(std::string_view text, bool (*is)(uint32_t)) {
  bool all = !text.empty();
  each_character(text, [&](uint32_t c, size_t, size_t) { all = all && is(c); });
  return all;
}

bool is_all_case(std::string_view text, bool upper) {
  bool some = false, all = true;
  each_character(text, [&](uint32_t c, size_t, size_t) {
    if (!is_cased(c)) return;
    some = true;
    all = all && (upper ? to_upper(c) : to_lower(c)) == c;
  });
  return some && all;
}

Text strip(const Text& text, const Text* characters, bool left, bool right) {
  const std::string& s = text.bytes();
  size_t begin = 0, end = s.size();
  if (!characters) {
    if (left) begin = leading_space(s);
    if (right) end -= trailing_space(std::string_view(s).substr(begin));
    return text.sub(begin, end);
  }
  const auto listed = [&](size_t at, size_t to) {
    return find_text(characters->bytes(), std::string_view(s).substr(at, to - at)) != std::string::npos;
  };
  while (left && begin < end) {
    const size_t length = utf8_decode_valid(s.data() + begin).length;
    if (!listed(begin, begin + length)) break;
    begin += length;
  }
  while (right && end > begin) {
    size_t at = end - 1;
    while ((uint8_t(s[at]) & 0xC0) == 0x80) --at;
    if (!listed(at, end)) break;
    end = at;
  }
  return text.sub(begin, end);
}

Result<Text> replace(const Text& text, const Text& from, const Text& to, int64_t count, Budget* budget) {
  if (from.bytes().empty()) return invalid_argument("replace: an empty string to replace is not supported");
  LITE_TRY(budget->spend_bytes(text.bytes().size()));
  Text out;
  size_t at = 0;
  for (; count != 0; --count) {
    const size_t found = find_text(text.bytes(), from.bytes(), at);
    if (found == std::string::npos) break;
    LITE_TRY(budget->spend_bytes(to.bytes().size()));
    out.append(text, at, found);
    out.append(to);
    at = found + from.bytes().size();
  }
  out.append(text, at, text.bytes().size());
  return out;
}

namespace {

// Places of `separator`, at most `most` of them (negative: all); from the right they come last first.
std::vector<size_t> places(std::string_view text, std::string_view separator, int64_t most, bool from_right) {
  std::vector<size_t> found;
  if (!from_right) {
    for (size_t at = 0; most != 0 && (at = find_text(text, separator, at)) != std::string::npos; --most) {
      found.push_back(at);
      at += separator.size();
    }
    return found;
  }
  const std::string backwards(text.rbegin(), text.rend()),
      separator_backwards(separator.rbegin(), separator.rend());
  for (const size_t at : places(backwards, separator_backwards, most, false))
    found.push_back(text.size() - at - separator.size());
  return found;
}

// At runs of white space; none gives an empty part. After `most` cuts the rest stays as it is, but for the space
// at the cut.
std::vector<Text> split_at_space(const Text& text, int64_t most, bool from_right) {
  const std::string_view s = text.bytes();
  std::vector<std::pair<size_t, size_t>> words;  // begin, end
  bool in_word = false;
  each_character(s, [&](uint32_t c, size_t at, size_t end) {
    if (!is_space(c)) {
      if (!in_word) words.emplace_back(at, end);
      words.back().second = end;
    }
    in_word = !is_space(c);
  });
  if (most >= 0 && int64_t(words.size()) > most + 1) {
    const size_t rest = words.size() - size_t(most);  // words of the uncut rest
    if (from_right) {
      words[0].second = words[rest - 1].second;
      words[0].first = 0;
      words.erase(words.begin() + 1, words.begin() + int64_t(rest));
    } else {
      words[size_t(most)].second = s.size();
      words.resize(size_t(most) + 1);
    }
  } else if (most >= 0 && int64_t(words.size()) == most + 1) {
    (from_right ? words.front().first : words.back().second) = from_right ? 0 : s.size();
  }
  std::vector<Text> parts;
  for (const auto& [begin, end] : words) parts.push_back(text.sub(begin, end));
  return parts;
}

}  // namespace

std::vector<Text> split(const Text& text, const Text* separator, int64_t most, bool from_right) {
  if (!separator) return split_at_space(text, most, from_right);
  std::vector<size_t> at = places(text.bytes(), separator->bytes(), most, from_right);
  if (from_right) std::reverse(at.begin(), at.end());
  std::vector<Text> parts;
  size_t begin = 0;
  for (const size_t end : at) {
    parts.push_back(text.sub(begin, end));
    begin = end + separator->bytes().size();
  }
  parts.push_back(text.sub(begin, text.bytes().size()));
  return parts;
}

std::vector<Text> split_lines(const Text& text, bool keep_ends) {
  std::vector<Text> lines;
  const std::string& s = text.bytes();
  size_t begin = 0, skip = 0;  // bytes before `skip` belong to a line end already
  each_character(s, [&](uint32_t c, size_t at, size_t end) {
    if (at < skip || !is_line_end(c)) return;
    if (c == '\r' && end < s.size() && s[end] == '\n') skip = ++end;
    lines.push_back(text.sub(begin, keep_ends ? end : at));
    begin = end;
  });
  if (begin < s.size()) lines.push_back(text.sub(begin, s.size()));
  return lines;
}

int64_t count_text(std::string_view text, const Text& part) {
  if (part.bytes().empty())
    return 1 + std::count_if(text.begin(), text.end(), [](char c) { return (uint8_t(c) & 0xC0) != 0x80; });
  return int64_t(places(text, part.bytes(), -1, false).size());
}

Result<Text> join(const Text& separator, const Values& items, Budget* budget) {
  Text out;
  for (size_t i = 0; i < items.size(); ++i) {
    LITE_ASSIGN(const Text text, to_text(items[i], budget));
    LITE_TRY(budget->spend_bytes(separator.bytes().size()));
    if (i) out.append(separator);
    out.append(text);
  }
  return out;
}

}  // namespace dsv3::jinja
