// dsv3 render: conversations through a chat template, without a model.
#include <iostream>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/chat.h"

namespace tools {
namespace {

using nlohmann::json;
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

// Where the value of a member stands in the text of an object, which is valid JSON.
std::string_view member(std::string_view object, const std::string& wanted) {
  int depth = 0;
  bool in_string = false;
  size_t begin = 0;  // of what is being read: a member's name, then its value
  std::string name;
  for (size_t i = 0; i < object.size(); ++i) {
    const char c = object[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
      continue;
    }
    in_string = c == '"';
    if (depth == 1 && c == ':') name = json::parse(object.substr(begin, i - begin)).get<std::string>();
    if (depth == 1 && (c == ',' || c == '}') && name == wanted) return object.substr(begin, i - begin);
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (depth == 1 && (c == '{' || c == ',' || c == ':')) begin = i + 1;
  }
  fail("no member \"", wanted, "\"");
}

// A list of messages, to be answered; or an object, which is the template's arguments. Its bytes are kept: members stand
// in the order they were given in, as templates write them so.
std::string arguments_of(std::string bytes, const std::string& what) {
  if (bytes.starts_with("\xEF\xBB\xBF")) bytes.erase(0, 3);  // with which some editors begin a file
  const json given = parse_json(bytes, what);
  if (given.is_object()) return bytes;
  if (!given.is_array())
    fail(what, ": got ", given.type_name(), ", expected a list of messages or an object");
  return "{\"messages\": " + bytes +
         ", \"tools\": null, \"documents\": null, \"add_generation_prompt\": true}";
}

ordered_json render_row(const dsv3_template* chat_template, const std::string& line,
                        const std::string& what) {
  try {
    const json row = parse_json(line, what);
    const auto given = row.is_object() ? row.find("arguments") : row.end();
    if (given == row.end() || !given->is_object())
      fail(what, ": expected an object with an object \"arguments\"");
    return {{"text", render(chat_template, member(line, "arguments"), what)}};
  } catch (const Failure& e) {
    return {{"error", e.message}};
  }
}

void render_rows(const dsv3_template* chat_template) {
  std::string line;
  std::ios::sync_with_stdio(false);  // else reading is slow, and a read error looks like an end
  for (int64_t number = 1; std::getline(std::cin, line); ++number)
    write_stdout(one_line(render_row(chat_template, line, text("standard input, line ", number))) + "\n");
  if (std::cin.bad()) fail("read standard input failed");
}

void run_render(const RenderOptions& o) {
  if (o.ids && o.path.ends_with(".jinja"))
    fail("render ", o.path,
         ": --ids needs a tokenizer, and this is a template by itself; give the packed file or "
         "the checkpoint's folder");
  const Template chat_template = open(o);
  if (o.jsonl) return render_rows(chat_template.get());
  const std::string name = o.messages == "-" ? "standard input" : o.messages, what = "render " + name;
  const std::string arguments = arguments_of(read_file(o.messages), name);
  if (!o.ids) return write_stdout(render(chat_template.get(), arguments, what));
  dsv3_tokenizer* tokenizer = nullptr;
  check(dsv3_tokenizer_open(o.path.c_str(), &tokenizer));
  const Tokenizer owner(tokenizer);
  write_stdout(one_line(render_ids(chat_template.get(), tokenizer, arguments, what)) + "\n");
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
