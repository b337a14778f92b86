// Values as text: str(), repr() and JSON, character for character as Python writes them.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "text/jinja/value.h"
#include "text/utf8.h"

namespace dsv3::jinja {

using lite::invalid_argument;

namespace {

std::string hex(const char* format, uint32_t value) {
  char out[16];
  std::snprintf(out, sizeof out, format, value);
  return out;
}

Status repr_text(const Text& text, Text* out, Budget* budget) {
  LITE_TRY(budget->spend_bytes(text.bytes().size()));
  const std::string& bytes = text.bytes();
  const bool trusted = text.is_trusted();
  const bool single = bytes.find('\'') != std::string::npos && bytes.find('"') == std::string::npos;
  const char quote = single ? '"' : '\'';
  std::string s(1, quote);
  for (size_t at = 0; at < bytes.size();) {
    const Decoded c = utf8_decode_valid(bytes.data() + at);
    const std::string_view character = std::string_view(bytes).substr(at, c.length);
    at += c.length;
    const uint32_t p = c.code_point;
    if (p == uint32_t(quote) || p == '\\') {
      (s += '\\') += char(p);
    } else if (p == '\n') {
      s += "\\n";
    } else if (p == '\r') {
      s += "\\r";
    } else if (p == '\t') {
      s += "\\t";
    } else if (is_printable(p)) {
      s += character;
    } else {
      s += p < 0x100 ? hex("\\x%02x", p) : p < 0x10000 ? hex("\\u%04x", p) : hex("\\U%08x", p);
    }
  }
  s += quote;
  out->append(s, trusted);
  return {};
}

Status put_repr(const Value& v, Text* out, Budget* budget);

Status put_scalar(const Value& v, Text* out, Budget* budget) {
  const auto put = [out](std::string_view s) { out->append(s, true); };
  if (v.is_none()) {
    put("None");
  } else if (const bool* b = v.boolean()) {
    put(*b ? "True" : "False");
  } else if (const int64_t* i = v.integer()) {
    put(std::to_string(*i));
  } else if (const std::string* digits = v.wide_integer()) {
    LITE_TRY(budget->spend_bytes(digits->size()));
    put(*digits);
  } else if (const double* d = v.real()) {
    put(float_text(*d));
  } else {
    return invalid_argument("a ", v.type(), " has no text");
  }
  return {};
}

Status put_items(const Values& items, Text* out, Budget* budget) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i) out->append(", ", true);
    LITE_TRY(put_repr(items[i], out, budget));
  }
  return {};
}

Status put_repr(const Value& v, Text* out, Budget* budget) {
  LITE_TRY(budget->spend(2));
  if (v.is_undefined()) {
    out->append("Undefined", true);
    return {};
  }
  if (const Text* t = v.text()) return repr_text(*t, out, budget);
  if (const Sequence* s = v.sequence(); s && s->kind <= Sequence::Kind::Tuple) {
    const bool list = s->kind == Sequence::Kind::List;
    out->append(list ? "[" : "(", true);
    LITE_TRY(put_items(s->items, out, budget));
    out->append(list ? "]" : s->items.size() == 1 ? ",)" : ")", true);
    return {};
  }
  if (const Dict* d = v.dict()) {
    out->append("{", true);
    for (size_t i = 0; i < d->items.size(); ++i) {
      if (i) out->append(", ", true);
      LITE_TRY(put_repr(d->items[i].first, out, budget));
      out->append(": ", true);
      LITE_TRY(put_repr(d->items[i].second, out, budget));
    }
    out->append("}", true);
    return {};
  }
  return put_scalar(v, out, budget);
}

}  // namespace

// repr(): the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on.
std::string float_text(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v < 0 ? "-inf" : "inf";
  char buffer[64];
  const double size = std::fabs(v);
  const bool plain = v == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, v,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  if (plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

Result<Text> repr(const Value& v, Budget* budget) {
  Text out;
  LITE_TRY(put_repr(v, &out, budget));
  return out;
}

Result<Text> to_text(const Value& v, Budget* budget) {
  if (const Text* t = v.text()) {
    LITE_TRY(budget->spend_bytes(t->bytes().size()));
    return *t;
  }
  if (v.is_undefined()) return Text();
  return repr(v, budget);
}

namespace {

struct JsonWriter {
  const JsonStyle& style;
  Budget* budget;
  Text out;

  void put(std::string_view s) { out.append(s, true); }

  void escape(const Decoded& c, std::string_view character, std::string* s) const {
    const uint32_t p = c.code_point;
    switch (p) {
      case '"': *s += "\\\""; return;
      case '\\': *s += "\\\\"; return;
      case '\n': *s += "\\n"; return;
      case '\r': *s += "\\r"; return;
      case '\t': *s += "\\t"; return;
      case '\b': *s += "\\b"; return;
      case '\f': *s += "\\f"; return;
    }
    if (p < 0x20 || (style.ensure_ascii && p >= 0x7F && p < 0x10000))
      *s += p == 0x7F ? "\x7f" : hex("\\u%04x", p);
    else if (style.ensure_ascii && p >= 0x10000)
      *s += hex("\\u%04x", 0xD800 + ((p - 0x10000) >> 10)) + hex("\\u%04x", 0xDC00 + (p & 0x3FF));
    else
      *s += character;
  }

  Status text(const Text& text) {
    LITE_TRY(budget->spend_bytes(text.bytes().size()));
    std::string s = "\"";
    for (size_t at = 0; at < text.bytes().size();) {
      const Decoded c = utf8_decode_valid(text.bytes().data() + at);
      escape(c, std::string_view(text.bytes()).substr(at, c.length), &s);
      at += c.length;
    }
    out.append(s + "\"", text.is_trusted());
    return {};
  }

  void number(const Value& v) {
    if (const double* d = v.real())
      put(std::isnan(*d) ? "NaN" : std::isinf(*d) ? (*d < 0 ? "-Infinity" : "Infinity") : float_text(*d));
    else
      put(v.boolean() ? (*v.boolean() ? "true" : "false") : std::to_string(*v.integer()));
  }

  Status line(size_t level) {
    if (!style.indent) return {};
    LITE_TRY(budget->spend_bytes(style.indent->size() * level));
    std::string s = "\n";
    for (size_t i = 0; i < level; ++i) s += *style.indent;
    put(s);
    return {};
  }

  Status key(const Value& v) {
    if (v.text()) return text(*v.text());
    put("\"");
    LITE_TRY(value(v, 0));
    put("\"");
    return {};
  }

  Status list(const Values& items, size_t level) {
    if (items.empty()) {
      put("[]");
      return {};
    }
    put("[");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out.append(style.item_separator);
      LITE_TRY(line(level + 1));
      LITE_TRY(value(items[i], level + 1));
    }
    LITE_TRY(line(level));
    put("]");
    return {};
  }

  Status dict(const Dict& d, size_t level) {
    if (d.items.empty()) {
      put("{}");
      return {};
    }
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : d.items) items.push_back(&item);
    if (style.sort_keys) {
      for (const auto* item : items)
        if (!item->first.text()) return invalid_argument("tojson: sort_keys with keys that are not strings");
      LITE_TRY(budget->spend(int64_t(items.size()) * 16));
      std::sort(items.begin(), items.end(), [](const auto* a, const auto* b) {
        return a->first.text()->bytes() < b->first.text()->bytes();
      });
    }
    put("{");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out.append(style.item_separator);
      LITE_TRY(line(level + 1));
      LITE_TRY(key(items[i]->first));
      out.append(style.key_separator);
      LITE_TRY(value(items[i]->second, level + 1));
    }
    LITE_TRY(line(level));
    put("}");
    return {};
  }

  Status value(const Value& v, size_t level) {
    LITE_TRY(budget->spend(2));
    if (v.text()) return text(*v.text());
    if (v.number()) {
      number(v);
    } else if (const std::string* digits = v.wide_integer()) {
      LITE_TRY(budget->spend_bytes(digits->size()));
      put(*digits);
    } else if (v.is_none()) {
      put("null");
    } else if (const Sequence* s = v.sequence(); s && s->kind <= Sequence::Kind::Tuple) {
      return list(s->items, level);
    } else if (v.dict()) {
      return dict(*v.dict(), level);
    } else {
      return invalid_argument("tojson: a ", v.type(), " is no JSON",
                              v.is_undefined() ? ": " + *v.as_undefined()->what : std::string());
    }
    return {};
  }
};

}  // namespace

Result<Text> to_json(const Value& v, const JsonStyle& style, Budget* budget) {
  JsonWriter writer{style, budget, {}};
  LITE_TRY(writer.value(v, 0));
  return std::move(writer.out);
}

}  // namespace dsv3::jinja
