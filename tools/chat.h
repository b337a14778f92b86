// Conversations for the subcommands: a model's chat template, and what it writes split into its parts.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/common.h"

namespace tools {

struct FreeTemplate {
  void operator()(dsv3_template* chat_template) const { dsv3_template_free(chat_template); }
};
using Template = std::unique_ptr<dsv3_template, FreeTemplate>;

Template model_template(const Model& model);

// The text, or its ids; `what` begins the message when there is none.
std::string render(const dsv3_template* chat_template, std::string_view arguments, const std::string& what);
std::vector<int32_t> render_ids(const dsv3_template* chat_template, const dsv3_tokenizer* tokenizer,
                                std::string_view arguments, const std::string& what);

// The template's arguments for one question, as JSON.
struct ChatOptions {
  bool chat = false;
  std::optional<std::string> system, thinking;  // thinking: "on", "off"

  CLI::Option* add_to(CLI::App* command);  // gives --chat
  std::string arguments(const std::string& question) const;
};

// An answer as rows of JSON: {"reasoning"}, {"content"}, {"tool_call": {"id", "name", "arguments"}}, {"note"}.
class AnswerRows {
 public:
  // `prompt`: what the model goes on from.
  explicit AnswerRows(std::string_view prompt);
  void add(std::string_view text);  // whole characters
  // Why the answer ends: "stop", "length", "interrupted".
  void finish(const char* end, int64_t prompt_tokens, int64_t tokens);

 private:
  void write();

  struct Free {
    void operator()(dsv3_output* output) const { dsv3_output_free(output); }
  };
  std::unique_ptr<dsv3_output, Free> output_;
};

}  // namespace tools
