// A checkpoint's chat template: messages, tools and flags to the text that the model was trained on.
//
// Special tokens come only from the template and the checkpoint, never from what somebody typed: the result says
// which bytes these wrote, and the tokenizer reads special tokens there alone.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"
#include "text/jinja/template.h"
#include "text/tokenizer.h"

namespace dsv3 {

class ChatTemplate {
 public:
  // The template `name` of a checkpoint, from its files: chat_template.jinja, or else tokenizer_config.json's or
  // chat_template.json's "chat_template", a string or a list of named ones; additional_chat_templates/NAME.jinja.
  // Without a name "default", and "tool_use", if there is one, for arguments with tools. Special tokens are those of
  // tokenizer_config.json and special_tokens_map.json. NotFound; Corrupt and Unsupported as jinja::Template::parse.
  static Result<ChatTemplate> open(const Tokenizer::Files& files, std::string_view name = {});

  // A template by itself; special_tokens: an object such as {"bos_token": "<s>"}, or null.
  static Result<ChatTemplate> parse(std::string_view source, const lite::Json& special_tokens);

  // `arguments` are the template's variables, one object: messages, add_generation_prompt, and whatever else the
  // template reads. Special tokens are there unless arguments name them otherwise. For local_time and errors see
  // jinja::Template::render. Thread-safe.
  Result<jinja::Rendered> render(const lite::Json& arguments, std::optional<int64_t> local_time) const;

 private:
  void add_special_tokens(const lite::Json& config);  // those that are not there yet

  std::map<std::string, jinja::Template, std::less<>> templates_;  // the default one: ""
  std::vector<jinja::Variable> special_tokens_;
};

}  // namespace dsv3
