#include "text/added_tokens.h"

#include <algorithm>

namespace dsv3 {

AddedTokenSet::AddedTokenSet(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.text < b.text; });
  for (const AddedToken& t : tokens_) begins_[uint8_t(t.text[0])] = true;
}

AddedTokenSet::Match AddedTokenSet::find(std::string_view text, std::span<const TextSpan> trusted,
                                         size_t from) const {
  auto span = std::upper_bound(trusted.begin(), trusted.end(), from,
                               [](size_t at, const TextSpan& s) { return at < s.end; });
  for (size_t at = from; at < text.size(); ++at) {
    while (span != trusted.end() && span->end <= at) ++span;
    if (!begins_[uint8_t(text[at])]) continue;
    const size_t n_trusted = span != trusted.end() && span->begin <= at ? span->end - at : 0;
    if (const AddedToken* token = longest_at(text.substr(at), n_trusted)) return {at, token};
  }
  return {};
}

int32_t AddedTokenSet::id(std::string_view text) const {
  const auto found = std::lower_bound(tokens_.begin(), tokens_.end(), text,
                                      [](const AddedToken& t, std::string_view s) { return t.text < s; });
  return found != tokens_.end() && found->text == text ? found->id : -1;
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
