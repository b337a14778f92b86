#include "ggml-lite/json.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

namespace lite {

namespace {
constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxText = size_t(256) << 20;  // bytes; the largest tokenizer.json have 20 MB

// For messages, which must not be as long as what they speak of.
std::string shortened(const std::string& text) {
  constexpr size_t kMost = 200;
  return text.size() <= kMost ? text : text.substr(0, kMost) + "...";
}

// Walks the text and tells `read` how far the reader has come, for the offsets of refusals.
struct Cursor {
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char& operator*() const { return *at; }
  Cursor& operator++() {
    *read = ++at;
    return *this;
  }
  bool operator==(const Cursor& other) const { return at == other.at; }
  bool operator!=(const Cursor& other) const { return at != other.at; }

  const char* at;
  const char** read;
};

}  // namespace

// Receives nlohmann's SAX events and builds a Json; every refusal is recorded with its offset.
class JsonBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit JsonBuilder(std::string_view text) : begin_(text.data()), read_(text.data()) {}
  Cursor cursor(const char* at) { return {at, &read_}; }

  bool null() override { return add(Json()); }
  bool boolean(bool v) override { return add(Json(v)); }
  bool number_integer(int64_t v) override { return add(Json(v)); }
  bool number_unsigned(uint64_t v) override {
    if (v > uint64_t(INT64_MAX)) return refuse(str("integer ", v, " does not fit 64 bits"));
    return add(Json(int64_t(v)));
  }
  bool number_float(double v, const std::string& text) override {
    // nlohmann turns an integer too large for 64 bits into a double; we would rather say so.
    if (text.find_first_of(".eE") == std::string::npos)
      return refuse(str("integer ", shortened(text), " does not fit 64 bits"));
    return add(Json(v));
  }
  bool string(std::string& v) override { return add(Json(std::move(v))); }
  bool binary(nlohmann::json::binary_t&) override { return refuse("binary value"); }
  bool start_object(size_t) override { return open(Json(Json::Object())); }
  bool key(std::string& v) override {
    if (!keys_.back().insert(v).second)
      return refuse("key \"" + shortened(v) + "\" appears twice in one object");
    stack_.back().object()->emplace_back(std::move(v), Json());
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(Json(Json::Array())); }
  bool end_array() override { return close(); }
  bool parse_error(size_t offset, const std::string&, const nlohmann::json::exception& e) override {
    constexpr int kNumberOverflow = 406;  // nlohmann's id of it
    if (e.id == kNumberOverflow) return refuse("a number beyond the largest double");
    // The library's text starts with an identifier and a position of its own; keep what follows.
    std::string text = e.what();
    const size_t colon = text.find(": ");
    refusal_ =
        str("at byte ", offset, ": ", shortened(colon == std::string::npos ? text : text.substr(colon + 2)));
    return false;
  }

  Json result_;
  std::string refusal_;

 private:
  bool refuse(const std::string& why) {
    refusal_ = str("at byte ", read_ - begin_, ": ", why);
    return false;
  }
  bool add(Json v) {
    if (stack_.empty()) {
      result_ = std::move(v);
    } else if (Json::Array* a = stack_.back().array()) {
      a->push_back(std::move(v));
    } else {
      stack_.back().object()->back().second = std::move(v);
    }
    return true;
  }
  bool open(Json v) {
    if (stack_.size() == kMaxDepth) return refuse(str("nested deeper than ", kMaxDepth));
    stack_.push_back(std::move(v));
    keys_.emplace_back();
    return true;
  }
  bool close() {
    Json v = std::move(stack_.back());
    stack_.pop_back();
    keys_.pop_back();
    return add(std::move(v));
  }

  const char* const begin_;
  const char* read_;
  std::vector<Json> stack_;
  // Of the open objects. Ordered, not hashed: keys can be made to collide, and then each costs as much as all.
  std::vector<std::set<std::string>> keys_;
};

Result<Json> Json::parse(std::string_view text, std::string_view what) {
  if (text.size() > kMaxText)
    return unsupported("read ", what, ": got ", text.size(), " bytes of JSON, expected at most ", kMaxText);
  // nlohmann takes a zero byte for the end of the text.
  if (const size_t zero = text.find('\0'); zero != std::string_view::npos)
    return corrupt("read ", what, ": not valid JSON: at byte ", zero + 1, ": a zero byte");
  JsonBuilder builder(text);
  if (!nlohmann::json::sax_parse(builder.cursor(text.data()), builder.cursor(text.data() + text.size()),
                                 &builder))
    return corrupt("read ", what, ": not valid JSON: ", builder.refusal_);
  return std::move(builder.result_);
}

namespace {

template <class Value>
std::string text_of(const Value& value) {
  return nlohmann::json(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void append(const std::string& text, std::string* out) {
  const auto is_plain = [](char c) { return c >= 0x20 && c < 0x7F && c != '"' && c != '\\'; };
  if (std::all_of(text.begin(), text.end(), is_plain))
    out->append("\"").append(text).append("\"");
  else
    *out += text_of(text);
}

template <class List, class AppendItem>
void append_list(const char* brackets, const List& list, const AppendItem& append_item, std::string* out) {
  *out += brackets[0];
  for (const auto& item : list) {
    if (&item != &list.front()) *out += ',';
    append_item(item);
  }
  *out += brackets[1];
}

// Every text of strings and numbers is nlohmann's; without its copy of the whole.
void append(const Json& j, std::string* out) {
  if (const bool* b = j.boolean()) {
    *out += *b ? "true" : "false";
  } else if (const int64_t* n = j.integer()) {
    *out += std::to_string(*n);
  } else if (const std::string* text = j.string()) {
    append(*text, out);
  } else if (const Json::Array* array = j.array()) {
    append_list(
        "[]", *array, [out](const Json& item) { append(item, out); }, out);
  } else if (const Json::Object* object = j.object()) {
    append_list(
        "{}", *object,
        [out](const auto& member) {
          append(member.first, out);
          *out += ':';
          append(member.second, out);
        },
        out);
  } else if (double number; j.number(&number)) {
    *out += text_of(number);
  } else {
    *out += "null";
  }
}

}  // namespace

std::string Json::dump() const {
  std::string out;
  append(*this, &out);
  return out;
}

bool Json::number(double* out) const {
  if (const int64_t* v = integer()) {
    *out = double(*v);
    return true;
  }
  if (const double* v = std::get_if<double>(&value_)) {
    *out = *v;
    return true;
  }
  return false;
}

const char* Json::type_name() const {
  static const char* const names[] = {"null",     "a boolean", "an integer", "a number",
                                      "a string", "a list",    "an object"};
  return names[value_.index()];
}

const Json* Json::find(std::string_view key) const {
  if (const Object* o = object())
    for (const auto& [k, v] : *o)
      if (k == key) return &v;
  return nullptr;
}

void Json::set(std::string_view key, Json value) {
  for (auto& [k, v] : *object())
    if (k == key) {
      v = std::move(value);
      return;
    }
  object()->emplace_back(std::string(key), std::move(value));
}

}  // namespace lite
