// Templates as transformers' apply_chat_template runs them: a sandboxed subset of Jinja.
//
// A template is a stranger's program. It reads what it is given and writes text, nothing else: no file, clock or
// object of ours is in its reach. It is bounded in steps, memory (steps pay for it), nesting and output, and
// everything that is not implemented is refused when it is parsed.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"
#include "text/span.h"

namespace dsv3::jinja {

struct Statement;

struct Limits {
  int64_t steps = 50'000'000;  // a step of evaluation, or four bytes written
  int64_t output_bytes = 64 << 20;
  int depth = 600;  // of statements, expressions and calls, one inside the other
};

// A variable that the template finds; `trusted`: its text may hold special tokens.
struct Variable {
  std::string name;
  lite::Json value;
  bool trusted = false;
};

struct Rendered {
  std::string text;
  // Where the template itself wrote: its literals and trusted variables. Ascending, never touching.
  std::vector<TextSpan> trusted;
};

class Template {
 public:
  static constexpr size_t kMaxSource = 1 << 20;  // bytes; the longest released template has some 30 000

  // Corrupt: not a template. Unsupported: something not implemented, by name, both with the line; or too long.
  static lite::Result<Template> parse(std::string_view source);
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;
  ~Template();

  // `local_time`: seconds since 1970-01-01 00:00 by the clock on the caller's wall; without it strftime_now fails.
  // InvalidArgument, with the line, when the template refuses, fails, or reaches a limit. Thread-safe.
  lite::Result<Rendered> render(const std::vector<Variable>& variables, std::optional<int64_t> local_time,
                                const Limits& limits = {}) const;

 private:
  explicit Template(std::vector<Statement> body);
  std::unique_ptr<const std::vector<Statement>> body_;
};

}  // namespace dsv3::jinja
