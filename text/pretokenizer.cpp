#include "text/pretokenizer.h"

#include "text/json_fields.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

namespace {

constexpr size_t kMaxSteps = 16;  // the released tokenizers have at most 7

// What ByteLevel with use_regex cuts by: GPT-2's pattern (byte_level.rs of Hugging Face tokenizers).
constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

Result<PreTokenizer> PreTokenizer::read(const Json& json) {
  PreTokenizer out;
  LITE_ASSIGN(const std::string type, type_of(json));
  if (type == "Sequence") {
    const Json::Array* steps = field(json, "pretokenizers").array();
    if (!steps)
      return lite::corrupt("pretokenizers: got ", field(json, "pretokenizers").type_name(),
                           ", expected a list");
    if (steps->size() > kMaxSteps)
      return lite::unsupported("a Sequence of ", steps->size(), " pre-tokenizers, at most ", kMaxSteps);
    for (size_t i = 0; i < steps->size(); ++i) LITE_TRY(out.add_step((*steps)[i]).in(lite::str("step ", i)));
  } else {
    LITE_TRY(out.add_step(json));
  }
  if (!out.byte_level_)
    return lite::unsupported("a pre-tokenizer that does not end with ByteLevel is not supported");
  return out;
}

Result<PreTokenizer> PreTokenizer::split_by(std::string_view pattern) {
  PreTokenizer out;
  LITE_TRY(out.add_pattern(pattern));
  return out;
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
  if (type == "Digits") {
    LITE_ASSIGN(const bool individual, bool_field(json, "individual_digits", false));
    return add_pattern(individual ? "\\p{N}" : "\\p{N}+");
  }
  return lite::unsupported(type, " is not supported; supported are Sequence, Split, Digits, ByteLevel");
}

Status PreTokenizer::add_split(const Json& json) {
  const Json& behavior = field(json, "behavior");
  if (!behavior.string() || *behavior.string() != "Isolated")
    return lite::unsupported("behavior ", behavior.dump(), " is not supported, only \"Isolated\"");
  LITE_ASSIGN(const bool invert, bool_field(json, "invert", false));
  if (invert) return lite::unsupported("invert is not supported");
  const Json& pattern = field(json, "pattern");
  if (const std::string* regex = field(pattern, "Regex").string()) return add_pattern(*regex);
  const std::string* text = field(pattern, "String").string();
  if (!text) return lite::corrupt("pattern: neither a Regex nor a String");
  LITE_ASSIGN(Regex literal, Regex::literal(*text));
  steps_.push_back(std::move(literal));
  return {};
}

// The bytes themselves are mapped nowhere: vocabulary and merges are read as bytes.
Status PreTokenizer::add_byte_level(const Json& json) {
  LITE_ASSIGN(const bool add_prefix_space, bool_field(json, "add_prefix_space", true));
  LITE_ASSIGN(const bool use_regex, bool_field(json, "use_regex", true));
  if (add_prefix_space) return lite::unsupported("add_prefix_space is not supported");
  byte_level_ = true;
  return use_regex ? add_pattern(kGpt2) : Status();
}

}  // namespace dsv3
