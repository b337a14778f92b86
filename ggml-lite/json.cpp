#include "ggml-lite/json.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

namespace lite {

namespace {
constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxText = size_t(64) << 20;  // bytes
constexpr size_t kMaxValues = size_t(4)
                              << 20;  // each takes 40 bytes, and 72 in an object, also where its text has two

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
  // `text` is `source` but for its numbers beyond double, in order, which are zeros.
  JsonBuilder(std::string_view text, std::string_view source, std::vector<std::string_view> beyond_double)
      : begin_(text.data()),
        read_(text.data()),
        wide_(true),
        source_(source),
        beyond_double_(std::move(beyond_double)) {}
  Cursor cursor(const char* at) { return {at, &read_}; }

  bool null() override { return add(Json()); }
  bool boolean(bool v) override { return add(Json(v)); }
  bool number_integer(int64_t v) override { return add(Json(v)); }
  bool number_unsigned(uint64_t v) override {
    if (next_beyond_ < beyond_double_.size() &&
        read_ - begin_ > beyond_double_[next_beyond_].data() - source_.data()) {
      const std::string text(beyond_double_[next_beyond_++]);
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      return number_float(text[0] == '-' ? -kInfinity : kInfinity, text);
    }
    if (v > uint64_t(INT64_MAX)) return wide_integer(std::to_string(v));
    return add(Json(int64_t(v)));
  }
  bool number_float(double v, const std::string& text) override {
    // nlohmann turns an integer too large for 64 bits into a double.
    if (text.find_first_of(".eE") == std::string::npos) return wide_integer(text);
    return add(Json(v));
  }
  bool string(std::string& v) override { return add(Json(std::move(v))); }
  bool binary(nlohmann::json::binary_t&) override { return refuse("binary value"); }
  bool start_object(size_t) override { return open(Json(Json::Object())); }
  bool key(std::string& v) override {
    stack_.back().object()->emplace_back(std::move(v), Json());
    if (stack_.size() == 1) member_ = size_t(read_ - begin_);
    return true;
  }
  bool end_object() override { return check_keys() && close(); }
  bool start_array(size_t) override { return open(Json(Json::Array())); }
  bool end_array() override { return close(); }
  bool parse_error(size_t offset, const std::string&, const nlohmann::json::exception& e) override {
    constexpr int kNumberOverflow = 406;  // nlohmann's id of it
    if (e.id == kNumberOverflow) {
      overflow_at_ = offset;
      return refuse("a number beyond the largest double");
    }
    // The library's text starts with an identifier and a position of its own; keep what follows.
    std::string text = e.what();
    const size_t colon = text.find(": ");
    refusal_ =
        str("at byte ", offset, ": ", shortened(colon == std::string::npos ? text : text.substr(colon + 2)));
    return false;
  }

  Json result_;
  std::string refusal_;
  size_t overflow_at_ = 0;                 // the end of a number beyond double
  std::vector<std::string_view> members_;  // values of the outermost object, of `source`

 private:
  bool wide_integer(const std::string& digits) {
    if (!wide_) return refuse(str("integer ", shortened(digits), " does not fit 64 bits"));
    Json v;
    v.value_ = Json::Wide{digits};
    return add(std::move(v));
  }
  // Where the value ends that has just been read, which begins at or behind member_.
  void add_member() {
    const size_t begin = source_.find_first_not_of(" \t\r\n:", member_);
    const bool closed = std::string_view("{[\"").find(source_[begin]) != std::string_view::npos;
    const size_t end = closed ? size_t(read_ - begin_) : source_.find_first_of(", \t\r\n}", begin);
    members_.push_back(source_.substr(begin, end - begin));
  }
  bool refuse(const std::string& why) {
    refusal_ = str("at byte ", read_ - begin_, ": ", why);
    return false;
  }
  // By sorting: hashed, keys can be made to collide, and then each costs as much as all.
  bool check_keys() {
    keys_.clear();
    for (const auto& [key, value] : *stack_.back().object()) keys_.push_back(key);
    std::sort(keys_.begin(), keys_.end());
    const auto twice = std::adjacent_find(keys_.begin(), keys_.end());
    return twice == keys_.end() || refuse("key \"" + shortened(std::string(*twice)) +
                                          "\" appears twice in the object that ends here");
  }
  bool add(Json v) {
    if (++values_ > kMaxValues) return refuse(str("more than ", kMaxValues, " values"));
    if (stack_.empty()) {
      result_ = std::move(v);
    } else if (Json::Array* a = stack_.back().array()) {
      a->push_back(std::move(v));
    } else {
      stack_.back().object()->back().second = std::move(v);
      if (stack_.size() == 1 && !source_.empty()) add_member();
    }
    return true;
  }
  bool open(Json v) {
    if (stack_.size() == kMaxDepth) return refuse(str("nested deeper than ", kMaxDepth));
    stack_.push_back(std::move(v));
    return true;
  }
  bool close() {
    Json v = std::move(stack_.back());
    stack_.pop_back();
    return add(std::move(v));
  }

  const char* const begin_;
  const char* read_;
  bool wide_ = false;
  std::string_view source_;
  std::vector<std::string_view> beyond_double_;
  size_t next_beyond_ = 0;
  size_t member_ = 0;  // the end of the last key of the outermost object
  std::vector<Json> stack_;
  std::vector<std::string_view> keys_;  // of the object that ends
  size_t values_ = 0;                   // that are complete
};

namespace {

bool read_all(std::string_view text, JsonBuilder* builder) {
  return nlohmann::json::sax_parse(builder->cursor(text.data()), builder->cursor(text.data() + text.size()),
                                   builder);
}

// nlohmann stops at a number beyond double: in *text each becomes a zero and spaces, so that offsets stay. Gives their
// places in `source`, of which *text is a copy.
std::vector<std::string_view> cut_beyond_double(std::string_view source, std::string* text) {
  constexpr size_t kDigits = 300;  // fewer, without an exponent, are never beyond double
  std::vector<std::string_view> out;
  bool in_string = false;
  for (size_t i = 0; i < source.size(); ++i) {
    const char c = source[i];
    if (c == '"') {
      in_string = !in_string;
    } else if (in_string) {
      i += c == '\\';
    } else if (c == '-' || (c >= '0' && c <= '9')) {
      const size_t end = std::min(source.find_first_not_of("0123456789+-.eE", i), source.size());
      const std::string_view number = source.substr(i, end - i);
      i = end - 1;
      if (number.size() < kDigits && number.find_first_of("eE") == std::string_view::npos) continue;
      JsonBuilder builder(number);
      if (read_all(number, &builder) || builder.overflow_at_ != number.size()) continue;
      const size_t at = size_t(number.data() - source.data());
      text->replace(at, number.size(), number.size(), ' ');
      (*text)[at] = '0';
      out.push_back(number);
    }
  }
  return out;
}

Status check_text(std::string_view text, std::string_view what) {
  if (text.size() > kMaxText)
    return unsupported("read ", what, ": got ", text.size(), " bytes of JSON, expected at most ", kMaxText);
  if (text.starts_with("\xEF\xBB\xBF"))  // nlohmann leaves it out
    return corrupt("read ", what,
                   ": not valid JSON: at byte 1: a byte order mark; save it as UTF-8 without one");
  // nlohmann takes a zero byte for the end of the text.
  if (const size_t zero = text.find('\0'); zero != std::string_view::npos)
    return corrupt("read ", what, ": not valid JSON: at byte ", zero + 1, ": a zero byte");
  return {};
}

Status invalid(std::string_view what, const JsonBuilder& builder) {
  return corrupt("read ", what, ": not valid JSON: ", builder.refusal_);
}

}  // namespace

Result<Json> Json::parse(std::string_view text, std::string_view what) {
  LITE_TRY(check_text(text, what));
  JsonBuilder builder(text);
  if (!read_all(text, &builder)) return invalid(what, builder);
  return std::move(builder.result_);
}

Result<Json> Json::parse_file(std::string_view text, std::string_view path) {
  auto json = parse(text, path);
  return json.ok() ? std::move(json) : json.status().with_advice("get the file again, or correct it");
}

Result<Json> Json::parse_wide(std::string_view text, std::string_view what,
                              std::vector<std::string_view>* members) {
  LITE_TRY(check_text(text, what));
  std::string narrow(text);
  std::vector<std::string_view> beyond_double = cut_beyond_double(text, &narrow);
  JsonBuilder builder(narrow, text, std::move(beyond_double));
  if (!read_all(narrow, &builder)) return invalid(what, builder);
  if (members) *members = std::move(builder.members_);
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
  } else if (const std::string* digits = j.wide_integer()) {
    *out += *digits;
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
                                      "a string", "a list",    "an object",  "an integer"};
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
