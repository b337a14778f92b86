// The tests: x is name(arguments).
#include "text/jinja/runtime.h"
#include "text/jinja/strings.h"

namespace dsv3::jinja {

using lite::invalid_argument;

namespace {

using Test = Result<bool> (*)(Runtime&, const Value& self, const Value* argument);

bool is_container(const Value& v) {
  return v.sequence() || v.dict() || v.text();
}

Result<int64_t> remainder(const Value& v, int64_t by) {
  if (const Undefined* u = v.as_undefined()) return invalid_argument(*u->what);
  const auto i = v.whole();
  if (!i || by == 0) return invalid_argument("a division test: expected integers, and not by 0");
  return by == -1 ? 0 : *i % by;
}

template <bool upper>
Result<bool> is_case(Runtime& r, const Value& self, const Value*) {
  LITE_ASSIGN(const Text text, to_text(self, &r.budget));
  return is_all_case(text.bytes(), upper);
}

// Comparison operators, which are tests with one argument: the operator; "" for none.
std::string_view comparison(std::string_view name) {
  static constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"eq", "=="},      {"equalto", "=="}, {"==", "=="}, {"ne", "!="},         {"!=", "!="}, {"lt", "<"},
      {"lessthan", "<"}, {"<", "<"},        {"gt", ">"},  {"greaterthan", ">"}, {">", ">"},   {"le", "<="},
      {"<=", "<="},      {"ge", ">="},      {">=", ">="}, {"in", "in"}};
  for (const auto& entry : kNames)
    if (entry.first == name) return entry.second;
  return "";
}

constexpr std::pair<std::string_view, Test> kTests[] = {
    {"boolean", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.boolean() != nullptr; }},
    {"callable",
     [](Runtime&, const Value& v, const Value*) -> Result<bool> {
       return v.macro() || v.method() || v.function() || v.loop();
     }},
    {"defined", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return !v.is_undefined(); }},
    {"undefined", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.is_undefined(); }},
    {"even",
     [](Runtime&, const Value& v, const Value*) -> Result<bool> {
       LITE_ASSIGN(const int64_t rest, remainder(v, 2));
       return rest == 0;
     }},
    {"odd",
     [](Runtime&, const Value& v, const Value*) -> Result<bool> {
       LITE_ASSIGN(const int64_t rest, remainder(v, 2));
       return rest != 0;
     }},
    {"false",
     [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.boolean() && !*v.boolean(); }},
    {"true",
     [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.boolean() && *v.boolean(); }},
    {"float", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.real() != nullptr; }},
    {"integer", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.integer() || v.wide_integer(); }},
    {"number", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.number() || v.wide_integer(); }},
    {"iterable",
     [](Runtime&, const Value& v, const Value*) -> Result<bool> {
       return is_container(v) || v.is_undefined() || v.loop();
     }},
    {"sequence",
     [](Runtime&, const Value& v, const Value*) -> Result<bool> {
       const Sequence* s = v.sequence();
       return v.is_undefined() || (is_container(v) && !(s && s->kind >= Sequence::Kind::View));
     }},
    {"lower", is_case<false>},
    {"upper", is_case<true>},
    {"mapping", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.dict() != nullptr; }},
    {"none", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.is_none(); }},
    {"string", [](Runtime&, const Value& v, const Value*) -> Result<bool> { return v.text() != nullptr; }},
    {"divisibleby",
     [](Runtime&, const Value& v, const Value* by) -> Result<bool> {
       LITE_ASSIGN(const int64_t rest, remainder(v, by->whole().value_or(0)));
       return rest == 0;
     }},
    {"sameas",
     [](Runtime&, const Value& v, const Value* other) -> Result<bool> {
       if (v.boolean() && other->boolean()) return *v.boolean() == *other->boolean();
       if (v.integer() && other->integer()) return *v.integer() == *other->integer();
       return (v.is_none() && other->is_none()) || (v.identity() && v.identity() == other->identity());
     }}};

bool takes_argument(std::string_view name) {
  return name == "divisibleby" || name == "sameas" || !comparison(name).empty();
}

}  // namespace

bool is_test(std::string_view name) {
  for (const auto& entry : kTests)
    if (entry.first == name) return true;
  return !comparison(name).empty();
}

Result<bool> call_test(Runtime& r, std::string_view name, const Value& self, const Arguments& arguments) {
  LITE_TRY(r.budget.spend(1));
  const size_t n = takes_argument(name);
  if (arguments.positional.size() != n || !arguments.named.empty())
    return invalid_argument("test \"", name, "\": got ", arguments.positional.size() + arguments.named.size(),
                            " arguments, expected ", n);
  const Value* argument = n ? &arguments.positional[0] : nullptr;
  if (const std::string_view op = comparison(name); !op.empty()) return compare(r, op, self, *argument);
  for (const auto& entry : kTests)
    if (entry.first == name) return entry.second(r, self, argument);
  return lite::internal_error("test \"", name, "\"");
}

}  // namespace dsv3::jinja
