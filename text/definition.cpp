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
  AddedToken token;
  const std::string* content = field(json, "content").string();
  if (!content)
    return lite::corrupt("content: got ", field(json, "content").type_name(), ", expected a string");
  if (content->empty()) return lite::corrupt("an added token without text");
  if (content->size() > kMaxAddedLength)
    return lite::unsupported("an added token of ", content->size(), " bytes, at most ", kMaxAddedLength);
  token.text = *content;
  for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
    LITE_ASSIGN(const bool set, bool_field(json, flag, false));
    if (set) return lite::unsupported("added token ", quoted(*content), " with ", flag, " is not supported");
  }
  LITE_ASSIGN(token.special, bool_field(json, "special", false));
  LITE_ASSIGN(token.normalized, bool_field(json, "normalized", !token.special));
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

std::string quoted(std::string_view text) {
  constexpr size_t kMost = 60;
  return Json(std::string(text.substr(0, kMost))).dump() + (text.size() > kMost ? "..." : "");
}

}  // namespace dsv3
