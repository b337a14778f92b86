#include "text/definition.h"

#include <algorithm>

#include "text/json_fields.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

namespace {
constexpr size_t kMaxAddedLength =
    1000;  // bytes; looking for added tokens takes time in proportion to the longest
}

Result<AddedToken> read_added_token(const Json& json) {
  LITE_TRY(only_fields(
      json, {"id", "content", "special", "normalized", "lstrip", "rstrip", "single_word", "__type"}));
  AddedToken token;
  LITE_ASSIGN(token.text, string_field(json, "content"));
  if (token.text.empty()) return lite::corrupt("an added token without text");
  if (token.text.size() > kMaxAddedLength)
    return lite::unsupported("an added token of ", token.text.size(), " bytes, at most ", kMaxAddedLength);
  LITE_ASSIGN(token.special, bool_field(json, "special", false));
  LITE_ASSIGN(token.normalized, bool_field(json, "normalized", !token.special));
  LITE_ASSIGN(token.lstrip, bool_field(json, "lstrip", false));
  LITE_ASSIGN(token.rstrip, bool_field(json, "rstrip", false));
  LITE_ASSIGN(token.single_word, bool_field(json, "single_word", false));
  return token;
}

Status check_distinct(const std::vector<AddedToken>& added) {
  std::vector<std::string_view> texts;
  for (const AddedToken& token : added) texts.push_back(token.text);
  std::sort(texts.begin(), texts.end());
  const auto twice = std::adjacent_find(texts.begin(), texts.end());
  if (twice != texts.end()) return lite::corrupt("added token ", quoted(*twice), " appears twice");
  return {};
}

}  // namespace dsv3
