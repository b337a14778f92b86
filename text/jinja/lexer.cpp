#include "text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "text/jinja/text.h"
#include "text/utf8.h"

namespace dsv3::jinja {

using lite::corrupt;
using lite::Result;
using lite::Status;

namespace {

using Kind = Token::Kind;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_begin(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// Longer ones first.
constexpr std::array<std::string_view, 25> kOperators = {"**", "//", "==", "!=", "<=", ">=", "+", "-", "*",
                                                         "/",  "%",  "~",  "<",  ">",  "=",  ".", ":", "|",
                                                         ",",  ";",  "(",  ")",  "[",  "]",  "{"};

// Every newline as \n, and none at the end.
std::string normalized(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : text_(std::move(source)) {}

  Result<std::vector<Token>> run() {
    while (at_ < text_.size()) LITE_TRY(step());
    add(Kind::End, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(text_).substr(at_); }
  bool here(std::string_view s) const { return rest().starts_with(s); }

  template <class... P>
  Status wrong(const P&... parts) const {
    return corrupt("line ", line_, ": ", parts...);
  }

  void add(Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  void advance(size_t n) {
    line_ += int(std::count(text_.begin() + int64_t(at_), text_.begin() + int64_t(at_ + n), '\n'));
    at_ += n;
  }

  // Text up to the next tag, then the tag.
  Status step() {
    size_t begin = at_;
    do {
      begin = text_.find('{', begin);
      if (begin == std::string::npos || begin + 1 == text_.size()) {
        begin = std::string::npos;
        break;
      }
    } while (std::string_view("{%#").find(text_[begin + 1]) == std::string_view::npos && ++begin);
    if (begin == std::string::npos) {
      add(Kind::Text, text_.substr(at_));
      advance(text_.size() - at_);
      return {};
    }
    const char kind = text_[begin + 1];
    add_text(begin, kind != '{');
    advance(begin + 2 - at_);
    if (kind == '%') {
      if (const RawTag tag = raw_tag(at_, "raw"); tag.end) return raw(tag);
    }
    if (here("-") || here("+")) advance(1);
    if (kind == '#') return comment();
    if (kind == '{') return expression(Kind::OutputBegin, "}}", Kind::OutputEnd);
    return expression(Kind::TagBegin, "%}", Kind::TagEnd);
  }

  // The text before the tag at `end`, without the space that the tag takes away.
  void add_text(size_t end, bool lstrip) {
    std::string_view text = rest().substr(0, end - at_);
    const char sign = end + 2 < text_.size() ? text_[end + 2] : ' ';
    if (sign == '-') {
      text.remove_suffix(trailing_space(text));
    } else if (sign != '+' && lstrip) {
      const size_t line = text.rfind('\n') + 1;  // 0 without one
      if ((line > 0 || line_begins_) && leading_space(text.substr(line)) == text.size() - line)
        text = text.substr(0, line);
    }
    if (!text.empty()) add(Kind::Text, std::string(text));
  }

  // After a tag's end mark: what else of the space it takes.
  void end_tag(bool strip, bool keep, bool block) {
    if (strip)
      advance(leading_space(rest()));
    else if (!keep && block && here("\n"))
      advance(1);
    line_begins_ = at_ > 0 && text_[at_ - 1] == '\n';
  }

  Status comment() {
    const size_t end = text_.find("#}", at_);
    if (end == std::string::npos) return wrong("a comment without its end, \"#}\"");
    const char sign = end > at_ ? text_[end - 1] : ' ';
    advance(end + 2 - at_);
    end_tag(sign == '-', sign == '+', true);
    return {};
  }

  // {% raw %} and {% endraw %}, whose "{%" is before `at`.
  struct RawTag {
    size_t end = 0;  // byte after "%}"; 0: another tag
    bool strip = false, keep = false;
  };
  RawTag raw_tag(size_t at, std::string_view name) const {
    std::string_view tag = std::string_view(text_).substr(at);
    if (tag.starts_with("-") || tag.starts_with("+")) tag.remove_prefix(1);
    tag.remove_prefix(leading_space(tag));
    if (!tag.starts_with(name)) return {};
    tag.remove_prefix(name.size());
    tag.remove_prefix(leading_space(tag));
    const bool strip = tag.starts_with("-"), keep = tag.starts_with("+");
    if (strip || keep) tag.remove_prefix(1);
    if (!tag.starts_with("%}")) return {};
    return {text_.size() - tag.size() + 2, strip, keep};
  }

  Status raw(const RawTag& begin) {
    const int begun = line_;
    advance(begin.end - at_);
    end_tag(begin.strip, true, true);
    for (size_t end = at_; (end = text_.find("{%", end)) != std::string::npos; end += 2) {
      const RawTag tag = raw_tag(end + 2, "endraw");
      if (tag.end == 0) continue;
      add_text(end, true);
      advance(tag.end - at_);
      end_tag(tag.strip, tag.keep, true);
      return {};
    }
    return corrupt("line ", begun, ": a raw block without its end, \"{% endraw %}\"");
  }

  // The words of a tag up to its end mark.
  Status expression(Kind begin, std::string_view mark, Kind end) {
    add(begin, "");
    std::vector<char> open;  // brackets; inside of them "}}" is no mark
    for (;;) {
      advance(leading_space(rest()));
      if (rest().empty()) return wrong("the template ends inside a tag");
      const bool strip = here("-"), keep = here("+") && begin == Kind::TagBegin;
      if (open.empty() && rest().substr(strip || keep).starts_with(mark)) {
        add(end, "");
        advance(mark.size() + (strip || keep));
        end_tag(strip, keep, end == Kind::TagEnd);
        return {};
      }
      LITE_TRY(word(&open));
    }
  }

  Status word(std::vector<char>* open) {
    const char c = text_[at_];
    if (c == '"' || c == '\'') return string();
    if (is_digit(c)) return number();
    if (is_name_begin(c)) {
      size_t n = 1;
      while (n < rest().size() && (is_name_begin(rest()[n]) || is_digit(rest()[n]))) ++n;
      add(Kind::Name, std::string(rest().substr(0, n)));
      advance(n);
      return {};
    }
    if (c == '}' || c == ')' || c == ']') {
      const char opening = c == '}' ? '{' : c == ')' ? '(' : '[';
      if (open->empty() || open->back() != opening) return wrong("unexpected \"", c, "\"");
      open->pop_back();
      add(Kind::Operator, std::string(1, c));
      advance(1);
      return {};
    }
    for (const std::string_view op : kOperators)
      if (here(op)) {
        if (c == '(' || c == '[' || c == '{') open->push_back(c);
        add(Kind::Operator, std::string(op));
        advance(op.size());
        return {};
      }
    return wrong("unexpected \"", rest().substr(0, std::max<size_t>(utf8_decode(rest()).length, 1)), "\"");
  }

  Status number() {
    const auto at = [this](size_t i) { return i < rest().size() ? rest()[i] : '\0'; };
    const auto digits = [&](size_t n) {
      while (is_digit(at(n))) ++n;
      return n;
    };
    size_t n = digits(0);
    bool real = false;
    if (at(n) == '.' && is_digit(at(n + 1))) {
      real = true;
      n = digits(n + 1);
    }
    if (at(n) == 'e' || at(n) == 'E') {
      const size_t sign = at(n + 1) == '+' || at(n + 1) == '-';
      if (is_digit(at(n + 1 + sign))) {
        real = true;
        n = digits(n + 1 + sign);
      }
    }
    if (is_name_begin(at(n)) || (!real && n > 1 && at(0) == '0'))
      return wrong("\"", rest().substr(0, n + 1), "\": numbers of this form are not supported");
    add(real ? Kind::Float : Kind::Integer, std::string(rest().substr(0, n)));
    advance(n);
    return {};
  }

  Status string() {
    const char quote = text_[at_];
    std::string out;
    size_t n = 1;
    for (;; ++n) {
      if (n >= rest().size()) return wrong("a string without its end, ", quote);
      const char c = rest()[n];
      if (c == quote) break;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (++n >= rest().size()) return wrong("a string without its end, ", quote);
      LITE_TRY(escape(&n, &out));
    }
    add(Kind::String, std::move(out));
    advance(n + 1);
    return {};
  }

  // What follows a backslash at rest()[*n], as Python reads it; *n becomes its last byte.
  Status escape(size_t* n, std::string* out) const {
    const char c = rest()[*n];
    static constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t known = kFrom.find(c); known != std::string_view::npos) {
      *out += kTo[known];
      return {};
    }
    if (c == '\n') return {};
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      if (is_digit(c) || c == 'N') return wrong("escape \"\\", c, "\" is not supported");
      (*out += '\\') += c;
      return {};
    }
    uint32_t code = 0;
    const std::string_view text = rest().substr(std::min(*n + 1, rest().size()), digits);
    const auto end = std::from_chars(text.data(), text.data() + text.size(), code, 16);
    if (text.size() != digits || end.ptr != text.data() + digits || code > 0x10FFFF ||
        (code >= 0xD800 && code < 0xE000))
      return wrong("escape \"\\", c, text, "\" is no character");
    *out += utf8(code);
    *n += digits;
    return {};
  }

  const std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_begins_ = true;  // text read next begins a line
  std::vector<Token> tokens_;
};

}  // namespace

Result<std::vector<Token>> lex(std::string_view source) {
  if (const size_t valid = utf8_valid_prefix(source); valid != source.size())
    return corrupt("line ", 1 + std::count(source.begin(), source.begin() + int64_t(valid), '\n'),
                   ": not UTF-8");
  return Lexer(normalized(source)).run();
}

}  // namespace dsv3::jinja
