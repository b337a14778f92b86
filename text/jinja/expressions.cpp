// The interpreter's expressions.
#include "text/jinja/interpreter.h"

namespace dsv3::jinja {

using lite::invalid_argument;
using lite::str;

Result<Value> Interpreter::evaluate(const Expression& e, Scope* scope) {
  const Nested nested(this);
  Status status = nested.check();
  if (status.ok()) status = runtime_.budget.spend(1);
  if (!status.ok()) return at_line(status, e.line);
  Result<Value> v = evaluate_kind(e, scope);
  return v.ok() ? std::move(v) : at_line(v.status(), e.line);
}

Result<Value> Interpreter::evaluate_kind(const Expression& e, Scope* scope) {
  using Kind = Expression::Kind;
  switch (e.kind) {
    case Kind::Constant: return e.value;
    case Kind::Name: return look_up(e.name, scope);
    case Kind::List:
    case Kind::Tuple:
    case Kind::Dict: return evaluate_container(e, scope);
    case Kind::Attribute: return evaluate_attribute(e, scope);
    case Kind::Item: {
      LITE_ASSIGN(const Value of, evaluate(*e.args[0], scope));
      LITE_ASSIGN(const Value key, evaluate(*e.args[1], scope));
      return item(runtime_, of, key);
    }
    case Kind::Slice: return evaluate_slice(e, scope);
    case Kind::Call: return evaluate_call(e, scope);
    case Kind::Filter: {
      LITE_ASSIGN(const Value of, evaluate(*e.args[0], scope));
      LITE_ASSIGN(const Arguments arguments, evaluate_arguments(e, scope));
      return call_filter(runtime_, e.name, of, arguments);
    }
    case Kind::Test: {
      LITE_ASSIGN(const Value of, evaluate(*e.args[0], scope));
      LITE_ASSIGN(const Arguments arguments, evaluate_arguments(e, scope));
      LITE_ASSIGN(const bool is, call_test(runtime_, e.name, of, arguments));
      return Value(is);
    }
    case Kind::Not: {
      LITE_ASSIGN(const Value v, evaluate(*e.args[0], scope));
      return Value(!truth(v));
    }
    case Kind::Negative:
    case Kind::Positive: {
      LITE_ASSIGN(const Value v, evaluate(*e.args[0], scope));
      if (v.real()) return Value(e.kind == Kind::Negative ? -*v.real() : *v.real());
      return arithmetic(runtime_, e.kind == Kind::Negative ? "-" : "+", int64_t(0), v);
    }
    case Kind::Arithmetic: {
      LITE_ASSIGN(const Value a, evaluate(*e.args[0], scope));
      LITE_ASSIGN(const Value b, evaluate(*e.args[1], scope));
      return arithmetic(runtime_, e.name, a, b);
    }
    case Kind::Concat: return evaluate_concat(e, scope);
    case Kind::Compare: return evaluate_compare(e, scope);
    case Kind::And:
    case Kind::Or: {
      LITE_ASSIGN(Value v, evaluate(*e.args[0], scope));
      if (truth(v) == (e.kind == Kind::Or)) return v;
      return evaluate(*e.args[1], scope);
    }
    case Kind::Conditional: {
      LITE_ASSIGN(const Value condition, evaluate(*e.args[1], scope));
      if (truth(condition)) return evaluate(*e.args[0], scope);
      if (e.args[2]) return evaluate(*e.args[2], scope);
      return Value::undefined("an \"if\" without \"else\" was false");
    }
  }
  return lite::internal_error("an expression of no kind");
}

Result<Value> Interpreter::look_up(const std::string& name, const Scope* scope) {
  for (; scope; scope = scope->outer) {
    const auto found = scope->names.find(name);
    if (found != scope->names.end()) return found->second;
  }
  if (const auto function = function_named(name)) return Value(*function);
  return Value::undefined(str("'", name, "' is undefined"));
}

Result<Value> Interpreter::evaluate_attribute(const Expression& e, Scope* scope) {
  LITE_ASSIGN(const Value of, evaluate(*e.args[0], scope));
  return of.loop() ? loop_attribute(of.loop(), e.name) : attribute(runtime_, of, e.name);
}

Result<Value> Interpreter::filtered(const Expression& e, const Value& v, Scope* scope) {
  if (e.kind != Expression::Kind::Filter) return v;
  LITE_ASSIGN(const Value of, filtered(*e.args[0], v, scope));
  LITE_ASSIGN(const Arguments arguments, evaluate_arguments(e, scope));
  return call_filter(runtime_, e.name, of, arguments);
}

Result<Value> Interpreter::evaluate_slice(const Expression& e, Scope* scope) {
  LITE_ASSIGN(const Value of, evaluate(*e.args[0], scope));
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i)
    if (e.args[i + 1]) {
      LITE_ASSIGN(bounds[i], evaluate(*e.args[i + 1], scope));
    }
  return slice(runtime_, of, &bounds[0], &bounds[1], &bounds[2]);
}

Result<Arguments> Interpreter::evaluate_arguments(const Expression& e, Scope* scope) {
  Arguments out;
  const size_t first_named = e.args.size() - e.names.size();
  for (size_t i = 1; i < e.args.size(); ++i) {
    LITE_ASSIGN(Value v, evaluate(*e.args[i], scope));
    if (i < first_named)
      out.positional.push_back(std::move(v));
    else
      out.named.emplace_back(e.names[i - first_named], std::move(v));
  }
  return out;
}

Result<Value> Interpreter::evaluate_call(const Expression& e, Scope* scope) {
  LITE_ASSIGN(const Value callee, evaluate(*e.args[0], scope));
  LITE_ASSIGN(const Arguments arguments, evaluate_arguments(e, scope));
  if (const Undefined* u = callee.as_undefined()) return invalid_argument(*u->what);
  if (callee.macro()) return call_macro(*callee.macro(), arguments);
  if (callee.method()) return call_method(runtime_, *callee.method(), arguments);
  if (callee.function()) return call_function(runtime_, *callee.function(), arguments);
  return invalid_argument("a '", callee.type(), "' cannot be called");
}

Result<Value> Interpreter::evaluate_container(const Expression& e, Scope* scope) {
  Values items;
  for (const ExpressionPtr& arg : e.args) {
    LITE_ASSIGN(Value v, evaluate(*arg, scope));
    items.push_back(std::move(v));
  }
  if (e.kind == Expression::Kind::List) return make_list(std::move(items), &runtime_.budget);
  if (e.kind == Expression::Kind::Tuple)
    return make_sequence(Sequence::Kind::Tuple, std::move(items), &runtime_.budget);
  std::vector<std::pair<Value, Value>> members;
  for (size_t i = 0; i < items.size(); i += 2)
    members.emplace_back(std::move(items[i]), std::move(items[i + 1]));
  return make_dict(std::move(members), &runtime_.budget);
}

Result<Value> Interpreter::evaluate_concat(const Expression& e, Scope* scope) {
  Text out;
  for (const ExpressionPtr& arg : e.args) {
    LITE_ASSIGN(const Value v, evaluate(*arg, scope));
    LITE_ASSIGN(const Text text, to_text(v, &runtime_.budget));
    out.append(text);
  }
  return make_text(std::move(out), &runtime_.budget);
}

Result<Value> Interpreter::evaluate_compare(const Expression& e, Scope* scope) {
  LITE_ASSIGN(Value left, evaluate(*e.args[0], scope));
  for (size_t i = 0; i < e.names.size(); ++i) {
    LITE_ASSIGN(Value right, evaluate(*e.args[i + 1], scope));
    LITE_ASSIGN(const bool holds, compare(runtime_, e.names[i], left, right));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

}  // namespace dsv3::jinja
