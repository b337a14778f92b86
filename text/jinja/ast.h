// A parsed template.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/jinja/value.h"

namespace dsv3::jinja {

struct Expression {
  enum class Kind {
    Constant,    // value
    Name,        // name
    List,        // args
    Tuple,       // args
    Dict,        // args: key, value, key, value, ...
    Attribute,   // args[0].name
    Item,        // args[0][args[1]]
    Slice,       // args[0][args[1]:args[2]:args[3]]; null where left out
    Call,        // args[0](args[1], ...)
    Filter,      // args[0] | name(args[1], ...)
    Test,        // args[0] is name(args[1], ...)
    Not,         // args[0]
    Negative,    // -args[0]
    Positive,    // +args[0]
    Arithmetic,  // args[0] name args[1]
    Concat,      // args joined by ~
    Compare,     // args[0] names[0] args[1] names[1] args[2] ...
    And,
    Or,           // args[0], args[1]
    Conditional,  // args[0] if args[1] else args[2], which may be null
  };
  Kind kind = Kind::Constant;
  int line = 0;
  int depth = 1;  // expressions nested in this one, itself included
  std::string name;
  Value value;
  std::vector<std::unique_ptr<Expression>> args;
  // Compare: the operators. Call, Filter, Test: the names of the last arguments, which are given by name.
  std::vector<std::string> names;
};
using ExpressionPtr = std::unique_ptr<Expression>;

struct Statement {
  enum class Kind {
    Text,      // text
    Output,    // expression
    If,        // branches
    For,       // targets in expression if condition: body, else otherwise
    Set,       // targets = expression; or target.attribute = expression
    SetBlock,  // targets[0] = body through filters
    Macro,     // name(targets, with defaults for the last of them): body
    With,      // targets = values: body
    Block,     // body
    Break,
    Continue
  };
  struct Branch {
    ExpressionPtr condition;  // null: else
    std::vector<Statement> body;
  };

  Kind kind = Kind::Text;
  int line = 0;
  Value text;
  std::string name, attribute;
  std::vector<std::string> targets;
  ExpressionPtr expression, condition;
  std::vector<ExpressionPtr> values;  // Macro: defaults of the last targets. With: of all
  std::vector<Branch> branches;
  std::vector<Statement> body, otherwise;
};

}  // namespace dsv3::jinja
