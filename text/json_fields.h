// Members of a JSON object with the type a tokenizer's file must give them.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"

namespace dsv3 {

// Null when `object` has no such member or is no object.
const lite::Json& field(const lite::Json& object, std::string_view key);
// `otherwise` when absent or null.
lite::Result<bool> bool_field(const lite::Json& object, std::string_view key, bool otherwise);
lite::Result<std::string> string_field(const lite::Json& object, std::string_view key);
lite::Result<const lite::Json::Array*> list_field(const lite::Json& object, std::string_view key);

// Unsupported, by name, for a member that nobody reads: it could change what tokens a text has.
lite::Status only_fields(const lite::Json& object, std::initializer_list<std::string_view> known);

// "type" of a tokenizer.json component; "null" for null.
lite::Result<std::string> type_of(const lite::Json& component);
// A string that replaces others: Unsupported beyond some length, so that no file can make a text explode.
lite::Result<std::string> short_field(const lite::Json& object, std::string_view key);
// "pattern" of a Replace: {"String": ...}, not empty.
lite::Result<std::string> string_pattern(const lite::Json& component);

// For messages: in quotes, escaped, and not endless.
std::string quoted(std::string_view text);

}  // namespace dsv3
