#include "text/chat_template.h"

#include <algorithm>

#include "text/json_fields.h"

namespace dsv3 {

using lite::Json;
using lite::str;

namespace {

constexpr std::string_view kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};
constexpr std::string_view kToolUse = "tool_use";

// A special token as the files write it: a string, or an object with "content"; null for none.
const std::string* token_text(const Json& value) {
  return value.object() ? field(value, "content").string() : value.string();
}

// Where a checkpoint's templates are.
struct Sources {
  const Tokenizer::Files& files;
  Json config, processor;  // tokenizer_config.json, chat_template.json

  // "chat_template" of one of the files: the text of template `name`, "default" for the one without a name.
  static Result<const std::string*> in_config(const Json& json, std::string_view name) {
    const Json& given = field(json, "chat_template");
    if (given.string()) return name == "default" ? given.string() : nullptr;
    if (given.is_null()) return nullptr;
    if (!given.array())
      return lite::corrupt("chat_template: got ", given.type_name(), ", expected a string or a list");
    for (const Json& entry : *given.array()) {
      const std::string *entry_name = field(entry, "name").string(),
                        *text = field(entry, "template").string();
      if (!entry_name || !text)
        return lite::corrupt("chat_template: expected a list of {\"name\", \"template\"}");
      if (*entry_name == name) return text;
    }
    return nullptr;
  }

  // The template and where it is from; no value when there is none.
  Result<std::optional<jinja::Template>> find(std::string_view name) const {
    const std::string file =
        name == "default" ? "chat_template.jinja" : str("additional_chat_templates/", name, ".jinja");
    if (const std::string_view* text = files(file)) return parse(*text, file);
    for (const auto* json : {&config, &processor}) {
      const char* origin = json == &config ? "tokenizer_config.json" : "chat_template.json";
      const auto text = in_config(*json, name);
      if (!text.ok()) return text.status().in(origin);
      if (*text) return parse(**text, origin);
    }
    return std::optional<jinja::Template>();
  }

  static Result<std::optional<jinja::Template>> parse(std::string_view text, const std::string& origin) {
    Result<jinja::Template> parsed = jinja::Template::parse(text);
    if (!parsed.ok()) return parsed.status().in(origin);
    return std::optional<jinja::Template>(std::move(*parsed));
  }
};

Result<Json> read_json(const Tokenizer::Files& files, const char* name) {
  const std::string_view* text = files(name);
  return text ? Json::parse(*text, name) : Result<Json>(Json());
}

}  // namespace

Result<ChatTemplate> ChatTemplate::open(const Tokenizer::Files& files, std::string_view name) {
  ChatTemplate out;
  LITE_ASSIGN(Json config, read_json(files, "tokenizer_config.json"));
  LITE_ASSIGN(Json processor, read_json(files, "chat_template.json"));
  const Sources sources{files, std::move(config), std::move(processor)};
  const std::string wanted(name.empty() ? "default" : name);
  if (wanted.find('/') != std::string::npos)
    return lite::invalid_argument("chat template: \"", wanted, "\" is no name of one");
  LITE_ASSIGN(std::optional<jinja::Template> found, sources.find(wanted));
  if (!found)
    return lite::not_found("chat template: ", name.empty()
                                                  ? "the checkpoint has none"
                                                  : str("the checkpoint has none named \"", wanted, "\""));
  out.templates_.emplace("", std::move(*found));
  if (name.empty()) {
    LITE_ASSIGN(std::optional<jinja::Template> tool_use, sources.find(kToolUse));
    if (tool_use) out.templates_.emplace(kToolUse, std::move(*tool_use));
  }
  out.add_special_tokens(sources.config);
  LITE_ASSIGN(const Json map, read_json(files, "special_tokens_map.json"));
  out.add_special_tokens(map);
  return out;
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, const Json& special_tokens) {
  ChatTemplate out;
  LITE_ASSIGN(jinja::Template parsed, jinja::Template::parse(source));
  out.templates_.emplace("", std::move(parsed));
  if (!special_tokens.is_null() && !special_tokens.object())
    return lite::invalid_argument("chat template: special tokens: got ", special_tokens.type_name(),
                                  ", expected an object");
  if (special_tokens.object())
    for (const auto& [name, value] : *special_tokens.object()) {
      if (std::find(std::begin(kSpecialTokens), std::end(kSpecialTokens), name) == std::end(kSpecialTokens))
        return lite::invalid_argument("chat template: special tokens: ", quoted(name),
                                      " is none of bos_token, ",
                                      "eos_token, unk_token, sep_token, pad_token, cls_token, mask_token");
      if (!value.is_null() && !token_text(value))
        return lite::invalid_argument("chat template: special tokens: ", name, ": got ", value.type_name(),
                                      ", expected a string, or an object with \"content\"");
    }
  out.add_special_tokens(special_tokens);
  return out;
}

void ChatTemplate::add_special_tokens(const Json& config) {
  for (const std::string_view name : kSpecialTokens) {
    const std::string* text = token_text(field(config, name));
    const bool known = std::any_of(special_tokens_.begin(), special_tokens_.end(),
                                   [&](const jinja::Variable& v) { return v.name == name; });
    if (text && !known) special_tokens_.push_back({std::string(name), *text, true});
  }
}

Result<jinja::Rendered> ChatTemplate::render(const Json& arguments, std::optional<int64_t> local_time) const {
  if (!arguments.object())
    return lite::invalid_argument("chat template: arguments: got ", arguments.type_name(),
                                  ", expected an object");
  std::vector<jinja::Variable> variables = special_tokens_;
  for (const auto& [name, value] : *arguments.object()) {
    size_t i = 0;
    while (i < special_tokens_.size() && special_tokens_[i].name != name) ++i;
    if (i == special_tokens_.size()) {
      variables.push_back({name, value, false});
    } else if (!value.string() || *value.string() != *variables[i].value.string()) {
      variables[i] = {name, value, false};  // the caller's word for it, which may be anything
    }
  }
  const Json::Array* tools = field(arguments, "tools").array();
  const auto tool_use = templates_.find(kToolUse);
  const bool use_tools = tools && !tools->empty() && tool_use != templates_.end();
  return (use_tools ? tool_use : templates_.find(""))->second.render(variables, local_time);
}

}  // namespace dsv3
