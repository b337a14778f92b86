// Members and parts of values, and the arguments of calls.
#include <algorithm>

#include "text/jinja/runtime.h"

namespace dsv3::jinja {

using lite::invalid_argument;
using lite::str;

Result<Bound> Bound::bind(const Arguments& arguments, std::string_view what,
                          std::initializer_list<const char*> parameters, size_t required) {
  Bound out;
  out.what_ = what;
  out.names_ = parameters;
  out.values_.resize(parameters.size());
  if (arguments.positional.size() > parameters.size())
    return invalid_argument(what, ": got ", arguments.positional.size(), " arguments, at most ",
                            parameters.size());
  for (size_t i = 0; i < arguments.positional.size(); ++i) out.values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto at = std::find(parameters.begin(), parameters.end(), name);
    if (at == parameters.end()) return invalid_argument(what, ": no parameter is named \"", name, "\"");
    const size_t i = size_t(at - parameters.begin());
    if (out.values_[i]) return invalid_argument(what, ": \"", name, "\" is given twice");
    out.values_[i] = &value;
  }
  for (size_t i = 0; i < required; ++i)
    if (!out.values_[i]) return invalid_argument(what, ": \"", out.names_[i], "\" is missing");
  return out;
}

bool Bound::truth_of(size_t i, bool otherwise) const {
  return values_[i] ? truth(*values_[i]) : otherwise;
}

Result<int64_t> Bound::integer(size_t i, int64_t otherwise) const {
  if (!values_[i]) return otherwise;
  if (const auto v = values_[i]->whole()) return *v;
  return invalid_argument(what_, ": ", names_[i], ": got '", values_[i]->type(), "', expected an integer");
}

Result<Text> Bound::text(size_t i, std::string_view otherwise) const {
  if (!values_[i]) return Text::trusted(otherwise);
  if (const Text* t = values_[i]->text()) return *t;
  return invalid_argument(what_, ": ", names_[i], ": got '", values_[i]->type(), "', expected a string");
}

namespace {

bool holds(std::initializer_list<std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The methods that a value of this type has.
bool has_method(const Value& of, std::string_view name) {
  if (of.dict()) return holds({"get", "items", "keys", "values", "copy"}, name);
  if (of.sequence()) return of.sequence()->kind <= Sequence::Kind::Range && holds({"index", "count"}, name);
  if (of.loop()) return holds({"cycle", "changed"}, name);
  return of.text() && is_method(name) &&
         !holds({"get", "items", "keys", "values", "copy", "cycle", "changed"}, name);
}

Value method(const Value& self, const std::string& name) {
  return std::make_shared<const Method>(Method{self, name});
}

Value no_member(const Value& of, const std::string& name) {
  return Value::undefined(str("'", of.type(), "' has no attribute '", name, "'"));
}

}  // namespace

Result<Value> attribute(Runtime& r, const Value& of, const std::string& name) {
  LITE_TRY(r.budget.spend(1));
  if (const Undefined* u = of.as_undefined()) return invalid_argument(*u->what);
  if (has_method(of, name)) {
    if (of.depth() >= kMaxDepth) return invalid_argument("a value nests deeper than ", kMaxDepth);
    return method(of, name);
  }
  if (const Dict* d = of.dict()) {
    const Value* found = d->find(Text::typed(name));
    return found ? *found : no_member(of, name);
  }
  if (const Namespace* n = of.name_space()) {
    const auto found = n->attributes.find(name);
    return found == n->attributes.end() ? no_member(of, name) : found->second;
  }
  return no_member(of, name);
}

Result<Value> item(Runtime& r, const Value& of, const Value& key) {
  LITE_TRY(r.budget.spend(1));
  if (const Undefined* u = of.as_undefined()) return invalid_argument(*u->what);
  if (const Dict* d = of.dict()) {
    if (key.text()) LITE_TRY(r.budget.spend_bytes(key.text()->bytes().size()));
    if (const Value* found = d->find(key)) return *found;
  }
  if (key.text()) return attribute(r, of, key.text()->bytes());
  const auto index = key.whole();
  const Sequence* s = of.sequence();
  const bool indexable = of.text() || (s && s->kind <= Sequence::Kind::Range);
  if (!index || !indexable)
    return Value::undefined(str("'", of.type(), "' has no element of this key, a '", key.type(), "'"));
  const int64_t n = s ? int64_t(s->items.size()) : of.text()->length();
  const int64_t i = *index < 0 ? *index + n : *index;
  if (i < 0 || i >= n) return Value::undefined(str(of.type(), " object has no element ", *index));
  if (s) return s->items[size_t(i)];
  if (!of.text()->is_ascii()) LITE_TRY(r.budget.spend_bytes(of.text()->bytes().size()));
  const size_t begin = of.text()->byte_of(i);
  size_t end = begin + 1;
  while (end < of.text()->bytes().size() && (uint8_t(of.text()->bytes()[end]) & 0xC0) == 0x80) ++end;
  return make_text(of.text()->sub(begin, end), &r.budget);
}

namespace {

// A bound of a slice; `otherwise` where none is given.
Result<int64_t> slice_bound(const Value* v, int64_t otherwise) {
  if (!v || v->is_none()) return otherwise;
  if (const auto i = v->whole()) return *i;
  return invalid_argument("a slice's bound: got '", v->type(), "', expected an integer or none");
}

}  // namespace

Result<Value> slice(Runtime& r, const Value& of, const Value* begin, const Value* end, const Value* step) {
  if (const Undefined* u = of.as_undefined()) return invalid_argument(*u->what);
  const Sequence* s = of.sequence();
  if (!of.text() && !(s && s->kind <= Sequence::Kind::Range))
    return invalid_argument("a '", of.type(), "' cannot be sliced");
  const int64_t n = s ? int64_t(s->items.size()) : of.text()->length();
  LITE_ASSIGN(int64_t by, slice_bound(step, 1));
  if (by == 0) return invalid_argument("a slice's step is 0");
  by = std::clamp(by, -n - 1, n + 1);  // a larger one reaches no more
  // Python's rule: negative bounds count from the end, then both are clamped to where the walk can be.
  const int64_t lowest = by > 0 ? 0 : -1, highest = by > 0 ? n : n - 1;
  const auto place = [&](const Value* v, int64_t otherwise) -> Result<int64_t> {
    if (!v || v->is_none()) return otherwise;
    LITE_ASSIGN(int64_t i, slice_bound(v, 0));
    if (i < 0) i = i < -n ? -1 - n : i + n;
    return std::clamp(i, lowest, highest);
  };
  LITE_ASSIGN(const int64_t first, place(begin, by > 0 ? lowest : highest));
  LITE_ASSIGN(const int64_t last, place(end, by > 0 ? highest : lowest));

  if (const Text* t = of.text()) {
    LITE_TRY(r.budget.spend_bytes(t->bytes().size()));
    if (by == 1) {
      if (first >= last) return Value(Text());
      return make_text(t->sub(t->byte_of(first), t->byte_of(last)), &r.budget);
    }
    LITE_ASSIGN(const Values characters, items_of(of, &r.budget));
    Text out;
    for (int64_t i = first; by > 0 ? i < last : i > last; i += by) out.append(*characters[size_t(i)].text());
    return make_text(std::move(out), &r.budget);
  }
  LITE_TRY(r.budget.spend(std::abs(last - first) / std::abs(by)));
  Values items;
  for (int64_t i = first; by > 0 ? i < last : i > last; i += by) items.push_back(s->items[size_t(i)]);
  return make_sequence(s->kind, std::move(items), &r.budget);
}

}  // namespace dsv3::jinja
