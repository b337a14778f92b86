#include "text/generation_config.h"

#include <algorithm>

#include "ggml-lite/json.h"
#include "text/json_fields.h"

namespace dsv3 {

using lite::Json;
using lite::Status;

namespace {

Status wrong_type(std::string_view key, const Json& value, std::string_view expected) {
  return lite::corrupt(key, ": got ", value.type_name(), ", expected ", expected);
}

Status read_number(const Json& json, std::string_view key, double* value) {
  const Json& given = field(json, key);
  return given.is_null() || given.number(value) ? Status() : wrong_type(key, given, "a number");
}

// One id or a list of them. Some files have -1 for none.
Status read_end_ids(const Json& given, std::vector<int32_t>* ids) {
  constexpr std::string_view kKey = "eos_token_id";
  const Json::Array one = {given};
  for (const Json& id : given.array() ? *given.array() : one) {
    if (id.is_null()) continue;
    if (!id.integer()) return wrong_type(kKey, id, "a token id or a list of token ids");
    if (*id.integer() > INT32_MAX) return lite::corrupt(kKey, ": ", *id.integer(), " is no token id");
    if (*id.integer() >= 0) ids->push_back(int32_t(*id.integer()));
  }
  return {};
}

Status read_sampling(const Json& json, Sampling* sampling) {
  LITE_TRY(read_number(json, "repetition_penalty", &sampling->repetition_penalty));
  LITE_ASSIGN(const bool do_sample, bool_field(json, "do_sample", false));
  Sampling asked = *sampling;
  asked.temperature = 1;
  LITE_TRY(read_number(json, "temperature", &asked.temperature));
  LITE_TRY(read_number(json, "top_p", &asked.top_p));
  LITE_TRY(read_number(json, "min_p", &asked.min_p));
  LITE_TRY(read_number(json, "typical_p", &asked.typical_p));
  if (const Json& top_k = field(json, "top_k"); !top_k.is_null()) {
    if (!top_k.integer()) return wrong_type("top_k", top_k, "an integer");
    asked.top_k = int32_t(std::clamp<int64_t>(*top_k.integer(), 0, INT32_MAX));
  }
  if (do_sample) *sampling = asked;
  return sampling->check();
}

lite::Result<GenerationConfig> read(std::string_view text) {
  const std::string what = "read generation_config.json";
  LITE_ASSIGN(const Json json, Json::parse(text, "generation_config.json"));
  if (!json.object()) return lite::corrupt(what, ": got ", json.type_name(), ", expected an object");
  GenerationConfig out;
  LITE_TRY(read_end_ids(field(json, "eos_token_id"), &out.end_ids).in(what));
  LITE_TRY(read_sampling(json, &out.sampling).in(what));
  return out;
}

}  // namespace

lite::Result<GenerationConfig> read_generation_config(std::string_view text) {
  auto config = read(text);
  return config.ok() ? std::move(config)
                     : config.status().with_advice("get the file again, correct it, or leave it out");
}

}  // namespace dsv3
