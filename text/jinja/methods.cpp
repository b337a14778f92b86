// Methods of values, x.name(arguments), and the functions that a template finds there: range, namespace, ...
#include <algorithm>
#include <array>

#include "text/jinja/runtime.h"
#include "text/jinja/strings.h"

namespace dsv3::jinja {

using lite::invalid_argument;

namespace {

constexpr std::string_view kMethods[] = {
    // of str
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace",
    "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
    // of dict, and of the variable "loop"
    "copy", "get", "items", "keys", "values", "changed", "cycle"};

constexpr int64_t kMaxRange = 100000;  // the limit of Jinja's own sandbox

Result<Value> texts(Runtime& r, std::vector<Text> parts, Sequence::Kind kind = Sequence::Kind::List) {
  Values items;
  for (Text& part : parts) {
    LITE_ASSIGN(Value v, make_text(std::move(part), &r.budget));
    items.push_back(std::move(v));
  }
  return make_sequence(kind, std::move(items), &r.budget);
}

// startswith, endswith: of a string, or of any string of a tuple.
Result<Value> has_end(const Text& text, const Value& part, bool at_begin) {
  const auto has = [&](const Text& t) {
    const std::string_view s = text.bytes();
    return at_begin ? s.starts_with(t.bytes()) : s.ends_with(t.bytes());
  };
  if (part.text()) return Value(has(*part.text()));
  const Sequence* s = part.sequence();
  if (!s || s->kind != Sequence::Kind::Tuple)
    return invalid_argument("startswith, endswith: got '", part.type(), "', expected a string");
  for (const Value& v : s->items) {
    if (!v.text()) return invalid_argument("startswith, endswith: got '", v.type(), "', expected a string");
    if (has(*v.text())) return Value(true);
  }
  return Value(false);
}

// split, rsplit
Result<Value> split_method(Runtime& r, const Text& text, const Arguments& a, bool from_right) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "split", {"sep", "maxsplit"}));
  LITE_ASSIGN(const int64_t most, b.integer(1, -1));
  const bool at_space = !b[0] || b[0]->is_none();
  LITE_ASSIGN(const Text separator, at_space ? Result<Text>(Text()) : b.text(0, ""));
  if (!at_space && separator.bytes().empty()) return invalid_argument("split: empty separator");
  LITE_TRY(r.budget.spend(int64_t(text.bytes().size())));  // the parts' own memory
  return texts(r, split(text, at_space ? nullptr : &separator, most, from_right));
}

Result<Value> partition(Runtime& r, const Text& text, const Arguments& a, bool from_right) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "partition", {"sep"}, 1));
  LITE_ASSIGN(const Text separator, b.text(0, ""));
  if (separator.bytes().empty()) return invalid_argument("partition: empty separator");
  const std::string& s = text.bytes();
  const size_t at = from_right ? rfind_text(s, separator.bytes()) : find_text(s, separator.bytes());
  std::vector<Text> parts = {text, Text(), Text()};
  if (at != std::string::npos) {
    const size_t end = at + separator.bytes().size();
    parts = {text.sub(0, at), text.sub(at, end), text.sub(end, s.size())};
  } else if (from_right) {
    std::swap(parts[0], parts[2]);
  }
  return texts(r, std::move(parts), Sequence::Kind::Tuple);
}

// Place of a part in code points; -1 when it is not there.
Result<Value> find_method(const Text& text, const Arguments& a, const std::string& name) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, name, {"sub"}, 1));
  LITE_ASSIGN(const Text part, b.text(0, ""));
  const std::string& s = text.bytes();
  const size_t at = name == "rfind" ? rfind_text(s, part.bytes()) : find_text(s, part.bytes());
  if (at != std::string::npos) return Value(text.sub(0, at).length());
  if (name == "index") return invalid_argument("index: the string is not there");
  return Value(int64_t(-1));
}

bool is_ascii_class(uint32_t c, bool letters, bool digits) {
  return (letters && ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))) || (digits && c >= '0' && c <= '9');
}

// isalpha, isdigit, ...: without arguments, of every character.
Result<Value> class_method(const Text& text, const std::string& name) {
  const std::string& s = text.bytes();
  if (name == "isupper" || name == "islower") return Value(is_all_case(s, name == "isupper"));
  if (name == "isspace") return Value(all_characters(s, is_space));
  if (!text.is_ascii())
    return lite::unsupported("method \"", name, "\" of characters outside ASCII is not supported");
  if (name == "isalpha")
    return Value(all_characters(s, [](uint32_t c) { return is_ascii_class(c, true, false); }));
  if (name == "isdigit")
    return Value(all_characters(s, [](uint32_t c) { return is_ascii_class(c, false, true); }));
  return Value(all_characters(s, [](uint32_t c) { return is_ascii_class(c, true, true); }));
}

Result<Value> call_text(Runtime& r, const Text& text, const std::string& name, const Arguments& a) {
  LITE_TRY(r.budget.spend_bytes(text.bytes().size()));
  const auto made = [&](Text t) { return make_text(std::move(t), &r.budget); };
  static constexpr std::pair<std::string_view, Case> kCases[] = {{"upper", Case::Upper},
                                                                 {"lower", Case::Lower},
                                                                 {"capitalize", Case::Capitalize},
                                                                 {"title", Case::Title}};
  for (const auto& entry : kCases)
    if (entry.first == name) {
      LITE_TRY(Bound::bind(a, name, {}).status());
      return made(map_case(text, entry.second));
    }
  if (name.starts_with("is")) {
    LITE_TRY(Bound::bind(a, name, {}).status());
    return class_method(text, name);
  }
  if (name == "split" || name == "rsplit") return split_method(r, text, a, name == "rsplit");
  if (name == "partition" || name == "rpartition") return partition(r, text, a, name == "rpartition");
  if (name == "find" || name == "rfind" || name == "index") return find_method(text, a, name);
  if (name == "splitlines") {
    LITE_ASSIGN(const Bound b, Bound::bind(a, name, {"keepends"}));
    LITE_TRY(r.budget.spend(int64_t(text.bytes().size())));
    return texts(r, split_lines(text, b.truth_of(0, false)));
  }
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    LITE_ASSIGN(const Bound b, Bound::bind(a, name, {"chars"}));
    const bool space = !b[0] || b[0]->is_none();
    LITE_ASSIGN(const Text characters, space ? Result<Text>(Text()) : b.text(0, ""));
    return made(strip(text, space ? nullptr : &characters, name != "rstrip", name != "lstrip"));
  }
  if (name == "replace") {
    LITE_ASSIGN(const Bound b, Bound::bind(a, name, {"old", "new", "count"}, 2));
    LITE_ASSIGN(const Text from, b.text(0, ""));
    LITE_ASSIGN(const Text to, b.text(1, ""));
    LITE_ASSIGN(const int64_t count, b.integer(2, -1));
    LITE_ASSIGN(Text out, replace(text, from, to, count, &r.budget));
    return made(std::move(out));
  }
  // The others have one argument.
  LITE_ASSIGN(const Bound b, Bound::bind(a, name, {"argument"}, 1));
  if (name == "startswith" || name == "endswith") return has_end(text, *b[0], name == "startswith");
  if (name == "join") {
    LITE_ASSIGN(const Values items, items_of(*b[0], &r.budget));
    for (const Value& v : items)
      if (!v.text()) return invalid_argument("join: got a list with '", v.type(), "', expected strings");
    LITE_ASSIGN(Text out, join(text, items, &r.budget));
    return made(std::move(out));
  }
  LITE_ASSIGN(const Text part, b.text(0, ""));
  const std::string& s = text.bytes();
  if (name == "count") return Value(count_text(s, part));
  if (name == "removeprefix")
    return made(s.starts_with(part.bytes()) ? text.sub(part.bytes().size(), s.size()) : text);
  if (name == "removesuffix")
    return made(s.ends_with(part.bytes()) ? text.sub(0, s.size() - part.bytes().size()) : text);
  return lite::unsupported("method \"", name, "\" of a string is not supported");
}

Result<Value> call_dict(Runtime& r, const Value& self, const std::string& name, const Arguments& a) {
  const Dict& d = *self.dict();
  if (name == "get") {
    LITE_ASSIGN(const Bound b, Bound::bind(a, name, {"key", "default"}, 1));
    if (b[0]->text()) LITE_TRY(r.budget.spend_bytes(b[0]->text()->bytes().size()));
    if (const Value* found = d.find(*b[0])) return *found;
    return b[1] ? *b[1] : Value();
  }
  LITE_TRY(Bound::bind(a, name, {}).status());
  if (name == "copy") return self;
  Values out;
  for (const auto& item : d.items) {
    Value v = name == "keys" ? item.first : item.second;
    if (name == "items") {
      LITE_ASSIGN(v, make_sequence(Sequence::Kind::Tuple, {item.first, item.second}, &r.budget));
    }
    out.push_back(std::move(v));
  }
  return make_sequence(Sequence::Kind::View, std::move(out), &r.budget);
}

Result<Value> call_sequence(Runtime& r, const Sequence& s, const std::string& name, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, name, {"value"}, 1));
  int64_t n = 0;
  for (size_t i = 0; i < s.items.size(); ++i) {
    LITE_ASSIGN(const bool same, equal(s.items[i], *b[0], &r.budget));
    if (same && name == "index") return Value(int64_t(i));
    n += same;
  }
  if (name == "index") return invalid_argument("index: the value is not in the list");
  return Value(n);
}

Result<Value> call_loop(Runtime& r, Loop* loop, const std::string& name, const Arguments& a) {
  if (!a.named.empty()) return invalid_argument("loop.", name, ": takes no arguments by name");
  if (name == "cycle") {
    if (a.positional.empty()) return invalid_argument("loop.cycle: no items to cycle through");
    return a.positional[size_t(loop->index0) % a.positional.size()];
  }
  if (loop->changed && loop->changed->size() == a.positional.size()) {
    bool same = true;
    for (size_t i = 0; i < a.positional.size() && same; ++i) {
      LITE_ASSIGN(same, equal((*loop->changed)[i], a.positional[i], &r.budget));
    }
    if (same) return Value(false);
  }
  // What the loop keeps may not hold the loop, or it would never be freed.
  for (const Value& v : a.positional)
    if (v.depth() > 0)
      return invalid_argument("loop.changed: only strings, numbers and the like are supported");
  loop->changed = a.positional;
  return Value(true);
}

Result<Value> range(Runtime& r, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "range", {"start", "stop", "step"}, 1));
  LITE_ASSIGN(int64_t begin, b.integer(0, 0));
  LITE_ASSIGN(int64_t end, b.integer(1, 0));
  LITE_ASSIGN(const int64_t step, b.integer(2, 1));
  if (!b[1]) std::swap(begin, end);
  if (step == 0) return invalid_argument("range: the step is 0");
  const __int128 distance = step > 0 ? __int128(end) - begin : __int128(begin) - end;
  const __int128 by = step > 0 ? __int128(step) : -__int128(step);
  const __int128 n = distance > 0 ? (distance + by - 1) / by : 0;
  if (n > kMaxRange) return invalid_argument("range: more than ", kMaxRange, " numbers");
  Values items;
  for (int64_t i = 0; i < int64_t(n); ++i) items.push_back(int64_t(begin + __int128(i) * step));
  return make_sequence(Sequence::Kind::Range, std::move(items), &r.budget);
}

Result<Value> make_namespace(Runtime& r, const Arguments& a) {
  if (!a.positional.empty()) return invalid_argument("namespace: expected arguments by name");
  LITE_TRY(r.budget.spend(32 + 32 * int64_t(a.named.size())));
  auto made = std::make_shared<Namespace>();
  for (const auto& [name, value] : a.named) made->attributes[name] = value;
  r.namespaces.push_back(made);
  return Value(std::move(made));
}

Result<Value> named_dict(Runtime& r, const Arguments& a) {
  if (!a.positional.empty()) return invalid_argument("dict: expected arguments by name");
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [name, value] : a.named) items.emplace_back(Text::trusted(name), value);
  return make_dict(std::move(items), &r.budget);
}

}  // namespace

bool is_method(std::string_view name) {
  return std::find(std::begin(kMethods), std::end(kMethods), name) != std::end(kMethods);
}

Result<Value> call_method(Runtime& r, const Method& method, const Arguments& arguments) {
  LITE_TRY(r.budget.spend(1));
  if (method.self.text()) return call_text(r, *method.self.text(), method.name, arguments);
  if (method.self.dict()) return call_dict(r, method.self, method.name, arguments);
  if (method.self.loop()) return call_loop(r, method.self.loop(), method.name, arguments);
  return call_sequence(r, *method.self.sequence(), method.name, arguments);
}

std::optional<Function> function_named(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> kFunctions[] = {
      {"range", Function::Range},
      {"dict", Function::Dict},
      {"namespace", Function::Namespace},
      {"raise_exception", Function::RaiseException},
      {"strftime_now", Function::StrftimeNow}};
  for (const auto& entry : kFunctions)
    if (entry.first == name) return entry.second;
  return std::nullopt;
}

Result<Value> call_function(Runtime& r, Function function, const Arguments& arguments) {
  LITE_TRY(r.budget.spend(1));
  switch (function) {
    case Function::Range: return range(r, arguments);
    case Function::Dict: return named_dict(r, arguments);
    case Function::Namespace: return make_namespace(r, arguments);
    case Function::RaiseException: {
      LITE_ASSIGN(const Bound b, Bound::bind(arguments, "raise_exception", {"message"}, 1));
      LITE_ASSIGN(const Text message, to_text(*b[0], &r.budget));
      return invalid_argument("the template refuses: ", message.bytes().substr(0, 1000));
    }
    case Function::StrftimeNow: {
      LITE_ASSIGN(const Bound b, Bound::bind(arguments, "strftime_now", {"format"}, 1));
      LITE_ASSIGN(const Text format, b.text(0, ""));
      return format_time(r, format);
    }
  }
  return lite::internal_error("a function without a body");
}

}  // namespace dsv3::jinja
