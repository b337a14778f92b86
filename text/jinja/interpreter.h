// Runs the statements of a template.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/runtime.h"
#include "text/jinja/template.h"

namespace dsv3::jinja {

// The error with the line, unless something inside has said it already.
Status at_line(const Status& status, int line);

class Interpreter {
 public:
  Interpreter(const Limits& limits, std::optional<int64_t> local_time);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Status define(const Variable& variable);
  Result<Text> run(const std::vector<Statement>& body);

 private:
  // The names of one scope; a name not in it is looked for in the scope around it.
  struct Scope {
    Scope* outer = nullptr;
    std::unordered_map<std::string_view, Value> names = {};
  };
  enum class Flow { Next, Break, Continue };
  // Counts how deep evaluation is, which is also how deep our own stack is.
  class Nested {
   public:
    explicit Nested(Interpreter* i) : interpreter_(i) { ++interpreter_->depth_; }
    ~Nested() { --interpreter_->depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;
    Status check() const;

   private:
    Interpreter* interpreter_;
  };

  // ---- statements (interpreter.cpp)
  Result<Flow> execute(const std::vector<Statement>& body, Scope* scope);
  Result<Flow> execute_one(const Statement& s, Scope* scope);
  Status output(const Value& v);
  Result<Flow> execute_for(const Statement& s, Scope* scope);
  Status assign(const Statement& s, Value value, Scope* scope);
  Status unpack(const std::vector<std::string>& targets, const Value& value, Scope* scope);
  Result<Text> captured(const std::vector<Statement>& body, Scope* scope);
  Result<Value> call_macro(const Statement& macro, const Arguments& arguments);

  // Moves items that pass the loop's condition to loop->ready: one if there is none, or all.
  Status pull(Loop* loop, bool all);
  Result<Value> loop_attribute(Loop* loop, const std::string& name);

  // ---- expressions (expressions.cpp)
  Result<Value> evaluate(const Expression& e, Scope* scope);
  Result<Value> evaluate_kind(const Expression& e, Scope* scope);
  Result<Value> look_up(const std::string& name, const Scope* scope);
  Result<Value> evaluate_attribute(const Expression& e, Scope* scope);
  // The filters of `e`, whose innermost operand is replaced by `v`.
  Result<Value> filtered(const Expression& e, const Value& v, Scope* scope);
  Result<Value> evaluate_slice(const Expression& e, Scope* scope);
  Result<Value> evaluate_call(const Expression& e, Scope* scope);
  Result<Value> evaluate_container(const Expression& e, Scope* scope);
  Result<Value> evaluate_concat(const Expression& e, Scope* scope);
  Result<Value> evaluate_compare(const Expression& e, Scope* scope);
  // All operands but the first, and their names.
  Result<Arguments> evaluate_arguments(const Expression& e, Scope* scope);

  // What pull() needs of a running loop.
  struct Running {
    Loop* loop;
    const Statement* statement;
    Scope* scope;  // around the loop
  };

  const Limits limits_;
  Runtime runtime_;
  std::unordered_map<std::string, Value> variables_;  // their names outlive the scopes
  Scope globals_;
  std::vector<Running> loops_;
  Text* out_ = nullptr;
  int64_t written_ = 0;  // bytes of output, captured ones included
  int depth_ = 0;
};

}  // namespace dsv3::jinja
