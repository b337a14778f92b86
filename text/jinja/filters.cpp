// The filters: x | name(arguments).
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <set>

#include "text/jinja/runtime.h"
#include "text/jinja/strings.h"

namespace dsv3::jinja {

using lite::invalid_argument;
using lite::str;

namespace {

using Filter = Result<Value> (*)(Runtime&, const Value& self, const Arguments&);

Result<Value> text_value(Runtime& r, Result<Text> text) {
  LITE_TRY(text.status());
  return make_text(std::move(*text), &r.budget);
}

Result<Value> iterator(Runtime& r, Values items) {
  return make_sequence(Sequence::Kind::Iterator, std::move(items), &r.budget);
}

Status no_arguments(const Arguments& arguments, std::string_view what) {
  return Bound::bind(arguments, what, {}).status();
}

// What "attribute=" asks for: a member, a number, or several one inside the other, "function.name".
Result<Value> path(Runtime& r, const Value& of, const Value& path, const Value* otherwise) {
  if (path.whole()) return item(r, of, path);
  if (!path.text()) return invalid_argument("attribute: got '", path.type(), "', expected a string");
  const Text dot = Text::trusted(".");
  Value at = of;
  for (const Text& part : split(*path.text(), &dot, -1, false)) {
    Value key = part;
    const std::string& s = part.bytes();
    int64_t number = 0;
    const auto end = std::from_chars(s.data(), s.data() + s.size(), number);
    if (!s.empty() && s[0] != '-' && end.ec == std::errc() && end.ptr == s.data() + s.size()) key = number;
    LITE_ASSIGN(at, item(r, at, key));
    if (otherwise && at.is_undefined()) at = *otherwise;
  }
  return at;
}

// What values are compared by when they are sorted: themselves or a member, without regard to case unless asked.
Result<Values> sort_keys(Runtime& r, const Values& items, const Value* attribute, bool case_sensitive) {
  Values keys;
  for (const Value& v : items) {
    Value key = v;
    if (attribute && !attribute->is_none()) {
      LITE_ASSIGN(key, path(r, v, *attribute, nullptr));
    }
    if (!case_sensitive && key.text()) {
      LITE_ASSIGN(key, make_text(map_case(*key.text(), Case::Lower), &r.budget));
    }
    keys.push_back(std::move(key));
  }
  return keys;
}

// The order of `keys`, equal ones as they were. Comparisons can fail, which std::sort cannot: a merge sort of our own.
Status sort_by(Runtime& r, const Values& keys, bool reverse, std::vector<size_t>* order_out) {
  const size_t n = keys.size();
  std::vector<size_t> from(n), to(n);
  for (size_t i = 0; i < n; ++i) from[i] = i;
  for (size_t width = 1; width < n; width *= 2) {
    for (size_t begin = 0; begin < n; begin += 2 * width) {
      const size_t middle = std::min(begin + width, n), end = std::min(begin + 2 * width, n);
      size_t a = begin, b = middle;
      for (size_t out = begin; out < end; ++out) {
        bool left = b == end;
        if (!left && a < middle) {
          LITE_ASSIGN(const int sign, order(keys[from[a]], keys[from[b]], &r.budget));
          left = reverse ? sign >= 0 : sign <= 0;
        }
        to[out] = left ? from[a++] : from[b++];
      }
    }
    from.swap(to);
  }
  *order_out = std::move(from);
  return {};
}

// ---- of strings

Result<Value> cased(Runtime& r, const Value& self, const Arguments& a, Case how) {
  LITE_TRY(no_arguments(a, "a filter of letters' case"));
  LITE_ASSIGN(const Text text, to_text(self, &r.budget));
  return make_text(map_case(text, how), &r.budget);
}
Result<Value> upper(Runtime& r, const Value& self, const Arguments& a) {
  return cased(r, self, a, Case::Upper);
}
Result<Value> lower(Runtime& r, const Value& self, const Arguments& a) {
  return cased(r, self, a, Case::Lower);
}
Result<Value> capitalize(Runtime& r, const Value& self, const Arguments& a) {
  return cased(r, self, a, Case::Capitalize);
}
Result<Value> title(Runtime& r, const Value& self, const Arguments& a) {
  return cased(r, self, a, Case::TitleWords);
}

Result<Value> trim(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "trim", {"chars"}));
  LITE_ASSIGN(const Text text, to_text(self, &r.budget));
  LITE_ASSIGN(const Text characters, b.text(0, ""));
  return make_text(strip(text, b[0] ? &characters : nullptr, true, true), &r.budget);
}

Result<Value> replace(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "replace", {"old", "new", "count"}, 2));
  LITE_ASSIGN(const Text text, to_text(self, &r.budget));
  LITE_ASSIGN(const Text from, to_text(*b[0], &r.budget));
  LITE_ASSIGN(const Text to, to_text(*b[1], &r.budget));
  LITE_ASSIGN(const int64_t count, b.integer(2, -1));
  return text_value(r, replace(text, from, to, count, &r.budget));
}

Result<Value> string(Runtime& r, const Value& self, const Arguments& a) {
  LITE_TRY(no_arguments(a, "string"));
  return text_value(r, to_text(self, &r.budget));
}

// The mark "needs no escaping" means nothing where nothing is escaped.
Result<Value> safe(Runtime& r, const Value& self, const Arguments& a) {
  return string(r, self, a);
}

Result<Value> indent(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "indent", {"width", "first", "blank"}));
  if (!self.text()) return invalid_argument("indent: got '", self.type(), "', expected a string");
  Text text = *self.text();
  Text space;
  if (b[0] && b[0]->text()) {
    space = *b[0]->text();
  } else {
    LITE_ASSIGN(const int64_t width, b.integer(0, 4));
    if (width > 1000) return invalid_argument("indent: width ", width, ", at most 1000");
    space = Text::trusted(std::string(size_t(std::max<int64_t>(width, 0)), ' '));
  }
  const bool blank = b.truth_of(2, false);
  text.append("\n", true);
  Text out;
  bool first = true;
  for (const Text& line : split_lines(text, false)) {
    LITE_TRY(r.budget.spend_bytes(space.bytes().size() + line.bytes().size()));
    if (!first) out.append("\n", true);
    if (first ? b.truth_of(1, false) : blank || !line.bytes().empty()) out.append(space);
    out.append(line);
    first = false;
  }
  return make_text(std::move(out), &r.budget);
}

Result<Value> format_filter(Runtime& r, const Value& self, const Arguments& a) {
  if (!a.named.empty()) return invalid_argument("format: arguments with names are not supported");
  LITE_ASSIGN(const Text pattern, to_text(self, &r.budget));
  return format(r, pattern, a.positional);
}

Result<Value> join(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "join", {"d", "attribute"}));
  LITE_ASSIGN(Values items, items_of(self, &r.budget));
  if (b[1])
    for (Value& v : items) {
      LITE_ASSIGN(v, path(r, v, *b[1], nullptr));
    }
  LITE_ASSIGN(const Text separator, b[0] ? to_text(*b[0], &r.budget) : Result<Text>(Text()));
  return text_value(r, join(separator, items, &r.budget));
}

Result<Value> tojson(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonStyle style;
  style.ensure_ascii = b.truth_of(0, false);
  style.sort_keys = b.truth_of(3, false);
  if (b[1] && b[1]->text()) {
    style.indent = b[1]->text()->bytes();
  } else if (b[1] && !b[1]->is_none()) {
    LITE_ASSIGN(const int64_t width, b.integer(1, 0));
    if (width > 1000) return invalid_argument("tojson: indent ", width, ", at most 1000");
    style.indent = std::string(size_t(std::max<int64_t>(width, 0)), ' ');
  }
  style.item_separator = Text::trusted(style.indent ? "," : ", ");
  style.key_separator = Text::trusted(": ");
  if (b[2] && !b[2]->is_none()) {
    const Sequence* s = b[2]->sequence();
    if (!s || s->items.size() != 2 || !s->items[0].text() || !s->items[1].text())
      return invalid_argument("tojson: separators: expected two strings");
    style.item_separator = *s->items[0].text();
    style.key_separator = *s->items[1].text();
  }
  return text_value(r, to_json(self, style, &r.budget));
}

// ---- of numbers

Result<Value> to_integer(Runtime&, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "int", {"default", "base"}));
  if (b[1]) return invalid_argument("int: \"base\" is not supported");
  const Value otherwise = b[0] ? *b[0] : Value(int64_t(0));
  if (const Undefined* u = self.as_undefined()) return invalid_argument(*u->what);
  if (const auto i = self.whole()) return Value(*i);
  if (self.wide_integer()) return self;
  double d = 0;
  if (self.real()) {
    d = *self.real();
  } else if (self.text()) {
    const Text stripped = strip(*self.text(), nullptr, true, true);
    std::string_view s = stripped.bytes();
    if (s.starts_with("+")) s.remove_prefix(1);
    int64_t i = 0;
    auto end = std::from_chars(s.data(), s.data() + s.size(), i);
    if (end.ec == std::errc() && end.ptr == s.data() + s.size()) return Value(i);
    end = std::from_chars(s.data(), s.data() + s.size(), d);
    if (end.ec != std::errc() || end.ptr != s.data() + s.size()) return otherwise;
  } else {
    return otherwise;
  }
  if (!(std::fabs(d) < 9e18)) return otherwise;
  return Value(int64_t(d));
}

Result<Value> to_float(Runtime&, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "float", {"default"}));
  if (const Undefined* u = self.as_undefined()) return invalid_argument(*u->what);
  if (const auto d = self.number()) return Value(*d);
  if (self.wide_integer()) return invalid_argument("float: an integer that does not fit 64 bits");
  if (self.text()) {
    const Text stripped = strip(*self.text(), nullptr, true, true);
    std::string_view s = stripped.bytes();
    if (s.starts_with("+")) s.remove_prefix(1);
    double d = 0;
    const auto end = std::from_chars(s.data(), s.data() + s.size(), d);
    if (end.ec == std::errc() && end.ptr == s.data() + s.size()) return Value(d);
  }
  return b[0] ? *b[0] : Value(0.0);
}

Result<Value> absolute(Runtime& r, const Value& self, const Arguments& a) {
  LITE_TRY(no_arguments(a, "abs"));
  if (self.real()) return Value(std::fabs(*self.real()));
  if (!self.whole()) return invalid_argument("abs: got '", self.type(), "', expected a number");
  return *self.whole() < 0 ? arithmetic(r, "-", int64_t(0), self) : Value(*self.whole());
}

Result<Value> round(Runtime&, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "round", {"precision", "method"}));
  LITE_ASSIGN(const int64_t precision, b.integer(0, 0));
  LITE_ASSIGN(const Text method, b.text(1, "common"));
  const auto number = self.number();
  if (!number) return invalid_argument("round: got '", self.type(), "', expected a number");
  if (precision < 0 || precision > 15)
    return invalid_argument("round: precision ", precision, ", expected 0..15");
  if (method.bytes() == "common") {
    if (self.whole()) return Value(*self.whole());
    char digits[400];  // of a double in full, and the precision
    std::snprintf(digits, sizeof digits, "%.*f", int(precision), *number);
    double out = *number;
    std::from_chars(digits, digits + std::char_traits<char>::length(digits), out);
    return Value(out);
  }
  const double scale = std::pow(10.0, double(precision));
  if (method.bytes() == "ceil") return Value(std::ceil(*number * scale) / scale);
  if (method.bytes() == "floor") return Value(std::floor(*number * scale) / scale);
  return invalid_argument("round: method \"", method.bytes(), "\", expected common, ceil or floor");
}

// ---- of lists

Result<Value> length(Runtime&, const Value& self, const Arguments& a) {
  LITE_TRY(no_arguments(a, "length"));
  if (self.is_undefined()) return Value(int64_t(0));
  if (self.text()) return Value(self.text()->length());
  if (self.dict()) return Value(int64_t(self.dict()->items.size()));
  if (const Sequence* s = self.sequence(); s && s->kind != Sequence::Kind::Iterator)
    return Value(int64_t(s->items.size()));
  return invalid_argument("length: a '", self.type(), "' has none");
}

Result<Value> list(Runtime& r, const Value& self, const Arguments& a) {
  LITE_TRY(no_arguments(a, "list"));
  LITE_ASSIGN(Values items, items_of(self, &r.budget));
  return make_list(std::move(items), &r.budget);
}

Result<Value> first(Runtime& r, const Value& self, const Arguments& a) {
  LITE_TRY(no_arguments(a, "first"));
  LITE_ASSIGN(const Values items, items_of(self, &r.budget));
  return items.empty() ? Value::undefined("first: the sequence is empty") : items.front();
}

Result<Value> last(Runtime& r, const Value& self, const Arguments& a) {
  LITE_TRY(no_arguments(a, "last"));
  if (self.sequence() && self.sequence()->kind == Sequence::Kind::Iterator)
    return invalid_argument("last: an iterator has no known end; make a list of it first");
  LITE_ASSIGN(const Values items, items_of(self, &r.budget));
  return items.empty() ? Value::undefined("last: the sequence is empty") : items.back();
}

Result<Value> reverse(Runtime& r, const Value& self, const Arguments& a) {
  LITE_TRY(no_arguments(a, "reverse"));
  LITE_ASSIGN(Values items, items_of(self, &r.budget));
  std::reverse(items.begin(), items.end());
  if (!self.text()) return iterator(r, std::move(items));
  return text_value(r, join(Text(), items, &r.budget));
}

Result<Value> sort(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "sort", {"reverse", "case_sensitive", "attribute"}));
  LITE_ASSIGN(const Values items, items_of(self, &r.budget));
  LITE_ASSIGN(const Values keys, sort_keys(r, items, b[2], b.truth_of(1, false)));
  std::vector<size_t> order;
  LITE_TRY(sort_by(r, keys, b.truth_of(0, false), &order));
  Values sorted;
  for (const size_t i : order) sorted.push_back(items[i]);
  return make_list(std::move(sorted), &r.budget);
}

Result<Value> dictsort(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "dictsort", {"case_sensitive", "by", "reverse"}));
  LITE_ASSIGN(const Text by, b.text(1, "key"));
  if (!self.dict()) return invalid_argument("dictsort: got '", self.type(), "', expected a dict");
  if (by.bytes() != "key" && by.bytes() != "value")
    return invalid_argument("dictsort: by \"", by.bytes(), "\", expected key or value");
  const auto& items = self.dict()->items;
  Values what;
  for (const auto& item : items) what.push_back(by.bytes() == "key" ? item.first : item.second);
  LITE_ASSIGN(const Values keys, sort_keys(r, what, nullptr, b.truth_of(0, false)));
  std::vector<size_t> order;
  LITE_TRY(sort_by(r, keys, b.truth_of(2, false), &order));
  Values pairs;
  for (const size_t i : order) {
    LITE_ASSIGN(Value pair,
                make_sequence(Sequence::Kind::Tuple, {items[i].first, items[i].second}, &r.budget));
    pairs.push_back(std::move(pair));
  }
  return make_list(std::move(pairs), &r.budget);
}

Result<Value> items(Runtime& r, const Value& self, const Arguments& a) {
  LITE_TRY(no_arguments(a, "items"));
  if (self.is_undefined()) return iterator(r, {});
  if (!self.dict()) return invalid_argument("items: got '", self.type(), "', expected a dict");
  LITE_ASSIGN(const Value view, call_method(r, {self, "items"}, {}));
  return iterator(r, view.sequence()->items);
}

Result<Value> unique(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "unique", {"case_sensitive", "attribute"}));
  LITE_ASSIGN(const Values items, items_of(self, &r.budget));
  LITE_ASSIGN(const Values keys, sort_keys(r, items, b[1], b.truth_of(0, false)));
  std::set<std::string> seen;
  Values out;
  for (size_t i = 0; i < items.size(); ++i) {
    auto key = key_of(keys[i]);
    if (!key) return invalid_argument("unique: a '", keys[i].type(), "' cannot be compared so");
    LITE_TRY(r.budget.spend_bytes(key->size() * 8 + 64));
    if (seen.insert(std::move(*key)).second) out.push_back(items[i]);
  }
  return iterator(r, std::move(out));
}

Result<Value> sum(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "sum", {"attribute", "start"}));
  LITE_ASSIGN(const Values items, items_of(self, &r.budget));
  Value total = b[1] ? *b[1] : Value(int64_t(0));
  for (const Value& v : items) {
    Value term = v;
    if (b[0] && !b[0]->is_none()) {
      LITE_ASSIGN(term, path(r, v, *b[0], nullptr));
    }
    LITE_ASSIGN(total, arithmetic(r, "+", total, term));
  }
  return total;
}

Result<Value> extreme(Runtime& r, const Value& self, const Arguments& a, const char* name, int wanted) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, name, {"case_sensitive", "attribute"}));
  LITE_ASSIGN(const Values items, items_of(self, &r.budget));
  if (items.empty()) return Value::undefined(str(name, ": the sequence is empty"));
  LITE_ASSIGN(const Values keys, sort_keys(r, items, b[1], b.truth_of(0, false)));
  size_t best = 0;
  for (size_t i = 1; i < items.size(); ++i) {
    LITE_ASSIGN(const int sign, order(keys[i], keys[best], &r.budget));
    if (sign * wanted > 0) best = i;
  }
  return items[best];
}
Result<Value> min(Runtime& r, const Value& self, const Arguments& a) {
  return extreme(r, self, a, "min", -1);
}
Result<Value> max(Runtime& r, const Value& self, const Arguments& a) {
  return extreme(r, self, a, "max", 1);
}

// ---- of any value

Result<Value> otherwise(Runtime&, const Value& self, const Arguments& a) {
  LITE_ASSIGN(const Bound b, Bound::bind(a, "default", {"default_value", "boolean"}));
  if (!self.is_undefined() && !(b.truth_of(1, false) && !truth(self))) return self;
  return b[0] ? *b[0] : Value(Text());
}

// ---- that apply others

// The name in the first argument, and the arguments after it.
Result<std::string> shift(const Arguments& a, size_t n, std::string_view what, Arguments* rest) {
  if (a.positional.size() <= n || !a.positional[n].text())
    return invalid_argument(what, ": argument ", n + 1, ": expected a name as a string");
  rest->positional.assign(a.positional.begin() + int64_t(n) + 1, a.positional.end());
  rest->named = a.named;
  return a.positional[n].text()->bytes();
}

Result<Value> map(Runtime& r, const Value& self, const Arguments& a) {
  LITE_ASSIGN(Values items, items_of(self, &r.budget));
  if (a.positional.empty()) {
    LITE_ASSIGN(const Bound b, Bound::bind(a, "map", {"attribute", "default"}, 1));
    for (Value& v : items) {
      LITE_ASSIGN(v, path(r, v, *b[0], b[1]));
    }
    return iterator(r, std::move(items));
  }
  Arguments rest;
  LITE_ASSIGN(const std::string name, shift(a, 0, "map", &rest));
  if (!is_filter(name)) return lite::unsupported("map: filter \"", name, "\" is not supported");
  for (Value& v : items) {
    LITE_ASSIGN(v, call_filter(r, name, v, rest));
  }
  return iterator(r, std::move(items));
}

// Keeps the items, or those with the member, for which the test says `wanted`; without a test, those that are true.
Result<Value> choose(Runtime& r, const Value& self, const Arguments& a, std::string_view what, bool wanted,
                     bool of_member) {
  LITE_ASSIGN(const Values items, items_of(self, &r.budget));
  const size_t n = of_member;  // arguments before the test's name
  if (of_member && a.positional.empty())
    return invalid_argument(what, ": argument 1, the attribute, is missing");
  Arguments rest;
  std::string test;
  if (a.positional.size() > n) {
    LITE_ASSIGN(test, shift(a, n, what, &rest));
    if (!is_test(test)) return lite::unsupported(what, ": test \"", test, "\" is not supported");
  }
  Values out;
  for (const Value& v : items) {
    Value tested = v;
    if (of_member) {
      LITE_ASSIGN(tested, path(r, v, a.positional[0], nullptr));
    }
    LITE_TRY(r.budget.spend(1));
    bool yes = truth(tested);
    if (!test.empty()) {
      LITE_ASSIGN(yes, call_test(r, test, tested, rest));
    }
    if (yes == wanted) out.push_back(v);
  }
  return iterator(r, std::move(out));
}
Result<Value> select(Runtime& r, const Value& self, const Arguments& a) {
  return choose(r, self, a, "select", true, false);
}
Result<Value> reject(Runtime& r, const Value& self, const Arguments& a) {
  return choose(r, self, a, "reject", false, false);
}
Result<Value> selectattr(Runtime& r, const Value& self, const Arguments& a) {
  return choose(r, self, a, "selectattr", true, true);
}
Result<Value> rejectattr(Runtime& r, const Value& self, const Arguments& a) {
  return choose(r, self, a, "rejectattr", false, true);
}

constexpr std::pair<std::string_view, Filter> kFilters[] = {{"abs", absolute},
                                                            {"capitalize", capitalize},
                                                            {"count", length},
                                                            {"d", otherwise},
                                                            {"default", otherwise},
                                                            {"dictsort", dictsort},
                                                            {"first", first},
                                                            {"float", to_float},
                                                            {"format", format_filter},
                                                            {"indent", indent},
                                                            {"int", to_integer},
                                                            {"items", items},
                                                            {"join", join},
                                                            {"last", last},
                                                            {"length", length},
                                                            {"list", list},
                                                            {"lower", lower},
                                                            {"map", map},
                                                            {"max", max},
                                                            {"min", min},
                                                            {"reject", reject},
                                                            {"rejectattr", rejectattr},
                                                            {"replace", replace},
                                                            {"reverse", reverse},
                                                            {"round", round},
                                                            {"safe", safe},
                                                            {"select", select},
                                                            {"selectattr", selectattr},
                                                            {"sort", sort},
                                                            {"string", string},
                                                            {"sum", sum},
                                                            {"title", title},
                                                            {"tojson", tojson},
                                                            {"trim", trim},
                                                            {"unique", unique},
                                                            {"upper", upper}};

Filter filter_named(std::string_view name) {
  for (const auto& [known, filter] : kFilters)
    if (known == name) return filter;
  return nullptr;
}

}  // namespace

bool is_filter(std::string_view name) {
  return filter_named(name) != nullptr;
}

Result<Value> call_filter(Runtime& r, std::string_view name, const Value& self, const Arguments& arguments) {
  LITE_TRY(r.budget.spend(1));
  return filter_named(name)(r, self, arguments);
}

}  // namespace dsv3::jinja
