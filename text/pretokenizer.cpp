#include "text/pretokenizer.h"

#include "text/json_fields.h"
#include "text/utf8.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

namespace {

constexpr size_t kMaxSteps = 16;  // the released tokenizers have at most 7

// What ByteLevel with use_regex cuts by: GPT-2's pattern (byte_level.rs of Hugging Face tokenizers).
constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

Result<Metaspace> read_metaspace(const Json& json) {
  LITE_TRY(
      only_fields(json, {"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"}));
  Metaspace out;
  LITE_ASSIGN(out.replacement, string_field(json, "replacement"));
  if (out.replacement.empty() || utf8_decode(out.replacement).length != out.replacement.size())
    return lite::corrupt("replacement: ", quoted(out.replacement), " is not one character");
  // Files older than prepend_scheme say add_prefix_space.
  LITE_ASSIGN(const bool add_prefix_space, bool_field(json, "add_prefix_space", true));
  std::string scheme = add_prefix_space ? "always" : "never";
  if (!field(json, "prepend_scheme").is_null()) {
    LITE_ASSIGN(scheme, string_field(json, "prepend_scheme"));
  }
  if (!add_prefix_space && scheme != "never")
    return lite::corrupt("add_prefix_space is false and prepend_scheme ", quoted(scheme));
  if (scheme != "always" && scheme != "first" && scheme != "never")
    return lite::unsupported("prepend_scheme ", quoted(scheme), " is not supported");
  out.prepend = scheme == "always"  ? Metaspace::Prepend::Always
                : scheme == "first" ? Metaspace::Prepend::First
                                    : Metaspace::Prepend::Never;
  LITE_ASSIGN(out.split, bool_field(json, "split", true));
  return out;
}

Result<PreTokenizer> PreTokenizer::read(const Json& json) {
  PreTokenizer out;
  LITE_ASSIGN(const std::string type, type_of(json));
  if (type == "null") return out;
  if (type == "Sequence") {
    LITE_TRY(only_fields(json, {"type", "pretokenizers"}));
    LITE_ASSIGN(const Json::Array* steps, list_field(json, "pretokenizers"));
    if (steps->size() > kMaxSteps)
      return lite::unsupported("a Sequence of ", steps->size(), " pre-tokenizers, at most ", kMaxSteps);
    for (size_t i = 0; i < steps->size(); ++i) LITE_TRY(out.add_step((*steps)[i]).in(lite::str("step ", i)));
  } else {
    LITE_TRY(out.add_step(json));
  }
  return out;
}

Result<PreTokenizer> PreTokenizer::split_by(std::string_view pattern) {
  PreTokenizer out;
  LITE_TRY(out.add_pattern(pattern));
  return out;
}

MarkedText PreTokenizer::rewrite(MarkedText text, bool first) const {
  text = replaced(text, " ", metaspace_->replacement);
  const bool wanted = metaspace_->prepend == Metaspace::Prepend::Always ||
                      (metaspace_->prepend == Metaspace::Prepend::First && first);
  if (wanted && !text.text.empty() && !text.text.starts_with(metaspace_->replacement))
    text = prepended(text, metaspace_->replacement);
  return text;
}

Result<std::vector<std::string_view>> PreTokenizer::pieces(std::string_view text,
                                                           const MatchTime& time) const {
  std::vector<std::string_view> pieces, coarser;
  if (!text.empty()) pieces.push_back(text);
  for (const Regex& step : steps_) {
    coarser.swap(pieces);
    pieces.clear();
    for (const std::string_view piece : coarser) LITE_TRY(step.split(piece, time, &pieces));
  }
  return pieces;
}

Status PreTokenizer::add_pattern(std::string_view pattern) {
  LITE_ASSIGN(Regex regex, Regex::compile(pattern));
  steps_.push_back(std::move(regex));
  return {};
}

Status PreTokenizer::add_step(const Json& json) {
  LITE_ASSIGN(const std::string type, type_of(json));
  if (byte_level_) return lite::unsupported(type, " after ByteLevel is not supported");
  if (type == "Split") return add_split(json).in("Split");
  if (type == "ByteLevel") return add_byte_level(json).in("ByteLevel");
  if (type == "Metaspace") return add_metaspace(json).in("Metaspace");
  if (type == "Digits") {
    LITE_TRY(only_fields(json, {"type", "individual_digits"}).in(type));
    LITE_ASSIGN(const bool individual, bool_field(json, "individual_digits", false));
    return add_pattern(individual ? "\\p{N}" : "\\p{N}+");
  }
  return lite::unsupported(type,
                           " is not supported; supported are Sequence, Split, Digits, Metaspace, ByteLevel");
}

Status PreTokenizer::add_split(const Json& json) {
  LITE_TRY(only_fields(json, {"type", "pattern", "behavior", "invert"}));
  const Json& behavior = field(json, "behavior");
  if (!behavior.string() || *behavior.string() != "Isolated")
    return lite::unsupported("behavior ", behavior.dump(), " is not supported, only \"Isolated\"");
  LITE_ASSIGN(const bool invert, bool_field(json, "invert", false));
  if (invert) return lite::unsupported("invert is not supported");
  const Json& pattern = field(json, "pattern");
  LITE_TRY(only_fields(pattern, {"Regex", "String"}).in("pattern"));
  if (const std::string* regex = field(pattern, "Regex").string()) return add_pattern(*regex);
  const std::string* text = field(pattern, "String").string();
  if (!text) return lite::corrupt("pattern: neither a Regex nor a String");
  LITE_ASSIGN(Regex literal, Regex::literal(*text));
  steps_.push_back(std::move(literal));
  return {};
}

// The bytes themselves are mapped nowhere: vocabulary and merges are read as bytes.
Status PreTokenizer::add_byte_level(const Json& json) {
  LITE_TRY(only_fields(json, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  LITE_ASSIGN(const bool add_prefix_space, bool_field(json, "add_prefix_space", true));
  LITE_ASSIGN(const bool use_regex, bool_field(json, "use_regex", true));
  if (add_prefix_space) return lite::unsupported("add_prefix_space is not supported");
  byte_level_ = true;
  return use_regex ? add_pattern(kGpt2) : Status();
}

Status PreTokenizer::add_metaspace(const Json& json) {
  if (metaspace_ || !steps_.empty()) return lite::unsupported("only the first step may be one");
  LITE_ASSIGN(metaspace_, read_metaspace(json));
  const std::string replacement = quoted_pattern(metaspace_->replacement);
  return metaspace_->split ? add_pattern(replacement + "[^" + replacement + "]*") : Status();
}

}  // namespace dsv3
