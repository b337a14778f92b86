// dsv3 render: conversations through a chat template, without a model.
#include <iostream>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/chat.h"

namespace tools {
namespace {

using nlohmann::ordered_json;

struct RenderOptions {
  std::string path, messages = "-", name;
  bool jsonl = false, ids = false;
};

Template open(const RenderOptions& o) {
  dsv3_template* opened = nullptr;
  check(dsv3_template_open(o.path.c_str(), o.name.empty() ? nullptr : o.name.c_str(), &opened));
  return Template(opened);
}

std::string one_line(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

// The members stand in the order they were given in: templates write them so.
ordered_json parse(const std::string& bytes, const std::string& what) {
  constexpr int kDeepest = 200;  // what comes after would be walked by functions that call themselves
  try {
    return ordered_json::parse(bytes, [&](int depth, ordered_json::parse_event_t, ordered_json&) {
      if (depth > kDeepest) fail(what, ": it is nested deeper than ", kDeepest);
      return true;
    });
  } catch (const ordered_json::exception& e) {
    const std::string_view reason =
        e.what();  // "[json.exception.parse_error.101] parse error at line 1, ..."
    fail(what, ": ", reason.substr(reason.find("] ") + 2));
  }
}

// A list of messages, to be answered; or an object, which is the template's arguments as they are.
std::string arguments_of(const ordered_json& given, const std::string& what) {
  if (given.is_object()) return one_line(given);
  if (!given.is_array())
    fail(what, ": got ", given.type_name(), ", expected a list of messages or an object");
  const ordered_json arguments = {
      {"messages", given}, {"tools", nullptr}, {"documents", nullptr}, {"add_generation_prompt", true}};
  return one_line(arguments);
}

ordered_json render_row(const dsv3_template* chat_template, const std::string& line,
                        const std::string& what) {
  std::string error;
  try {
    const ordered_json row = parse(line, what);
    const auto given = row.is_object() ? row.find("arguments") : row.end();
    if (given == row.end() || !given->is_object())
      fail(what, ": expected an object with an object \"arguments\"");
    if (const auto text = render(chat_template, one_line(*given), &error)) return {{"text", *text}};
  } catch (const Failure& e) {
    error = e.message;
  }
  return {{"error", error}};
}

void render_rows(const dsv3_template* chat_template) {
  std::string line;
  std::ios::sync_with_stdio(false);  // else reading is slow, and a read error looks like an end
  for (int64_t number = 1; std::getline(std::cin, line); ++number)
    write_stdout(one_line(render_row(chat_template, line, text("standard input, line ", number))) + "\n");
  if (std::cin.bad()) fail("read standard input failed");
}

void run_render(const RenderOptions& o) {
  const Template chat_template = open(o);
  if (o.jsonl) return render_rows(chat_template.get());
  const std::string what = o.messages == "-" ? "standard input" : o.messages;
  const std::string arguments = arguments_of(parse(read_file(o.messages), what), what);
  if (o.ids) {
    dsv3_tokenizer* tokenizer = nullptr;
    check(dsv3_tokenizer_open(o.path.c_str(), &tokenizer));
    const Tokenizer owner(tokenizer);
    return write_stdout(one_line(render_ids(chat_template.get(), tokenizer, arguments)) + "\n");
  }
  std::string error;
  const auto text = render(chat_template.get(), arguments, &error);
  if (!text) fail("render ", what, ": ", error);
  write_stdout(*text);
}

}  // namespace

void add_render(CLI::App* program) {
  const auto o = std::make_shared<RenderOptions>();
  CLI::App* command =
      program->add_subcommand("render", "Messages through a chat template: the text, or its token ids");
  command->add_option("MODEL", o->path, "packed file, checkpoint folder, or a template's file named *.jinja")
      ->required();
  CLI::Option* messages =
      command
          ->add_option("--messages", o->messages,
                       "JSON file: a list of messages, or an object with all of the template's arguments;\n"
                       "- (default): standard input")
          ->type_name("FILE");
  command->add_option("--name", o->name, "one of several templates (\"tool_use\")")->type_name("NAME");
  CLI::Option* ids =
      command->add_flag("--ids", o->ids, "write token ids; special tokens only where the template put them");
  command
      ->add_flag("--jsonl", o->jsonl,
                 "read rows {\"arguments\": object} from standard input, write a row {\"text\"} or "
                 "{\"error\"} for each")
      ->excludes(messages)
      ->excludes(ids);
  command->callback([o] { run_render(*o); });
}

}  // namespace tools
