#include "tools/chat.h"

#include <ctime>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace tools {

using nlohmann::ordered_json;

namespace {

// By the clock on the wall, for strftime_now.
int64_t local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm wall = {};
  localtime_r(&now, &wall);
  return int64_t(now) + wall.tm_gmtoff;
}

void check_render(dsv3_status status, const std::string& what) {
  if (status != DSV3_OK) fail(what, ": ", dsv3_last_error());
}

}  // namespace

Template model_template(const Model& model) {
  dsv3_template* opened = nullptr;
  check(dsv3_model_template(model.get(), nullptr, &opened));
  return Template(opened);
}

std::string render(const dsv3_template* chat_template, std::string_view arguments, const std::string& what) {
  const int64_t now = local_time();
  return read_all<std::string>(2 * arguments.size() + 1024, [&](char* text, size_t capacity, size_t* n) {
    check_render(dsv3_template_render(chat_template, arguments.data(), arguments.size(), &now, text, capacity,
                                      n, nullptr, 0, nullptr),
                 what);
  });
}

std::vector<int32_t> render_ids(const dsv3_template* chat_template, const dsv3_tokenizer* tokenizer,
                                std::string_view arguments, const std::string& what) {
  const int64_t now = local_time();
  return read_all<std::vector<int32_t>>(
      2 * arguments.size() + 1024, [&](int32_t* ids, size_t capacity, size_t* n) {
        check_render(dsv3_template_tokenize(chat_template, tokenizer, arguments.data(), arguments.size(),
                                            &now, ids, capacity, n),
                     what);
      });
}

CLI::Option* ChatOptions::add_to(CLI::App* command) {
  CLI::Option* flag =
      command->add_flag("--chat", chat, "the text is a question, asked with the checkpoint's chat template");
  command->add_option("--system", system, "the system message of the chat")->needs(flag)->type_name("TEXT");
  command
      ->add_option("--thinking", thinking, "whether the model is to think first, if its template can say so")
      ->needs(flag)
      ->check(CLI::IsMember({"on", "off"}));
  return flag;
}

std::string ChatOptions::arguments(const std::string& question) const {
  ordered_json messages = ordered_json::array();
  if (system) messages.push_back({{"role", "system"}, {"content", *system}});
  messages.push_back({{"role", "user"}, {"content", question}});
  ordered_json out = {
      {"messages", messages}, {"tools", nullptr}, {"documents", nullptr}, {"add_generation_prompt", true}};
  if (thinking) out["thinking"] = out["enable_thinking"] = *thinking == "on";
  return one_line(out);
}

AnswerRows::AnswerRows(std::string_view prompt) {
  dsv3_output* output = nullptr;
  check(dsv3_output_new(prompt.data(), prompt.size(), &output));
  output_.reset(output);
}

void AnswerRows::add(std::string_view text) {
  check(dsv3_output_add(output_.get(), text.data(), text.size()));
  write();
}

void AnswerRows::finish(const char* end, int64_t prompt_tokens, int64_t tokens) {
  check(dsv3_output_finish(output_.get()));
  write();
  write_stdout(one_line({{"end", end}, {"prompt_tokens", prompt_tokens}, {"tokens", tokens}}) + "\n");
}

void AnswerRows::write() {
  dsv3_output_event event = {};
  event.struct_size = sizeof event;
  while (dsv3_output_next(output_.get(), &event)) {
    const std::string value(event.text, event.n_bytes);
    ordered_json row;
    switch (event.kind) {
      case DSV3_OUTPUT_CONTENT: row["content"] = value; break;
      case DSV3_OUTPUT_REASONING: row["reasoning"] = value; break;
      case DSV3_OUTPUT_NOTE: row["note"] = value; break;
      case DSV3_OUTPUT_TOOL_CALL:
        row["tool_call"] = {{"id", event.id}, {"name", event.name}, {"arguments", value}};
        break;
    }
    write_stdout(one_line(row) + "\n");
  }
}

}  // namespace tools
