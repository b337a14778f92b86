// Operators between values, with Python's rules.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "text/jinja/runtime.h"

namespace dsv3::jinja {

using lite::invalid_argument;

namespace {

Status too_large() {
  return invalid_argument("an integer does not fit 64 bits");
}

Result<Value> integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (exponent > 0) {
    if (exponent & 1 && !lite::checked_mul(result, base, &result)) return too_large();
    exponent >>= 1;
    if (exponent > 0 && !lite::checked_mul(base, base, &base)) return too_large();
  }
  return Value(result);
}

// Rounded towards minus infinity.
int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

Result<Value> integers(std::string_view op, int64_t a, int64_t b) {
  int64_t out = 0;
  if (op == "+") return lite::checked_add(a, b, &out) ? Result<Value>(Value(out)) : too_large();
  if (op == "-") return __builtin_sub_overflow(a, b, &out) ? too_large() : Result<Value>(Value(out));
  if (op == "*") return lite::checked_mul(a, b, &out) ? Result<Value>(Value(out)) : too_large();
  if (op == "**") {
    if (b >= 0) return integer_power(a, b);
    if (a == 0) return invalid_argument("division by zero");
    return Value(std::pow(double(a), double(b)));
  }
  if (b == 0) return invalid_argument("division by zero");
  if (op == "/") return Value(double(a) / double(b));
  if (b == -1 && a == INT64_MIN) return op == "%" ? Result<Value>(Value(int64_t(0))) : too_large();
  if (op == "//") return Value(floor_div(a, b));
  return Value(a - floor_div(a, b) * b);
}

Result<Value> reals(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") {
    const double out = std::pow(a, b);
    if (a == 0 && b < 0) return invalid_argument("division by zero");
    if (std::isnan(out) || (std::isinf(out) && !std::isinf(a) && !std::isinf(b)))
      return invalid_argument("** has no real result of this size");
    return Value(out);
  }
  if (b == 0) return invalid_argument("division by zero");
  if (op == "/") return Value(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (op == "%") return Value(rest == 0 ? std::copysign(0.0, b) : rest);
  return Value(std::round((a - rest) / b));
}

Result<Value> repeat(Runtime& r, const Value& of, int64_t times) {
  times = std::max<int64_t>(times, 0);
  if (const Text* t = of.text()) {
    int64_t bytes = 0;
    if (!lite::checked_mul(times, int64_t(t->bytes().size()) + 1, &bytes)) bytes = INT64_MAX;
    LITE_TRY(r.budget.spend(bytes / 4));
    Text out;
    for (int64_t i = 0; i < times && !t->bytes().empty(); ++i) out.append(*t);
    return make_text(std::move(out), &r.budget);
  }
  const Sequence& s = *of.sequence();
  int64_t n = 0;
  if (!lite::checked_mul(times, int64_t(s.items.size()), &n)) n = INT64_MAX;
  LITE_TRY(r.budget.spend(n));
  Values items;
  for (int64_t i = 0; i < n; ++i) items.push_back(s.items[size_t(i) % s.items.size()]);
  return make_sequence(s.kind, std::move(items), &r.budget);
}

// A list or a tuple.
const Sequence* plain_sequence(const Value& v) {
  const Sequence* s = v.sequence();
  return s && s->kind <= Sequence::Kind::Tuple ? s : nullptr;
}

Result<Value> add(Runtime& r, const Value& a, const Value& b) {
  if (a.text() && b.text()) {
    Text out = *a.text();
    LITE_TRY(r.budget.spend_bytes(out.bytes().size()));
    out.append(*b.text());
    return make_text(std::move(out), &r.budget);
  }
  if (a.text()) return invalid_argument("can only concatenate str (not \"", b.type(), "\") to str");
  const Sequence *s = plain_sequence(a), *t = plain_sequence(b);
  if (s && t && s->kind == t->kind) {
    Values items = s->items;
    items.insert(items.end(), t->items.begin(), t->items.end());
    return make_sequence(s->kind, std::move(items), &r.budget);
  }
  return invalid_argument("'", a.type(), "' + '", b.type(), "' has no meaning");
}

}  // namespace

Result<Value> arithmetic(Runtime& r, std::string_view op, const Value& a, const Value& b) {
  LITE_TRY(r.budget.spend(1));
  if (const Undefined* u = a.is_undefined() ? a.as_undefined() : b.as_undefined())
    return invalid_argument(*u->what);
  if (op == "%" && a.text()) {
    const Sequence* s = b.sequence();
    return format(r, *a.text(), s && s->kind == Sequence::Kind::Tuple ? s->items : Values{b});
  }
  if (a.wide_integer() || b.wide_integer())
    return invalid_argument("'", op, "': an integer that does not fit 64 bits can only be written");
  const auto i = a.whole(), j = b.whole();
  if (i && j) return integers(op, *i, *j);
  const auto x = a.number(), y = b.number();
  if (x && y) return reals(op, *x, *y);
  if (op == "+") return add(r, a, b);
  if (op == "*" && j && (a.text() || plain_sequence(a))) return repeat(r, a, *j);
  if (op == "*" && i && (b.text() || plain_sequence(b))) return repeat(r, b, *i);
  return invalid_argument("'", a.type(), "' ", op, " '", b.type(), "' has no meaning");
}

namespace {

Result<bool> contains(Runtime& r, const Value& in, const Value& what) {
  if (in.is_undefined()) return false;
  if (const Text* t = in.text()) {
    if (const Undefined* u = what.as_undefined()) return invalid_argument(*u->what);
    if (!what.text()) return invalid_argument("'in <string>': got '", what.type(), "', expected a string");
    LITE_TRY(r.budget.spend_bytes(t->bytes().size()));
    return find_text(t->bytes(), what.text()->bytes()) != std::string::npos;
  }
  if (const Dict* d = in.dict()) {
    if (what.text()) LITE_TRY(r.budget.spend_bytes(what.text()->bytes().size()));
    if (!what.is_undefined() && !key_of(what))
      return invalid_argument("a ", what.type(), " cannot be a key of a dict");
    return d->find(what) != nullptr;
  }
  const Sequence* s = in.sequence();
  if (!s) return invalid_argument("'", in.type(), "' holds nothing that \"in\" could find");
  for (size_t i = 0; i < s->items.size(); ++i) {
    LITE_ASSIGN(const bool same, equal(s->items[i], what, &r.budget));
    if (!same) continue;
    if (s->kind == Sequence::Kind::Iterator)  // it has given all up to here
      s->items.erase(s->items.begin(), s->items.begin() + int64_t(i) + 1);
    return true;
  }
  if (s->kind == Sequence::Kind::Iterator) s->items.clear();
  return false;
}

}  // namespace

Result<bool> compare(Runtime& r, std::string_view op, const Value& a, const Value& b) {
  LITE_TRY(r.budget.spend(1));
  if (op == "in" || op == "not in") {
    LITE_ASSIGN(const bool in, contains(r, b, a));
    return in == (op == "in");
  }
  if (op == "==" || op == "!=") {
    LITE_ASSIGN(const bool same, equal(a, b, &r.budget));
    return same == (op == "==");
  }
  LITE_ASSIGN(const int sign, order(a, b, &r.budget));
  for (const Value* v : {&a, &b})
    if (v->real() && std::isnan(*v->real())) return false;
  if (op == "<") return sign < 0;
  if (op == "<=") return sign <= 0;
  return op == ">" ? sign > 0 : sign >= 0;
}

namespace {

// One conversion of a %-format: %[flags][width][.precision]letter.
struct Conversion {
  bool left = false, zeros = false, plus = false, space = false;
  int64_t width = 0, precision = -1;
  char letter = 0;
};

// Reads digits; at most 1000, which no template needs.
Result<int64_t> count_at(std::string_view pattern, size_t* at) {
  int64_t n = 0;
  for (; *at < pattern.size() && pattern[*at] >= '0' && pattern[*at] <= '9'; ++*at) {
    n = n * 10 + (pattern[*at] - '0');
    if (n > 1000) return invalid_argument("format: a width of more than 1000");
  }
  return n;
}

Result<Conversion> conversion_at(std::string_view pattern, size_t* at) {
  Conversion c;
  for (; *at < pattern.size(); ++*at) {
    const char flag = pattern[*at];
    if (flag == '-')
      c.left = true;
    else if (flag == '0')
      c.zeros = true;
    else if (flag == '+')
      c.plus = true;
    else if (flag == ' ')
      c.space = true;
    else
      break;
  }
  LITE_ASSIGN(c.width, count_at(pattern, at));
  if (*at < pattern.size() && pattern[*at] == '.') {
    ++*at;
    LITE_ASSIGN(c.precision, count_at(pattern, at));
  }
  if (*at == pattern.size()) return invalid_argument("format: the pattern ends inside a conversion");
  c.letter = pattern[(*at)++];
  if (std::string_view("sriduf%").find(c.letter) == std::string_view::npos)
    return invalid_argument("format: \"%", c.letter, "\" is not supported");
  return c;
}

Result<std::string> number_text(const Conversion& c, const Value& v) {
  const auto number = v.number();
  if (!number) return invalid_argument("format: %", c.letter, ": got '", v.type(), "', expected a number");
  std::string digits;
  if (c.letter == 'f') {
    char buffer[1500];
    const int n =
        std::snprintf(buffer, sizeof buffer, "%.*f", int(c.precision < 0 ? 6 : c.precision), *number);
    digits.assign(buffer, size_t(std::clamp(n, 0, int(sizeof buffer) - 1)));
  } else if (const auto whole = v.whole()) {
    digits = std::to_string(*whole);
  } else if (std::fabs(*number) < 9e18) {
    digits = std::to_string(int64_t(*number));
  } else {
    return too_large();
  }
  if (digits[0] != '-' && (c.plus || c.space)) digits.insert(0, 1, c.plus ? '+' : ' ');
  const size_t sign = std::string_view("+- ").find(digits[0]) != std::string_view::npos;
  if (c.zeros && !c.left && int64_t(digits.size()) < c.width)
    digits.insert(sign, size_t(c.width) - digits.size(), '0');
  return digits;
}

}  // namespace

Result<Value> format(Runtime& r, const Text& pattern, const Values& values) {
  const std::string& p = pattern.bytes();
  Text out;
  size_t used = 0;
  for (size_t at = 0; at < p.size();) {
    const size_t percent = std::min(p.find('%', at), p.size());
    out.append(pattern, at, percent);
    at = percent + 1;
    if (percent == p.size()) break;
    LITE_ASSIGN(const Conversion c, conversion_at(p, &at));
    if (c.letter == '%') {
      out.append("%", true);
      continue;
    }
    if (used == values.size()) return invalid_argument("format: not enough values for the pattern");
    const Value& v = values[used++];
    Text text;
    if (c.letter == 's' || c.letter == 'r') {
      LITE_ASSIGN(text, c.letter == 's' ? to_text(v, &r.budget) : repr(v, &r.budget));
      if (c.precision >= 0 && c.precision < text.length()) text = text.sub(0, text.byte_of(c.precision));
    } else {
      LITE_ASSIGN(const std::string digits, number_text(c, v));
      text = Text::trusted(digits);
    }
    const std::string padding(size_t(std::max<int64_t>(c.width - text.length(), 0)), ' ');
    LITE_TRY(r.budget.spend_bytes(text.bytes().size() + padding.size()));
    if (!c.left) out.append(padding, true);
    out.append(text);
    if (c.left) out.append(padding, true);
  }
  if (used != values.size())
    return invalid_argument("format: ", values.size(), " values, the pattern takes ", used);
  return make_text(std::move(out), &r.budget);
}

}  // namespace dsv3::jinja
