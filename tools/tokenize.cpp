// dsv3 tokenize: text to token ids and back, with the tokenizer of a packed file or a checkpoint folder.
#include <iostream>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/common.h"

namespace tools {
namespace {

using nlohmann::json;

struct TokenizeOptions {
  std::string path;
  bool plain = false, bos = false, decode = false, jsonl = false;
};

// For every row {"text": ...} of standard input what the tokenizer makes of it, a row each.
void tokenize_rows(const dsv3_tokenizer* tokenizer) {
  // The beginning that the tokenizer puts before every text by itself (add_bos_token), if any.
  const std::vector<int32_t> beginning = tokenize(tokenizer, "", DSV3_BOS_AUTO);
  constexpr size_t kBuffered = 1 << 16;  // bytes
  std::string line, out;
  std::ios::sync_with_stdio(false);  // else reading is slow, and a read error looks like an end
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    const std::string what = text("standard input, line ", number);
    const json row = parse_json(line, what);
    const auto given = row.find("text");
    if (!row.is_object() || given == row.end() || !given->is_string())
      fail(what, ": expected an object with a string \"text\"");
    const std::string& t = given->get_ref<const std::string&>();

    const std::vector<int32_t> ids = tokenize(tokenizer, t, DSV3_PARSE_ADDED);
    nlohmann::ordered_json result = {
        {"ids", ids},
        {"plain", tokenize(tokenizer, t, 0)},
        {"decoded", detokenize(tokenizer, ids.data(), ids.size(), 0)},
        {"visible", detokenize(tokenizer, ids.data(), ids.size(), DSV3_SKIP_SPECIAL)}};
    if (!beginning.empty()) {
      std::vector<int32_t> with_special = beginning;
      with_special.insert(with_special.end(), ids.begin(), ids.end());
      result["with_special"] = std::move(with_special);
    }
    out += one_line(result) + "\n";
    if (out.size() >= kBuffered) {
      write_stdout(out);
      out.clear();
    }
  }
  if (std::cin.bad()) fail("read standard input failed");
  write_stdout(out);
}

void run_tokenize(const TokenizeOptions& o) {
  dsv3_tokenizer* opened = nullptr;
  check(dsv3_tokenizer_open(o.path.c_str(), &opened));
  const Tokenizer tokenizer(opened);
  if (o.jsonl) {
    tokenize_rows(opened);
  } else if (o.decode) {
    const std::string what = "standard input";
    const std::vector<int32_t> ids = ids_of(parse_json(read_file("-"), what), what);
    write_stdout(detokenize(opened, ids.data(), ids.size(), 0));
  } else {
    const uint32_t flags = (o.plain ? 0 : DSV3_PARSE_ADDED) | (o.bos ? DSV3_BOS : 0);
    write_stdout(one_line(tokenize(opened, read_file("-"), flags)) + "\n");
  }
}

}  // namespace

void add_tokenize(CLI::App* program) {
  const auto o = std::make_shared<TokenizeOptions>();
  CLI::App* command =
      program->add_subcommand("tokenize", "Token ids of standard input, or the text of token ids");
  command->add_option("MODEL", o->path, "packed file or checkpoint folder")->required();
  CLI::Option* plain = command->add_flag("--plain", o->plain, "added tokens (\"<|User|>\") are plain text");
  CLI::Option* bos = command->add_flag("--bos", o->bos, "put the beginning-of-sentence token in front");
  CLI::Option* decode = command->add_flag("--decode", o->decode, "read a JSON list of ids, write their bytes")
                            ->excludes(plain)
                            ->excludes(bos);
  command
      ->add_flag("--jsonl", o->jsonl,
                 "read rows {\"text\"}, write rows {\"ids\": added tokens parsed, \"plain\": not parsed, "
                 "\"decoded\": text of "
                 "ids, \"visible\": without special tokens, \"with_special\": ids with what the checkpoint's "
                 "tokenizer puts "
                 "before every text, if it does}")
      ->excludes(plain)
      ->excludes(bos)
      ->excludes(decode);
  command->callback([o] { run_tokenize(*o); });
}

}  // namespace tools
