// Members of a JSON object with the type a tokenizer's file must give them.
#pragma once

#include <string>
#include <string_view>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"

namespace dsv3 {

// Null when `object` has no such member or is no object.
inline const lite::Json& field(const lite::Json& object, std::string_view key) {
  static const lite::Json null;
  const lite::Json* found = object.find(key);
  return found ? *found : null;
}

// `otherwise` when absent or null.
inline lite::Result<bool> bool_field(const lite::Json& object, std::string_view key, bool otherwise) {
  const lite::Json& value = field(object, key);
  if (value.is_null()) return otherwise;
  if (!value.boolean()) return lite::corrupt(key, ": got ", value.type_name(), ", expected a boolean");
  return *value.boolean();
}

// "type" of a tokenizer.json component; "null" for null.
inline lite::Result<std::string> type_of(const lite::Json& component) {
  if (component.is_null()) return std::string("null");
  const lite::Json& type = field(component, "type");
  if (!type.string()) return lite::corrupt("type: got ", type.type_name(), ", expected a string");
  return *type.string();
}

}  // namespace dsv3
