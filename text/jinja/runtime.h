// What filters, tests, methods and functions of templates see of a rendering, and their tables.
#pragma once

#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace dsv3::jinja {

// The arguments of a call.
struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

// A call's arguments by parameter: null where none is given.
class Bound {
 public:
  // InvalidArgument for a name that is none of `parameters`, for more arguments than these and for fewer than
  // `required`. `what` names the callee. The arguments must outlive the result.
  static Result<Bound> bind(const Arguments& arguments, std::string_view what,
                            std::initializer_list<const char*> parameters, size_t required = 0);

  const Value* operator[](size_t i) const { return values_[i]; }
  bool truth_of(size_t i, bool otherwise) const;
  Result<int64_t> integer(size_t i, int64_t otherwise) const;
  Result<Text> text(size_t i, std::string_view otherwise) const;  // trusted, if it is `otherwise`

 private:
  std::string what_;
  std::vector<const char*> names_;
  std::vector<const Value*> values_;
};

// The caller's civil time, for strftime_now.
struct RenderTime {
  int64_t seconds = 0;  // since 1970-01-01 00:00:00 by the caller's own clock and zone
};

struct Runtime {
  Budget budget;
  std::optional<RenderTime> now;
  std::vector<std::shared_ptr<Namespace>> namespaces;  // all that were made: they may hold each other
};

// x.name, x[key] and x[begin:end:step] (null: left out).
Result<Value> attribute(Runtime& r, const Value& of, const std::string& name);
Result<Value> item(Runtime& r, const Value& of, const Value& key);
Result<Value> slice(Runtime& r, const Value& of, const Value* begin, const Value* end, const Value* step);

// a op b for + - * / // % **.
Result<Value> arithmetic(Runtime& r, std::string_view op, const Value& a, const Value& b);
// a op b for == != < <= > >= in "not in".
Result<bool> compare(Runtime& r, std::string_view op, const Value& a, const Value& b);
// "%s and %d" % values.
Result<Value> format(Runtime& r, const Text& pattern, const Values& values);

// The caller's time by a format of strftime.
Result<Value> format_time(Runtime& r, const Text& format);

bool is_filter(std::string_view name);
bool is_test(std::string_view name);
bool is_method(std::string_view name);
std::optional<Function> function_named(std::string_view name);

Result<Value> call_filter(Runtime& r, std::string_view name, const Value& self, const Arguments& arguments);
Result<bool> call_test(Runtime& r, std::string_view name, const Value& self, const Arguments& arguments);
Result<Value> call_method(Runtime& r, const Method& method, const Arguments& arguments);
Result<Value> call_function(Runtime& r, Function function, const Arguments& arguments);

}  // namespace dsv3::jinja
