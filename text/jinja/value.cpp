#include "text/jinja/value.h"

#include <algorithm>
#include <cmath>

namespace dsv3::jinja {

using lite::invalid_argument;

namespace {

constexpr int64_t kObject = 16;  // units for the memory of an object itself

int depth_of(const Values& items) {
  int depth = 0;
  for (const Value& v : items) depth = std::max(depth, v.depth());
  return depth + 1;
}

Status check_depth(int depth) {
  if (depth <= kMaxDepth) return {};
  return invalid_argument("a value nests deeper than ", kMaxDepth);
}

bool is_role(std::string_view text) {
  return text == "system" || text == "user" || text == "assistant" || text == "tool" || text == "developer";
}

}  // namespace

std::optional<std::string> key_of(const Value& key) {
  if (const Text* t = key.text()) return "s" + t->bytes();
  if (const auto i = key.whole()) return "i" + std::to_string(*i);
  if (const double* d = key.real()) {
    if (*d == std::floor(*d) && std::fabs(*d) < 9e18) return "i" + std::to_string(int64_t(*d));
    return "d" + std::to_string(std::hash<double>()(*d));
  }
  if (const std::string* digits = key.wide_integer()) return "i" + *digits;
  if (key.is_none()) return "n";
  return std::nullopt;
}

Status Budget::spend(int64_t units) {
  left_ -= std::min(units, left_ + 1);
  if (left_ >= 0) return {};
  return invalid_argument("it takes more than ", all_, " steps");
}

const Value* Dict::find(const Value& key) const {
  const auto name = key_of(key);
  if (!name) return nullptr;
  const auto found = index.find(*name);
  return found == index.end() ? nullptr : &items[found->second].second;
}

Value Value::undefined(std::string what) {
  return Undefined{std::make_shared<const std::string>(std::move(what))};
}

std::optional<int64_t> Value::whole() const {
  if (const int64_t* i = integer()) return *i;
  if (const bool* b = boolean()) return int64_t(*b);
  return std::nullopt;
}

std::optional<double> Value::number() const {
  if (const double* d = real()) return *d;
  if (const auto i = whole()) return double(*i);
  return std::nullopt;
}

int Value::depth() const {
  if (const Sequence* s = sequence()) return s->depth;
  if (const Dict* d = dict()) return d->depth;
  if (const Loop* l = loop()) return l->depth;
  if (const Method* m = method()) return m->self.depth() + 1;
  return 0;  // a namespace breaks the chain: the runtime owns them all
}

const char* Value::type() const {
  if (const Sequence* s = sequence()) {
    static const char* const kinds[] = {"list", "tuple", "range", "dict view", "iterator"};
    return kinds[int(s->kind)];
  }
  static const char* const names[] = {"Undefined", "NoneType", "bool",     "int",       "float",
                                      "str",       "list",     "dict",     "Namespace", "LoopContext",
                                      "method",    "Macro",    "function", "int"};
  return names[v_.index()];
}

const void* Value::identity() const {
  if (const Text* t = text()) return t;
  if (const Sequence* s = sequence()) return s;
  if (const Dict* d = dict()) return d;
  if (const Namespace* n = name_space()) return n;
  if (const Loop* l = loop()) return l;
  return nullptr;
}

Result<Value> make_sequence(Sequence::Kind kind, Values items, Budget* budget) {
  LITE_TRY(budget->spend(kObject + 4 * int64_t(items.size())));
  const int depth = depth_of(items);
  LITE_TRY(check_depth(depth));
  return Value(std::make_shared<const Sequence>(Sequence{kind, std::move(items), depth}));
}

Result<Value> make_list(Values items, Budget* budget) {
  return make_sequence(Sequence::Kind::List, std::move(items), budget);
}

Result<Value> make_dict(std::vector<std::pair<Value, Value>> items, Budget* budget) {
  LITE_TRY(budget->spend(kObject + 32 * int64_t(items.size())));
  Dict dict;
  for (auto& [key, value] : items) {
    auto name = key_of(key);
    if (!name) return invalid_argument("a ", key.type(), " cannot be a key of a dict");
    LITE_TRY(budget->spend_bytes(name->size()));
    const auto [at, fresh] = dict.index.try_emplace(std::move(*name), dict.items.size());
    dict.depth = std::max(dict.depth, value.depth() + 1);
    if (fresh)
      dict.items.emplace_back(std::move(key), std::move(value));
    else
      dict.items[at->second].second = std::move(value);
  }
  LITE_TRY(check_depth(dict.depth));
  return Value(std::make_shared<const Dict>(std::move(dict)));
}

Result<Value> make_text(Text text, Budget* budget) {
  LITE_TRY(budget->spend(kObject + int64_t(text.bytes().size() / 4 + text.trusted_spans().size() * 4)));
  return Value(std::move(text));
}

Result<Value> from_json(const lite::Json& json, Budget* budget) {
  if (const bool* v = json.boolean()) return Value(*v);
  if (const int64_t* v = json.integer()) return Value(*v);
  if (const std::string* v = json.wide_integer()) return Value(std::make_shared<const std::string>(*v));
  if (const std::string* v = json.string()) return Value(Text::typed(*v));
  if (const lite::Json::Array* list = json.array()) {
    Values items;
    for (const lite::Json& item : *list) {
      LITE_ASSIGN(Value value, from_json(item, budget));
      items.push_back(std::move(value));
    }
    return make_list(std::move(items), budget);
  }
  if (const lite::Json::Object* members = json.object()) {
    std::vector<std::pair<Value, Value>> items;
    for (const auto& [name, member] : *members) {
      LITE_ASSIGN(Value value, from_json(member, budget));
      if (name == "role" && value.text() && is_role(value.text()->bytes()))
        value = Text::trusted(value.text()->bytes());
      items.emplace_back(Text::typed(name), std::move(value));
    }
    return make_dict(std::move(items), budget);
  }
  if (double v; json.number(&v)) return Value(v);
  return Value();
}

bool truth(const Value& v) {
  if (v.is_undefined() || v.is_none()) return false;
  if (const auto n = v.number()) return *n != 0;  // a wide integer is none and never 0
  if (const Text* t = v.text()) return !t->bytes().empty();
  if (const Sequence* s = v.sequence()) return s->kind == Sequence::Kind::Iterator || !s->items.empty();
  if (const Dict* d = v.dict()) return !d->items.empty();
  return true;
}

namespace {

// Exactly, as Python compares an int with a float.
int order_numbers(const Value& a, const Value& b) {
  const auto i = a.whole(), j = b.whole();
  if (i && j) return *i < *j ? -1 : *i > *j;
  const long double x = i ? (long double)(*i) : *a.real(), y = j ? (long double)(*j) : *b.real();
  return x < y ? -1 : x > y;
}

bool is_nan(const Value& v) {
  return v.real() && std::isnan(*v.real());
}

Result<bool> equal_sequences(const Values& a, const Values& b, Budget* budget) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    LITE_ASSIGN(const bool same, equal(a[i], b[i], budget));
    if (!same) return false;
  }
  return true;
}

Result<bool> equal_dicts(const Dict& a, const Dict& b, Budget* budget) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [name, at] : a.index) {
    const auto found = b.index.find(name);
    if (found == b.index.end()) return false;
    LITE_ASSIGN(const bool same, equal(a.items[at].second, b.items[found->second].second, budget));
    if (!same) return false;
  }
  return true;
}

}  // namespace

Result<bool> equal(const Value& a, const Value& b, Budget* budget) {
  LITE_TRY(budget->spend(1));
  if (a.number() && b.number()) return !is_nan(a) && !is_nan(b) && order_numbers(a, b) == 0;
  if (a.text() && b.text()) {
    LITE_TRY(budget->spend_bytes(std::min(a.text()->bytes().size(), b.text()->bytes().size())));
    return a.text()->bytes() == b.text()->bytes();
  }
  if (const Sequence* s = a.sequence(), *t = b.sequence(); s && t) {
    if (s == t) return true;
    if (s->kind != t->kind || s->kind >= Sequence::Kind::View) return false;
    return equal_sequences(s->items, t->items, budget);
  }
  if (a.dict() && b.dict()) return equal_dicts(*a.dict(), *b.dict(), budget);
  if (const std::string* s = a.wide_integer(), *t = b.wide_integer(); s && t) {
    LITE_TRY(budget->spend_bytes(std::min(s->size(), t->size())));
    return *s == *t;
  }
  if (a.is_none() || a.is_undefined())
    return a.is_none() == b.is_none() && a.is_undefined() == b.is_undefined();
  return a.identity() && a.identity() == b.identity();
}

Result<int> order(const Value& a, const Value& b, Budget* budget) {
  LITE_TRY(budget->spend(1));
  if (a.number() && b.number()) return order_numbers(a, b);
  if (a.text() && b.text()) {
    LITE_TRY(budget->spend_bytes(std::min(a.text()->bytes().size(), b.text()->bytes().size())));
    return a.text()->bytes().compare(b.text()->bytes());  // UTF-8 sorts as its code points
  }
  const Sequence *s = a.sequence(), *t = b.sequence();
  if (s && t && s->kind == t->kind && s->kind <= Sequence::Kind::Tuple) {
    for (size_t i = 0; i < std::min(s->items.size(), t->items.size()); ++i) {
      LITE_ASSIGN(const bool same, equal(s->items[i], t->items[i], budget));
      if (!same) return order(s->items[i], t->items[i], budget);
    }
    return s->items.size() < t->items.size() ? -1 : s->items.size() > t->items.size();
  }
  if (const Undefined* u = a.is_undefined() ? a.as_undefined() : b.as_undefined())
    return invalid_argument(*u->what);
  return invalid_argument("'", a.type(), "' and '", b.type(), "' have no order");
}

Result<Values> items_of(const Value& v, Budget* budget) {
  if (v.is_undefined()) return Values();
  if (const Sequence* s = v.sequence()) {
    LITE_TRY(budget->spend(4 * int64_t(s->items.size()) + 1));
    if (s->kind == Sequence::Kind::Iterator) return std::move(s->items);
    return s->items;
  }
  Values items;
  if (const Dict* d = v.dict()) {
    LITE_TRY(budget->spend(4 * int64_t(d->items.size()) + 1));
    for (const auto& item : d->items) items.push_back(item.first);
    return items;
  }
  if (const Text* t = v.text()) {
    LITE_TRY(budget->spend(kObject * t->length() + 1));
    for (size_t at = 0; at < t->bytes().size();) {
      size_t end = at + 1;
      while (end < t->bytes().size() && (uint8_t(t->bytes()[end]) & 0xC0) == 0x80) ++end;
      items.push_back(t->sub(at, end));
      at = end;
    }
    return items;
  }
  return invalid_argument("'", v.type(), "' has no items to walk through");
}

}  // namespace dsv3::jinja
