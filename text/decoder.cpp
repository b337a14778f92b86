#include "text/decoder.h"

#include <charconv>

#include "text/json_fields.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/utf8.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

namespace {

constexpr size_t kMaxReplaces = 16;

// The byte that "<0x0A>" stands for; -1: none.
int byte_of(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  int byte = -1;
  const auto [end, error] = std::from_chars(&text[3], &text[5], byte, 16);
  return error == std::errc() && end == &text[5] && byte >= 0 ? byte : -1;
}

}  // namespace

Result<Decoder> Decoder::read(const Json& json) {
  Decoder out;
  LITE_ASSIGN(const std::string type, type_of(json));
  if (type != "Sequence") {
    LITE_TRY(out.add(json));
    return out;
  }
  LITE_TRY(only_fields(json, {"type", "decoders"}));
  LITE_ASSIGN(const Json::Array* steps, list_field(json, "decoders"));
  for (size_t i = 0; i < steps->size(); ++i) LITE_TRY(out.add((*steps)[i]).in(lite::str("step ", i)));
  if ((out.byte_level_ || !out.metaspace_.empty()) && steps->size() > 1)
    return lite::unsupported("ByteLevel or Metaspace together with other steps");
  return out;
}

Status Decoder::add(const Json& json) {
  LITE_ASSIGN(const std::string type, type_of(json));
  if (type == "ByteLevel") {
    byte_level_ = true;
    return only_fields(json, {"type", "add_prefix_space", "trim_offsets", "use_regex"}).in(type);
  }
  if (type == "Metaspace") {
    LITE_ASSIGN(const Metaspace metaspace, read_metaspace(json));
    replaces_.emplace_back(metaspace.replacement, " ");
    if (metaspace.prepend != Metaspace::Prepend::Never) metaspace_ = metaspace.replacement;
    return {};
  }
  if (type == "Fuse") {
    fused_ = true;
    return only_fields(json, {"type"}).in(type);
  }
  if (type == "Strip") {
    LITE_TRY(only_fields(json, {"type", "content", "start", "stop"}).in(type));
    if (!fused_ || n_strip_ > 0) return lite::unsupported("Strip not once, after Fuse");
    LITE_ASSIGN(strip_, string_field(json, "content"));
    if (strip_.empty() || utf8_decode(strip_).length != strip_.size())
      return lite::corrupt("Strip: content: ", quoted(strip_), " is not one character");
    const int64_t *start = field(json, "start").integer(), *stop = field(json, "stop").integer();
    if (!start || !stop || *start < 0 || *stop < 0)
      return lite::corrupt("Strip: start and stop must be numbers of characters");
    if (*stop > 0) return lite::unsupported("Strip at the end of a text (stop ", *stop, ")");
    n_strip_ = size_t(*start);
    return {};
  }
  if (fused_) return lite::unsupported(type, " after Fuse is not supported");
  if (type == "ByteFallback") {
    byte_fallback_ = true;
    return only_fields(json, {"type"}).in(type);
  }
  if (type == "Replace") {
    LITE_TRY(only_fields(json, {"type", "pattern", "content"}).in(type));
    if (byte_fallback_) return lite::unsupported("Replace after ByteFallback is not supported");
    if (replaces_.size() == kMaxReplaces) return lite::unsupported("more than ", kMaxReplaces, " Replaces");
    LITE_ASSIGN(std::string pattern, string_pattern(json));
    LITE_ASSIGN(std::string content, short_field(json, "content"));
    replaces_.emplace_back(std::move(pattern), std::move(content));
    return {};
  }
  return lite::unsupported(type,
                           " is not supported; supported are ByteLevel, Metaspace, and Sequences of "
                           "Replace, ByteFallback, Fuse, Strip");
}

std::string Decoder::bytes(std::string_view text) const {
  std::string out(text);
  for (const auto& [pattern, content] : replaces_) out = replace_all(out, pattern, content);
  if (byte_fallback_)
    if (const int byte = byte_of(out); byte >= 0) return std::string(1, char(byte));
  return out;
}

void Decoder::strip_beginning(std::string_view first_token, std::string* text) const {
  if (!metaspace_.empty())
    text->replace(0, bytes(first_token).size(), replace_all(first_token, metaspace_, ""));
  size_t n = 0;
  while (n < n_strip_ && std::string_view(*text).substr(n * strip_.size()).starts_with(strip_)) ++n;
  text->erase(0, n * strip_.size());
}

}  // namespace dsv3
