#include "text/json_fields.h"

#include <algorithm>

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

const Json& field(const Json& object, std::string_view key) {
  static const Json null;
  const Json* found = object.find(key);
  return found ? *found : null;
}

Result<bool> bool_field(const Json& object, std::string_view key, bool otherwise) {
  const Json& value = field(object, key);
  if (value.is_null()) return otherwise;
  if (!value.boolean()) return lite::corrupt(key, ": got ", value.type_name(), ", expected a boolean");
  return *value.boolean();
}

Result<std::string> string_field(const Json& object, std::string_view key) {
  const Json& value = field(object, key);
  if (!value.string()) return lite::corrupt(key, ": got ", value.type_name(), ", expected a string");
  return *value.string();
}

Result<const Json::Array*> list_field(const Json& object, std::string_view key) {
  const Json& value = field(object, key);
  if (!value.array()) return lite::corrupt(key, ": got ", value.type_name(), ", expected a list");
  return value.array();
}

Status only_fields(const Json& object, std::initializer_list<std::string_view> known) {
  if (!object.object()) return {};
  for (const auto& [key, value] : *object.object())
    if (std::find(known.begin(), known.end(), key) == known.end())
      return lite::unsupported("field ", quoted(key), " is not supported");
  return {};
}

Result<std::string> type_of(const Json& component) {
  if (component.is_null()) return std::string("null");
  return string_field(component, "type");
}

Result<std::string> short_field(const Json& object, std::string_view key) {
  constexpr size_t kMost = 64;
  LITE_ASSIGN(std::string text, string_field(object, key));
  if (text.size() > kMost) return lite::unsupported(key, ": ", text.size(), " bytes, at most ", kMost);
  return text;
}

Result<std::string> string_pattern(const Json& component) {
  const Json& pattern = field(component, "pattern");
  if (pattern.find("Regex")) return lite::unsupported("pattern: a Regex is not supported, only a String");
  LITE_TRY(only_fields(pattern, {"String"}).in("pattern"));
  Result<std::string> text = string_field(pattern, "String");
  if (!text.ok()) return text.status().in("pattern");
  if (text->empty()) return lite::unsupported("pattern: an empty string");
  return text;
}

std::string quoted(std::string_view text) {
  constexpr size_t kMost = 60;
  return Json(std::string(text.substr(0, kMost))).dump() + (text.size() > kMost ? "..." : "");
}

}  // namespace dsv3
