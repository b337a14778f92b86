#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

namespace dsv3 {
namespace {

using lite::str;
using lite::unsupported;

constexpr size_t kLongestPattern = 1 << 16;
// Of one match. Released patterns take a few steps a character; a class with && takes some stack for each
// character of a word, so that a word of a million letters still passes.
constexpr uint32_t kMatchLimit = 100'000'000;
constexpr uint32_t kHeapLimit = 512 * 1024;  // KiB
constexpr size_t kJitStack = 128 << 20;      // bytes, taken as needed

// Unicode White_Space, and everything else, as the inside of a class. PCRE2's own \s adds U+180E.
constexpr const char* kSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr const char* kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  lite::Result<std::string> translate() {
    std::string out;
    while (at_ < in_.size()) {
      if (in_[at_] == '\\') {
        LITE_TRY(escape(false, &out));
      } else if (in_[at_] == '[') {
        LITE_TRY(set(&out));
      } else if (starts_with("(?") || starts_with("(*")) {
        LITE_TRY(group(&out));
      } else if (in_[at_] == '{') {
        LITE_TRY(quantifier(&out));
      } else {
        out += in_[at_++];
      }
    }
    return out;
  }

 private:
  bool starts_with(std::string_view s) const { return in_.substr(at_).starts_with(s); }
  lite::Status refuse(const std::string& what) const {
    return unsupported("pattern: ", what, " at byte ", at_, " is not supported");
  }

  // Groups that only group or look ahead; everything else has no place in a pre-tokenizer.
  lite::Status group(std::string* out) {
    for (const std::string_view known : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"})
      if (starts_with(known)) {
        *out += known;
        at_ += known.size();
        return {};
      }
    return refuse(str("\"", in_.substr(at_, 3), "\""));
  }

  // {n}, {n,} and {n,m}. Oniguruma reads {,m} as a quantifier and {n}? as optional; PCRE2 does not.
  lite::Status quantifier(std::string* out) {
    const size_t end = in_.find('}', at_);
    const std::string_view inside = end == std::string_view::npos ? "" : in_.substr(at_ + 1, end - at_ - 1);
    const bool digits = !inside.empty() && inside[0] != ',' &&
                        inside.find_first_not_of("0123456789,") == std::string_view::npos;
    const bool optional =
        digits && inside.find(',') == std::string_view::npos && in_.substr(end + 1).starts_with("?");
    if (!digits || optional) return refuse("this {");
    *out += in_.substr(at_, inside.size() + 2);
    at_ = end + 1;
    return {};
  }

  lite::Status escape(bool in_set, std::string* out) {
    if (at_ + 1 >= in_.size()) return refuse("a lone backslash");
    const char c = in_[at_ + 1];
    if (c == 's' || c == 'S') {
      const char* inside = c == 's' ? kSpace : kNotSpace;
      *out += in_set ? std::string(inside) : str("[", inside, "]");
    } else if (c == 'd' || c == 'D') {
      *out += c == 'd' ? "\\p{Nd}" : "\\P{Nd}";
    } else if (c == 'p' || c == 'P') {
      const size_t end = in_.find('}', at_);
      if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || end == std::string_view::npos)
        return refuse("\\p without a name");
      const std::string_view name = in_.substr(at_ + 3, end - at_ - 3);
      *out += str("\\", c, "{", name == "Han" ? "sc:Han" : name,
                  "}");  // PCRE2's Han alone means script extensions
      at_ = end + 1;
      return {};
    } else if (std::string_view("rnt").find(c) != std::string_view::npos ||
               !((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'))) {
      *out += in_.substr(at_, 2);
    } else {
      return refuse(str("\\", c));
    }
    at_ += 2;
    return {};
  }

  // [...] with && : [A&&[^B]] becomes (?:(?=[^B])[A]).
  lite::Status set(std::string* out) {
    std::string inside, conditions;
    const size_t start = at_++;
    if (at_ < in_.size() && in_[at_] == '^') inside += in_[at_++];
    const bool negated = !inside.empty();
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '\\') {
        LITE_TRY(escape(true, &inside));
      } else if (starts_with("&&[") && !negated) {
        at_ += 2;
        std::string other;
        LITE_TRY(set(&other));
        conditions += str("(?=", other, ")");
      } else if (in_[at_] == '[' || starts_with("&&")) {
        return refuse("a class inside a class");
      } else {
        inside += in_[at_++];
      }
    }
    if (at_ == in_.size()) {
      at_ = start;
      return refuse("a class without an end");
    }
    if (inside.size() == negated) return refuse("an empty class");
    ++at_;
    *out += conditions.empty() ? str("[", inside, "]") : str("(?:", conditions, "[", inside, "])");
    return {};
  }

  std::string_view in_;
  size_t at_ = 0;
};

lite::Status pcre2_error(const char* what, int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return unsupported(what, ": ", reinterpret_cast<const char*>(text));
}

}  // namespace

lite::Result<std::string> pcre2_pattern(std::string_view pattern) {
  if (pattern.size() > kLongestPattern)
    return unsupported("pattern: got ", pattern.size(), " bytes, expected at most ", kLongestPattern);
  // On a run of spaces that does not end a line every start would look at the whole rest of the run. A match
  // can only begin where a run does: at a later start the same ends are tried, and have failed or been taken.
  if (pattern == R"(\s+$)") return str("(?<![", kSpace, "])[", kSpace, "]+$");
  return Translator(pattern).translate();
}

void Regex::Free::operator()(void* code) const {
  pcre2_code_free(static_cast<pcre2_code*>(code));
}

lite::Result<Regex> Regex::compile(std::string_view pattern) {
  LITE_ASSIGN(const std::string translated, pcre2_pattern(pattern));
  std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) return lite::out_of_memory("compile a pattern");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  const uint32_t options = PCRE2_UTF | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE | PCRE2_NEVER_BACKSLASH_C;
  int error;
  PCRE2_SIZE at;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   options, &error, &at, context.get());
  if (!code) return pcre2_error("pattern", error);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT the interpreter does
  return Regex(code);
}

std::string quoted_pattern(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain =
        (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c & 0x80);
    if (!plain) out += '\\';
    out += c;
  }
  return out;
}

lite::Result<Regex> Regex::literal(std::string_view text) {
  if (text.empty()) return unsupported("pattern: an empty string");
  return compile(quoted_pattern(text));
}

lite::Status Regex::split(std::string_view text, std::vector<std::string_view>* pieces) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(pcre2_match_data_create(1, nullptr),
                                                                      pcre2_match_data_free);
  std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  std::unique_ptr<pcre2_jit_stack, void (*)(pcre2_jit_stack*)> stack(
      nullptr, pcre2_jit_stack_free);  // when a match needs it
  if (!data || !context) return lite::out_of_memory("match a pattern");
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimit);

  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t done = 0;
  while (done < text.size()) {
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int found = pcre2_match(code, subject, text.size(), done, options, data.get(), context.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && !stack) {
      stack.reset(pcre2_jit_stack_create(1 << 16, kJitStack, nullptr));
      pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
      continue;
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) return pcre2_error("match a pattern of the tokenizer", found);
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    if (range[0] > done) pieces->push_back(text.substr(done, range[0] - done));
    pieces->push_back(text.substr(range[0], range[1] - range[0]));
    done = range[1];
  }
  if (done < text.size()) pieces->push_back(text.substr(done));
  return {};
}

}  // namespace dsv3
