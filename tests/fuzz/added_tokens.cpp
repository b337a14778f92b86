// text/added_tokens: tokens, one a line, and after a zero byte a text. Every match is the one that looking for each
// token at each place finds.
#include "text/added_tokens.h"

#include <set>

#include "tests/fuzz/fuzz.h"

namespace {

// Leftmost, longest: -1 where there is none.
std::pair<size_t, int32_t> slow_find(const std::vector<dsv3::AddedToken>& tokens, std::string_view text,
                                     size_t from) {
  for (size_t at = from; at < text.size(); ++at) {
    int32_t best = -1;
    for (const dsv3::AddedToken& t : tokens)
      if (text.substr(at).starts_with(t.text) &&
          (best < 0 || t.text.size() > tokens[size_t(best)].text.size()))
        best = t.id;
    if (best >= 0) return {at, best};
  }
  return {0, -1};
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 4096) return 0;
  std::string_view text = fuzz::text_of(data, size), list = fuzz::take_up_to('\0', &text);
  std::set<std::string_view> seen;
  std::vector<dsv3::AddedToken> tokens;
  while (!list.empty() && tokens.size() < 100) {
    const std::string_view token = fuzz::take_up_to('\n', &list);
    if (!token.empty() && seen.insert(token).second)
      tokens.push_back({int32_t(tokens.size()), std::string(token), false, false});
  }
  const dsv3::AddedTokenSet set(tokens);
  for (size_t from = 0; from <= text.size();) {
    const auto match = set.find(text, {{0, text.size()}}, from);
    const auto [begin, id] = slow_find(tokens, text, from);
    fuzz::require((match.token ? match.token->id : -1) == id, "the longest of the leftmost is found");
    if (!match.token) break;
    fuzz::require(match.begin == begin, "the leftmost is found");
    from = match.end;
  }
  return 0;
}
