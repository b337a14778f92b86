#include "text/jinja/interpreter.h"

#include <algorithm>

namespace dsv3::jinja {

using lite::invalid_argument;
using lite::str;

Status at_line(const Status& status, int line) {
  return status.message().starts_with("line ") ? status : status.in(str("line ", line));
}

Status Interpreter::Nested::check() const {
  if (interpreter_->depth_ <= interpreter_->limits_.depth) return {};
  return invalid_argument("calls nest deeper than ", interpreter_->limits_.depth);
}

Interpreter::Interpreter(const Limits& limits, std::optional<int64_t> local_time)
    : limits_(limits), runtime_{Budget(limits.steps), {}, {}} {
  if (local_time) runtime_.now = RenderTime{*local_time};
}

Interpreter::~Interpreter() {
  // Namespaces may hold each other, or themselves.
  for (const auto& made : runtime_.namespaces) made->attributes.clear();
}

Status Interpreter::define(const Variable& variable) {
  Value value;
  if (variable.trusted && variable.value.string()) {
    value = Text::trusted(*variable.value.string());
  } else {
    LITE_ASSIGN(value, from_json(variable.value, &runtime_.budget));
  }
  const auto at = variables_.insert_or_assign(variable.name, std::move(value)).first;
  globals_.names[at->first] = at->second;
  return {};
}

Result<Text> Interpreter::run(const std::vector<Statement>& body) {
  Text out;
  out_ = &out;
  LITE_TRY(execute(body, &globals_).status());
  return out;
}

Result<Interpreter::Flow> Interpreter::execute(const std::vector<Statement>& body, Scope* scope) {
  for (const Statement& s : body) {
    const Result<Flow> flow = execute_one(s, scope);
    if (!flow.ok()) return at_line(flow.status(), s.line);
    if (*flow != Flow::Next) return *flow;
  }
  return Flow::Next;
}

Status Interpreter::output(const Value& v) {
  LITE_ASSIGN(const Text text, to_text(v, &runtime_.budget));
  written_ += int64_t(text.bytes().size());
  if (written_ > limits_.output_bytes)
    return invalid_argument("it writes more than ", limits_.output_bytes, " bytes");
  out_->append(text);
  return {};
}

Result<Interpreter::Flow> Interpreter::execute_one(const Statement& s, Scope* scope) {
  const Nested nested(this);
  LITE_TRY(nested.check());
  LITE_TRY(runtime_.budget.spend(1));
  switch (s.kind) {
    case Statement::Kind::Text: LITE_TRY(output(s.text)); return Flow::Next;
    case Statement::Kind::Output: {
      LITE_ASSIGN(const Value v, evaluate(*s.expression, scope));
      LITE_TRY(output(v));
      return Flow::Next;
    }
    case Statement::Kind::If:
      for (const Statement::Branch& branch : s.branches) {
        if (branch.condition) {
          LITE_ASSIGN(const Value v, evaluate(*branch.condition, scope));
          if (!truth(v)) continue;
        }
        return execute(branch.body, scope);
      }
      return Flow::Next;
    case Statement::Kind::For: return execute_for(s, scope);
    case Statement::Kind::Set: {
      LITE_ASSIGN(Value v, evaluate(*s.expression, scope));
      LITE_TRY(assign(s, std::move(v), scope));
      return Flow::Next;
    }
    case Statement::Kind::SetBlock: {
      LITE_ASSIGN(Text text, captured(s.body, scope));
      LITE_ASSIGN(Value v, make_text(std::move(text), &runtime_.budget));
      LITE_ASSIGN(v, filtered(*s.expression, v, scope));
      scope->names[s.targets[0]] = std::move(v);
      return Flow::Next;
    }
    case Statement::Kind::Macro: scope->names[s.name] = Value(&s); return Flow::Next;
    case Statement::Kind::With: {
      Scope inner{scope};
      for (size_t i = 0; i < s.targets.size(); ++i) {
        LITE_ASSIGN(inner.names[s.targets[i]], evaluate(*s.values[i], scope));
      }
      return execute(s.body, &inner);
    }
    case Statement::Kind::Block: {
      Scope inner{scope};
      return execute(s.body, &inner);
    }
    case Statement::Kind::Break: return Flow::Break;
    case Statement::Kind::Continue: return Flow::Continue;
  }
  return lite::internal_error("a statement of no kind");
}

Status Interpreter::unpack(const std::vector<std::string>& targets, const Value& value, Scope* scope) {
  if (targets.size() == 1) {
    scope->names[targets[0]] = value;
    return {};
  }
  LITE_ASSIGN(const Values items, items_of(value, &runtime_.budget));
  if (items.size() != targets.size())
    return invalid_argument("got ", items.size(), " values, expected ", targets.size(), " to assign");
  for (size_t i = 0; i < items.size(); ++i) scope->names[targets[i]] = items[i];
  return {};
}

Status Interpreter::assign(const Statement& s, Value value, Scope* scope) {
  if (s.attribute.empty()) return unpack(s.targets, value, scope);
  LITE_ASSIGN(const Value of, look_up(s.targets[0], scope));
  Namespace* name_space = of.name_space();
  if (!name_space)
    return invalid_argument("cannot assign to a member of '", of.type(), "', expected a namespace");
  LITE_TRY(runtime_.budget.spend(8));
  name_space->attributes[s.attribute] = std::move(value);
  return {};
}

// The text that statements write, instead of writing it.
Result<Text> Interpreter::captured(const std::vector<Statement>& body, Scope* scope) {
  Text text;
  Text* const before = std::exchange(out_, &text);
  Scope inner{scope};
  const Result<Flow> flow = execute(body, &inner);
  out_ = before;
  LITE_TRY(flow.status());
  return text;
}

Result<Interpreter::Flow> Interpreter::execute_for(const Statement& s, Scope* scope) {
  LITE_ASSIGN(const Value over, evaluate(*s.expression, scope));
  LITE_ASSIGN(Values items, items_of(over, &runtime_.budget));
  const auto loop = std::make_shared<Loop>();
  loop->depth = over.depth() + 1;
  if (loop->depth > kMaxDepth) return invalid_argument("a value nests deeper than ", kMaxDepth);
  loop->source.assign(std::make_move_iterator(items.begin()), std::make_move_iterator(items.end()));
  loops_.push_back({loop.get(), &s, scope});

  const auto walk = [&]() -> Status {
    for (;;) {
      LITE_TRY(pull(loop.get(), false));
      if (loop->ready.empty()) return {};
      if (loop->index0 >= 0) loop->previous = std::move(loop->current);
      loop->current = std::move(loop->ready.front());
      loop->ready.pop_front();
      ++loop->index0;
      Scope inner{scope};
      LITE_TRY(unpack(s.targets, loop->current, &inner));
      inner.names["loop"] = Value(loop);
      LITE_TRY(runtime_.budget.spend(8));
      LITE_ASSIGN(const Flow flow, execute(s.body, &inner));
      if (flow == Flow::Break) return {};
    }
  };
  const Status status = walk();
  loops_.pop_back();
  loop->source.clear();  // an ended loop, which the template may have kept, has no more items
  LITE_TRY(status);
  if (loop->index0 >= 0) return Flow::Next;
  Scope inner{scope};
  return execute(s.otherwise, &inner);
}

Status Interpreter::pull(Loop* loop, bool all) {
  const auto running =
      std::find_if(loops_.rbegin(), loops_.rend(), [&](const Running& l) { return l.loop == loop; });
  if (running == loops_.rend()) return {};
  const Running at = *running;
  while (!loop->source.empty() && (all || loop->ready.empty())) {
    Value item = std::move(loop->source.front());
    loop->source.pop_front();
    bool passes = true;
    if (at.statement->condition) {
      Scope inner{at.scope};
      LITE_TRY(unpack(at.statement->targets, item, &inner));
      LITE_ASSIGN(const Value v, evaluate(*at.statement->condition, &inner));
      passes = truth(v);
    }
    if (passes) loop->ready.push_back(std::move(item));
  }
  return {};
}

Result<Value> Interpreter::loop_attribute(Loop* loop, const std::string& name) {
  if (name == "index0") return Value(loop->index0);
  if (name == "index") return Value(loop->index0 + 1);
  if (name == "first") return Value(loop->index0 == 0);
  if (name == "previtem") return loop->previous;
  if (name == "depth") return Value(int64_t(1));
  if (name == "depth0") return Value(int64_t(0));
  if (name == "last" || name == "nextitem") {
    LITE_TRY(pull(loop, false));
    if (name == "last") return Value(loop->ready.empty());
    return loop->ready.empty() ? Value::undefined("there is no next item") : loop->ready.front();
  }
  if (name == "length" || name == "revindex" || name == "revindex0") {
    LITE_TRY(pull(loop, true));
    const int64_t after = int64_t(loop->ready.size());
    if (name == "length") return Value(loop->index0 + 1 + after);
    return Value(after + (name == "revindex" ? 1 : 0));
  }
  return attribute(runtime_, Value(loop->shared_from_this()), name);
}

Result<Value> Interpreter::call_macro(const Statement& macro, const Arguments& arguments) {
  const size_t n = macro.targets.size();
  if (arguments.positional.size() > n)
    return invalid_argument("macro ", macro.name, ": got ", arguments.positional.size(),
                            " arguments, at most ", n);
  Scope scope{&globals_};
  for (size_t i = 0; i < arguments.positional.size(); ++i)
    scope.names[macro.targets[i]] = arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto at = std::find(macro.targets.begin(), macro.targets.end(), name);
    if (at == macro.targets.end())
      return invalid_argument("macro ", macro.name, ": no parameter is named \"", name, "\"");
    if (!scope.names.try_emplace(*at, value).second)
      return invalid_argument("macro ", macro.name, ": \"", name, "\" is given twice");
  }
  const size_t first_default = n - macro.values.size();
  for (size_t i = 0; i < n; ++i) {
    if (scope.names.count(macro.targets[i])) continue;
    Value value = Value::undefined(str("parameter '", macro.targets[i], "' was not provided"));
    if (i >= first_default) {
      LITE_ASSIGN(value, evaluate(*macro.values[i - first_default], &scope));
    }
    scope.names[macro.targets[i]] = std::move(value);
  }
  LITE_ASSIGN(Text text, captured(macro.body, &scope));
  return make_text(std::move(text), &runtime_.budget);
}

}  // namespace dsv3::jinja
