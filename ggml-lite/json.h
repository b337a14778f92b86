// The one JSON reader of the library, for files that nobody vouches for.
//
// Refused, with the byte offset: syntax errors, a byte order mark, invalid UTF-8, duplicate keys, nesting beyond 64,
// integers that do not fit 64 bits, numbers beyond double (both but by parse_wide). An integer stays exact. Texts beyond
// 64 MiB and more than 4 Mi values are refused too: the largest real files, tokenizers and headers of 92,000 tensors,
// have 33 MB and 1 or 2 million values. Memory is that of the strings and at most 100 bytes for each value: some 20 times
// the text at worst, and never more than 500 MB. Time is n log n.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "ggml-lite/status.h"

namespace lite {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the text

  Json() = default;  // null
  Json(bool v) : value_(v) {}
  Json(int v) : value_(int64_t(v)) {}
  Json(int64_t v) : value_(v) {}
  Json(double v) : value_(v) {}
  Json(const char* v) : value_(std::string(v)) {}
  Json(std::string v) : value_(std::move(v)) {}
  Json(Array v) : value_(std::move(v)) {}
  Json(Object v) : value_(std::move(v)) {}

  // `what` names the text in messages: a file's name.
  static Result<Json> parse(std::string_view text, std::string_view what);
  // The text of a file, whose path is `path`: an error says what to do about the file.
  static Result<Json> parse_file(std::string_view text, std::string_view path);
  // For texts whose numbers are handed on, not computed with: an integer of any size is kept, a number beyond double is
  // infinite. If the text is an object, *members becomes its members' values as they are written there, in order.
  static Result<Json> parse_wide(std::string_view text, std::string_view what,
                                 std::vector<std::string_view>* members = nullptr);
  std::string dump() const;  // one line; doubles in the shortest form that reads back the same

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value_); }
  // The digits of an integer that does not fit 64 bits.
  const std::string* wide_integer() const {
    const Wide* v = std::get_if<Wide>(&value_);
    return v ? &v->digits : nullptr;
  }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }
  Array* array() { return std::get_if<Array>(&value_); }
  Object* object() { return std::get_if<Object>(&value_); }
  bool number(double* out) const;  // an integer of 64 bits or a double
  const char* type_name() const;   // "null", "a boolean", "an integer", ...

  // Member of an object (linear search: objects with many members are walked, not searched); null when absent.
  const Json* find(std::string_view key) const;
  // Appends or replaces a member; the value must be an object.
  void set(std::string_view key, Json value);

 private:
  friend class JsonBuilder;
  struct Wide {
    std::string digits;
  };
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object, Wide> value_;
};

}  // namespace lite
