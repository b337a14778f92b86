// Values of the template language, with Python's meaning of truth, equality, order and text.
//
// Values are immutable but for namespaces, the state of loops, and iterators, which give their items once. A value
// says how deep it nests, and none nests deeper than kMaxDepth, so walking one cannot overflow the stack. Sharing
// can make a small value endless to walk: every walk is paid for from a Budget.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"
#include "text/jinja/text.h"

namespace dsv3::jinja {

using lite::Result;
using lite::Status;

struct Statement;  // ast.h

// What rendering may still cost. One unit is one step of evaluation, or four bytes written.
class Budget {
 public:
  explicit Budget(int64_t units) : all_(units), left_(units) {}
  Status spend(int64_t units);
  Status spend_bytes(size_t bytes) { return spend(int64_t(bytes / 4) + 1); }

 private:
  int64_t all_, left_;
};

// Digits of an integer that does not fit 64 bits: can be written and compared with "==", not computed with.
using WideInteger = std::shared_ptr<const std::string>;

class Value;
using Values = std::vector<Value>;

// A name or member that is not there. Most uses are errors that say `what`.
struct Undefined {
  std::shared_ptr<const std::string> what;
};
struct None {
  bool operator==(const None&) const { return true; }
};

struct Sequence {
  enum class Kind { List, Tuple, Range, View, Iterator };  // View: keys(), values(), items() of a dict
  Kind kind = Kind::List;
  mutable Values items;  // an iterator's leave it when they are taken
  int depth = 1;
};

// In order of insertion. Keys are strings, numbers, booleans and none; 1, 1.0 and true are one key.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  std::unordered_map<std::string, size_t> index;  // by key_of()
  int depth = 1;

  const Value* find(const Value& key) const;
};

struct Namespace {
  std::unordered_map<std::string, Value> attributes;
};

// The state of a running for statement: the variable "loop".
struct Loop;

// A method not yet called: "text".upper.
struct Method;

// What a template calls by name without having defined it.
enum class Function { Range, Dict, Namespace, RaiseException, StrftimeNow };

class Value {
 public:
  using Variant = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
                               std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>,
                               std::shared_ptr<Namespace>, std::shared_ptr<Loop>,
                               std::shared_ptr<const Method>, const Statement*, Function, WideInteger>;

  Value() : v_(None{}) {}
  Value(Undefined v) : v_(std::move(v)) {}
  Value(bool v) : v_(v) {}
  Value(int64_t v) : v_(v) {}
  Value(double v) : v_(v) {}
  Value(Text v) : v_(std::make_shared<const Text>(std::move(v))) {}
  Value(std::shared_ptr<const Sequence> v) : v_(std::move(v)) {}
  Value(std::shared_ptr<const Dict> v) : v_(std::move(v)) {}
  Value(std::shared_ptr<Namespace> v) : v_(std::move(v)) {}
  Value(std::shared_ptr<Loop> v) : v_(std::move(v)) {}
  Value(std::shared_ptr<const Method> v) : v_(std::move(v)) {}
  Value(const Statement* macro) : v_(macro) {}
  Value(Function v) : v_(v) {}
  Value(WideInteger v) : v_(std::move(v)) {}
  static Value undefined(std::string what);

  bool is_undefined() const { return std::holds_alternative<Undefined>(v_); }
  bool is_none() const { return std::holds_alternative<None>(v_); }
  const Undefined* as_undefined() const { return std::get_if<Undefined>(&v_); }
  const bool* boolean() const { return std::get_if<bool>(&v_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&v_); }
  const std::string* wide_integer() const { return held<const std::string>(); }
  const double* real() const { return std::get_if<double>(&v_); }
  const Text* text() const { return held<const Text>(); }
  const Sequence* sequence() const { return held<const Sequence>(); }
  const Dict* dict() const { return held<const Dict>(); }
  Namespace* name_space() const { return held<Namespace>(); }
  Loop* loop() const { return held<Loop>(); }
  const Method* method() const { return held<const Method>(); }
  const Statement* macro() const {
    const auto* v = std::get_if<const Statement*>(&v_);
    return v ? *v : nullptr;
  }
  const Function* function() const { return std::get_if<Function>(&v_); }

  // An integer of 64 bits, or a boolean as 0 or 1.
  std::optional<int64_t> whole() const;
  // Any number but a wide integer, or a boolean.
  std::optional<double> number() const;

  int depth() const;             // 0 for what holds no other value
  const char* type() const;      // Python's name: "str", "list", "NoneType", ...
  const void* identity() const;  // what "sameas" compares

 private:
  template <class T>
  T* held() const {
    const auto* v = std::get_if<std::shared_ptr<T>>(&v_);
    return v ? v->get() : nullptr;
  }

  Variant v_;
};

struct Loop : std::enable_shared_from_this<Loop> {
  std::deque<Value> source;  // items that have not passed the loop's "if" yet
  std::deque<Value> ready;   // items that have
  Value previous = Value::undefined("there is no previous item");
  Value current = Value::undefined("the loop has not begun");
  int64_t index0 = -1;
  int depth = 1;
  std::optional<Values> changed;  // the arguments of the last loop.changed()
};

struct Method {
  Value self;
  std::string name;
};

constexpr int kMaxDepth = 100;

// Containers, paid for. InvalidArgument when they nest too deep, Unsupported for a key of another type.
Result<Value> make_sequence(Sequence::Kind kind, Values items, Budget* budget);
Result<Value> make_list(Values items, Budget* budget);
Result<Value> make_dict(std::vector<std::pair<Value, Value>> items, Budget* budget);
Result<Value> make_text(Text text, Budget* budget);

// JSON of the caller: no byte of its strings is trusted, except that the usual names of roles are everybody's.
Result<Value> from_json(const lite::Json& json, Budget* budget);

// One text for keys that Python holds equal: 1, 1.0 and true; nothing for what cannot be a key.
std::optional<std::string> key_of(const Value& key);

bool truth(const Value& v);
Result<bool> equal(const Value& a, const Value& b, Budget* budget);
// Negative, zero, positive; an error for types that have no order.
Result<int> order(const Value& a, const Value& b, Budget* budget);

// str(): of a string itself. repr(): as Python writes it in a list.
Result<Text> to_text(const Value& v, Budget* budget);
Result<Text> repr(const Value& v, Budget* budget);
std::string float_text(double v);

// json.dumps() as transformers calls it: not escaped for HTML, and not ASCII only unless asked.
struct JsonStyle {
  bool ensure_ascii = false, sort_keys = false;
  std::optional<std::string> indent;  // of one level
  Text item_separator, key_separator;
};
Result<Text> to_json(const Value& v, const JsonStyle& style, Budget* budget);

// The items of a list, the keys of a dict, the characters of a string; none of an undefined value.
Result<Values> items_of(const Value& v, Budget* budget);

}  // namespace dsv3::jinja
