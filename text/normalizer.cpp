#include "text/normalizer.h"

#include <algorithm>

#include "text/json_fields.h"
#include "text/nfc.h"
#include "text/utf8.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

namespace {

constexpr size_t kMaxSteps = 16;
constexpr int kMaxDepth = 4;  // of Sequences

// Copies a text with changes, and carries along which spans of it are trusted and where its bytes come from.
class Rewriter {
 public:
  explicit Rewriter(const MarkedText& from) : from_(from), span_(from.trusted.begin()) {}

  // Bytes begin..end-1 become `content`. Calls ascend and do not overlap.
  void replace(size_t begin, size_t end, std::string_view content) {
    copy_until(begin);
    if (!from_.source.empty() && begin < end)
      out_.source.insert(out_.source.end(), content.size(),
                         {from_.source[begin].begin, from_.source[end - 1].end});
    if (span_ != from_.trusted.end() && span_->begin <= begin && end <= span_->end)
      trust(out_.text.size(), out_.text.size() + content.size());
    out_.text += content;
    at_ = end;
  }
  void prepend(std::string_view content) {
    replace(0, 0, content);
    if (from_.source.empty()) return;
    const size_t first = std::max<size_t>(utf8_decode(from_.text).length, 1);
    out_.source.insert(out_.source.end(), content.size(),
                       {from_.source[0].begin, from_.source[first - 1].end});
  }
  MarkedText finish() {
    copy_until(from_.text.size());
    return std::move(out_);
  }

 private:
  void copy_until(size_t end) {
    for (; span_ != from_.trusted.end() && span_->begin < end; ++span_) {
      const size_t begin = std::max(span_->begin, at_), stop = std::min(span_->end, end);
      if (begin < stop) trust(out_.text.size() + (begin - at_), out_.text.size() + (stop - at_));
      if (span_->end > end) break;
    }
    out_.text.append(from_.text, at_, end - at_);
    if (!from_.source.empty())
      out_.source.insert(out_.source.end(), from_.source.begin() + ptrdiff_t(at_),
                         from_.source.begin() + ptrdiff_t(end));
    at_ = end;
  }

  void trust(size_t begin, size_t end) {
    if (begin == end) return;
    if (!out_.trusted.empty() && out_.trusted.back().end == begin)
      out_.trusted.back().end = end;
    else
      out_.trusted.push_back({begin, end});
  }

  const MarkedText& from_;
  TextSpans::const_iterator span_;  // the first that ends behind at_
  size_t at_ = 0;                   // what is before it is in out_
  MarkedText out_;
};

// A character of which NFC is itself whatever is before it. Some, not all: the others only cost time.
bool starts_anew(uint32_t c) {
  return c < 0x300 || (c >= 0x3041 && c <= 0x9FFF && c != 0x3099 && c != 0x309A) ||
         (c >= 0xAC00 && c <= 0xD7A3) || (c >= 0xE000 && c <= 0xF8FF) || (c >= 0x1F000 && c <= 0x1FAFF);
}

MarkedText to_nfc(const MarkedText& from) {
  Rewriter out(from);
  const std::string_view text = from.text;
  size_t begin = 0, n = 0;  // of a stretch that depends on nothing before it: its bytes, its characters
  const auto end_stretch = [&](size_t end) {
    if (n < 2 && (n == 0 || starts_anew(utf8_decode_valid(&text[begin]).code_point))) return;
    const std::string_view stretch = text.substr(begin, end - begin);
    if (const std::string normal = nfc(stretch); normal != stretch) out.replace(begin, end, normal);
  };
  for (size_t at = 0; at < text.size();) {
    const Decoded d = utf8_decode(text.substr(at));
    const size_t length = std::max<size_t>(d.length, 1);
    const bool apart = d.length == 0 || unknown_to_reference(d.code_point);  // also what is not UTF-8
    if (apart || starts_anew(d.code_point)) {
      end_stretch(at);
      begin = apart ? at + length : at;
      n = 0;
    }
    if (!apart) ++n;
    at += length;
  }
  end_stretch(text.size());
  return out.finish();
}

}  // namespace

Result<Normalizer> Normalizer::read(const Json& json) {
  Normalizer out;
  LITE_TRY(out.add(json, 0));
  return out;
}

Status Normalizer::add(const Json& json, int depth) {
  LITE_ASSIGN(const std::string type, type_of(json));
  if (type == "null") return {};
  if (type == "Sequence") {
    LITE_TRY(only_fields(json, {"type", "normalizers"}));
    if (depth == kMaxDepth) return lite::unsupported("Sequences more than ", kMaxDepth, " deep");
    LITE_ASSIGN(const Json::Array* steps, list_field(json, "normalizers"));
    for (const Json& step : *steps) LITE_TRY(add(step, depth + 1));
    return {};
  }
  Step step;
  if (type == "NFC") {
    LITE_TRY(only_fields(json, {"type"}).in(type));
    step.kind = Kind::Nfc;
  } else if (type == "Prepend") {
    LITE_TRY(only_fields(json, {"type", "prepend"}).in(type));
    step.kind = Kind::Prepend;
    LITE_ASSIGN(step.content, short_field(json, "prepend"));
  } else if (type == "Replace") {
    LITE_TRY(only_fields(json, {"type", "pattern", "content"}).in(type));
    step.kind = Kind::Replace;
    LITE_ASSIGN(step.pattern, string_pattern(json));
    LITE_ASSIGN(step.content, short_field(json, "content"));
    LITE_TRY(check_growth(step.pattern, step.content, &growth_));
  } else {
    return lite::unsupported(type, " is not supported; supported are Sequence, NFC, Prepend, Replace");
  }
  if (steps_.size() == kMaxSteps) return lite::unsupported("more than ", kMaxSteps, " normalizers");
  steps_.push_back(std::move(step));
  return {};
}

MarkedText Normalizer::apply(MarkedText text) const {
  for (const Step& step : steps_) {
    if (text.text.empty()) break;
    switch (step.kind) {
      case Kind::Nfc: text = to_nfc(text); break;
      case Kind::Prepend: text = prepended(text, step.content); break;
      case Kind::Replace: text = replaced(text, step.pattern, step.content);
    }
  }
  return text;
}

MarkedText prepended(const MarkedText& text, std::string_view content) {
  Rewriter out(text);
  out.prepend(content);
  return out.finish();
}

MarkedText replaced(const MarkedText& text, std::string_view pattern, std::string_view content) {
  Rewriter out(text);
  for (size_t at = 0; (at = text.text.find(pattern, at)) != std::string::npos; at += pattern.size())
    out.replace(at, at + pattern.size(), content);
  return out.finish();
}

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t found = text.find(pattern, at);
    out += text.substr(at, found - at);
    if (found == std::string_view::npos) return out;
    out += content;
    at = found + pattern.size();
  }
}

}  // namespace dsv3
