#include "text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "text/utf8.h"

namespace dsv3 {

namespace {

// \\s and \\w of Rust's regex crate, which the reference library asks.
bool is_space(uint32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word(uint32_t c) {
  // Letters by their use though not by their category, and joiners.
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
      (c >= 0x1F170 && c <= 0x1F189) || c == 0x200C || c == 0x200D)
    return true;
  switch (utf8proc_category(utf8proc_int32_t(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
  }
}

// The last character of `text`; length 0 if there is none.
Decoded last_character(std::string_view text) {
  for (size_t n = 1; n <= std::min<size_t>(4, text.size()); ++n)
    if (const Decoded d = utf8_decode(text.substr(text.size() - n)); d.length == n) return d;
  return {};
}

}  // namespace

AddedTokenSet::AddedTokenSet(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.text < b.text; });
  for (const AddedToken& t : tokens_) begins_[uint8_t(t.text[0])] = true;
}

AddedTokenSet::Match AddedTokenSet::find(std::string_view text, const TextSpans& trusted, size_t from) const {
  auto span = std::upper_bound(trusted.begin(), trusted.end(), from,
                               [](size_t at, const TextSpan& s) { return at < s.end; });
  for (size_t at = from; at < text.size(); ++at) {
    while (span != trusted.end() && span->end <= at) ++span;
    if (!begins_[uint8_t(text[at])]) continue;
    const size_t n_trusted = span != trusted.end() && span->begin <= at ? span->end - at : 0;
    const AddedToken* token = longest_at(text.substr(at), n_trusted);
    if (!token) continue;
    Match match{at, at + token->text.size(), token};
    const auto before = [&] { return last_character(text.substr(0, match.begin)); };
    const auto behind = [&] { return utf8_decode(text.substr(match.end)); };
    if (token->single_word && (is_word(before().code_point) || is_word(behind().code_point))) {
      at = match.end - 1;  // what follows cannot begin inside it, as in the reference library
      continue;
    }
    if (token->lstrip)
      while (match.begin > from && is_space(before().code_point)) match.begin -= before().length;
    if (token->rstrip)
      while (is_space(behind().code_point)) match.end += behind().length;
    return match;
  }
  return {};
}

// Narrows the tokens byte by byte to those that agree with the text so far.
const AddedToken* AddedTokenSet::longest_at(std::string_view text, size_t n_trusted) const {
  const AddedToken* longest = nullptr;
  auto first = tokens_.begin(), last = tokens_.end();
  for (size_t depth = 0; depth < text.size() && first != last; ++depth) {
    const uint8_t c = uint8_t(text[depth]);
    const auto byte = [depth](const AddedToken& t) { return int(uint8_t(t.text[depth])); };
    first = std::lower_bound(first, last, c, [&](const AddedToken& t, uint8_t b) { return byte(t) < b; });
    last = std::upper_bound(first, last, c, [&](uint8_t b, const AddedToken& t) { return b < byte(t); });
    if (first == last || first->text.size() != depth + 1) continue;
    if (first->anywhere || depth < n_trusted) longest = &*first;
    ++first;
  }
  return longest;
}

}  // namespace dsv3
