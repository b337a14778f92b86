// Errors as values, and arithmetic on sizes that cannot wrap.
//
// A function that can fail returns Status or Result<T>; nothing in the library throws, prints or exits on bad
// input. A message reads "WHAT failed: WHICH object: got X, expected Y; try Z". Codes say what the caller can do
// next; their numbers are those of dsv3.h.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

namespace lite {

enum class Code : int {
  Ok = 0,
  InvalidArgument = 1,  // fix the call
  NotFound = 2,         // fix the path or the name
  Io = 3,               // look at the disk
  Corrupt = 4,          // get the file again
  Unsupported = 5,      // another model, another option, or a newer program
  OutOfMemory = 6,      // smaller context, other placement
  ContextFull = 7,      // truncate the sequence or start a new one
  Busy = 8,             // something else must end first
  Cancelled = 9,        // as asked
  Device = 10,          // the device failed; the session is dead
  Internal = 99,        // a bug of ours
};

// Everything streamed one after the other: str("row ", 3, " of ", n).
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : error_(std::make_unique<Error>(Error{code, std::move(message)})) {}
  Status(const Status& other) : error_(other.error_ ? std::make_unique<Error>(*other.error_) : nullptr) {}
  Status(Status&&) = default;
  Status& operator=(Status other) {
    error_ = std::move(other.error_);
    return *this;
  }

  bool ok() const { return !error_; }
  Code code() const { return error_ ? error_->code : Code::Ok; }
  const std::string& message() const {
    static const std::string none;
    return error_ ? error_->message : none;
  }
  // The same error with `context` in front of its message; Ok stays Ok.
  Status in(const std::string& context) const {
    return ok() ? Status() : Status(code(), context + ": " + message());
  }
  // The same error with what to try behind its message; Ok stays Ok.
  Status with_advice(const std::string& advice) const {
    return ok() ? Status() : Status(code(), message() + "; " + advice);
  }

 private:
  struct Error {
    Code code;
    std::string message;
  };
  std::unique_ptr<Error> error_;
};

template <class... P>
Status invalid_argument(const P&... p) {
  return {Code::InvalidArgument, str(p...)};
}
template <class... P>
Status not_found(const P&... p) {
  return {Code::NotFound, str(p...)};
}
template <class... P>
Status io_error(const P&... p) {
  return {Code::Io, str(p...)};
}
template <class... P>
Status corrupt(const P&... p) {
  return {Code::Corrupt, str(p...)};
}
template <class... P>
Status unsupported(const P&... p) {
  return {Code::Unsupported, str(p...)};
}
template <class... P>
Status out_of_memory(const P&... p) {
  return {Code::OutOfMemory, str(p...)};
}
template <class... P>
Status internal_error(const P&... p) {
  return {Code::Internal, str(p...)};
}

// A value or the reason why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Status status) : status_(std::move(status)) {}

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

#define LITE_CONCAT_(a, b) a##b
#define LITE_CONCAT(a, b) LITE_CONCAT_(a, b)

// Returns the error of `expression` (a Status) to the caller, if there is one.
#define LITE_TRY(expression)                                                                 \
  do {                                                                                       \
    if (::lite::Status lite_status_ = (expression); !lite_status_.ok()) return lite_status_; \
  } while (false)

// Declares or assigns `target` from a Result, or returns its error to the caller.
#define LITE_ASSIGN(target, expression) LITE_ASSIGN_(LITE_CONCAT(lite_result_, __LINE__), target, expression)
#define LITE_ASSIGN_(result, target, expression) \
  auto result = (expression);                    \
  if (!result.ok()) return result.status();      \
  target = std::move(*result)

// Sizes from files are multiplied and added only with these; false means it does not fit.
[[nodiscard]] inline bool checked_mul(int64_t a, int64_t b, int64_t* out) {
  return !__builtin_mul_overflow(a, b, out);
}
[[nodiscard]] inline bool checked_add(int64_t a, int64_t b, int64_t* out) {
  return !__builtin_add_overflow(a, b, out);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}
constexpr int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

}  // namespace lite
