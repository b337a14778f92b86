// dsv3 classify, tag and answer: the heads that are not a language model's, on a text or on token ids.
#include <algorithm>
#include <optional>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/rows.h"

namespace tools {
namespace {

using nlohmann::ordered_json;

struct HeadOptions {
  std::string model, question;
  RowOptions rows;
  ComputeOptions compute;
  int max_tokens = 30;
  bool as_json = false;
};

void require_task(const Model& model, dsv3_task task, const char* command, const char* head) {
  if (get_info(model).task != task)
    fail(command, ": the model has no ", head, " head; dsv3 info shows its architecture");
}

std::string label(const Model& model, size_t i) {
  return dsv3_model_label(model.get(), int32_t(i));
}

// {"label", "score", "scores": {label: probability}, "logits"} of one row of logits.
ordered_json classified(const Model& model, const std::vector<float>& logits) {
  const std::vector<double> p = softmax(logits);
  const size_t best = size_t(std::max_element(p.begin(), p.end()) - p.begin());
  ordered_json scores = ordered_json::object();
  for (size_t i = 0; i < p.size(); ++i) scores[label(model, i)] = p[i];
  return {{"label", label(model, best)}, {"score", p[best]}, {"scores", scores}, {"logits", logits}};
}

void classify(const HeadOptions& o) {
  const Model model = open_model(o.model, o.compute);
  require_task(model, DSV3_TASK_SEQUENCE_CLASSIFICATION, "classify", "sequence classification");
  std::string given;
  const std::vector<Row> rows = o.rows.read(model, &given);
  const dsv3_model_info info = get_info(model);
  const bool one_length =
      std::all_of(rows.begin(), rows.end(), [&](const Row& r) { return r.ids.size() == rows[0].ids.size(); });
  if (rows.size() > 1 && info.pad_token_id < 0 && one_length)
    fail("classify: ", rows.size(),
         " rows of one length, but the model has no pad_token_id to tell padding by; give them one by one");
  for (const Row& row : rows) {
    const ordered_json result = classified(model, evaluate(model, o.compute, row, false).values[0]);
    write_stdout(o.as_json
                     ? one_line(result) + "\n"
                     : text(result["label"].get<std::string>(), "\t", result["score"].get<double>(), "\n"));
  }
}

void tag(const HeadOptions& o) {
  const Model model = open_model(o.model, o.compute);
  require_task(model, DSV3_TASK_TOKEN_CLASSIFICATION, "tag", "token classification");
  std::string given;
  const std::vector<Row> rows = o.rows.read(model, &given);
  const dsv3_tokenizer* tokenizer = nullptr;
  if (o.rows.ids.empty()) check(dsv3_model_tokenizer(model.get(), &tokenizer));
  for (const Row& row : rows) {
    const Outputs out = evaluate(model, o.compute, row, true);
    const Offsets offsets = character_offsets(given, row.spans);
    ordered_json tokens = ordered_json::array();
    std::string lines;
    for (size_t i = 0; i < out.values.size(); ++i) {
      ordered_json token = {{"token", row.dropped + int64_t(i)}, {"id", row.ids[i]}};
      std::string bytes;
      if (tokenizer) {
        bytes = detokenize(tokenizer, &row.ids[i], 1, DSV3_CONTINUES);
        token["text"] = bytes;
        token["start"] = offsets.begin[i];
        token["end"] = offsets.end[i];
      }
      token.update(classified(model, out.values[i]));
      lines += text(tokenizer ? one_line(bytes) : std::to_string(row.ids[i]), "\t",
                    token["label"].get<std::string>(), "\t", token["score"].get<double>(), "\n");
      tokens.push_back(std::move(token));
    }
    write_stdout(o.as_json ? one_line(tokens) + "\n" : lines);
  }
}

struct Span {
  size_t begin = 0, end = 0;  // tokens, both in the answer
  double score = 0;
};

// The span with the largest product of probabilities, of at most max_tokens tokens from `first` on; none if there
// are no tokens.
std::optional<Span> best_span(const std::vector<double>& start, const std::vector<double>& end, size_t first,
                              size_t max_tokens) {
  std::optional<Span> best;
  for (size_t i = first; i < start.size(); ++i)
    for (size_t j = i; j < std::min(end.size(), i + max_tokens); ++j)
      if (!best || start[i] * end[j] > best->score) best = Span{i, j, start[i] * end[j]};
  return best;
}

void answer(const HeadOptions& o) {
  const Model model = open_model(o.model, o.compute);
  require_task(model, DSV3_TASK_QUESTION_ANSWERING, "answer", "question answering");
  if (o.rows.ids.empty() && o.question.empty()) fail("answer: --question is missing");
  std::string context;
  std::vector<Row> rows = o.rows.read(model, &context);
  size_t first = 0;  // token of the context
  const dsv3_tokenizer* tokenizer = nullptr;
  std::vector<dsv3_span> spans;  // of the context
  if (o.rows.ids.empty()) {      // the model reads the question, then the context
    check(dsv3_model_tokenizer(model.get(), &tokenizer));
    const std::vector<int32_t> context_ids = tokenize_spans(tokenizer, context, 0, &spans);
    std::vector<int32_t> ids = tokenize(tokenizer, o.question, DSV3_BOS_AUTO);
    first = ids.size();
    ids.insert(ids.end(), context_ids.begin(), context_ids.end());
    rows = {{ids, std::vector<uint8_t>(ids.size(), 1), {}}};
  }
  for (const Row& row : rows) {
    const Outputs out = evaluate(model, o.compute, row, true);
    std::vector<float> start, end;
    for (const std::vector<float>& v : out.values) {
      start.push_back(v[0]);
      end.push_back(v[1]);
    }
    const std::optional<Span> span = best_span(softmax(start), softmax(end), first, size_t(o.max_tokens));
    if (!span) fail("answer: the text has no tokens");
    const int64_t before = row.dropped - int64_t(first);
    const int64_t first_token = before + int64_t(span->begin), last_token = before + int64_t(span->end);
    ordered_json result = {{"score", span->score}, {"first_token", first_token}, {"last_token", last_token}};
    std::string words;
    if (tokenizer) {
      const Offsets offsets = character_offsets(context, spans);
      const int64_t begin = offsets.begin[span->begin - first], end = offsets.end[span->end - first];
      words = characters(context, begin, end);  // whole ones, even if the tokens are not
      result.update({{"answer", words}, {"start", begin}, {"end", end}});
    }
    result["padding_before"] = row.dropped;  // for which there are no logits
    result["start_logits"] = start;
    result["end_logits"] = end;
    if (o.as_json)
      write_stdout(one_line(result) + "\n");
    else
      write_stdout(tokenizer ? words + "\n"
                             : text("tokens ", first_token, "-", last_token, "\t", span->score, "\n"));
  }
}

CLI::App* add_head(CLI::App* program, const char* name, const char* what, void (*run)(const HeadOptions&),
                   std::shared_ptr<HeadOptions> o) {
  CLI::App* command = program->add_subcommand(name, what);
  command->add_option("MODEL", o->model, "packed file")->required();
  o->rows.add_to(command);
  o->compute.add_to(command);
  command->add_flag("--json", o->as_json, "JSON, a line a row, with all scores and logits");
  command->callback([o, run] { run(*o); });
  return command;
}

}  // namespace

void add_heads(CLI::App* program) {
  add_head(program, "classify", "The label of a text (sequence classification models)", classify,
           std::make_shared<HeadOptions>());
  add_head(program, "tag", "The label of every token of a text (token classification models)", tag,
           std::make_shared<HeadOptions>());
  const auto o = std::make_shared<HeadOptions>();
  CLI::App* command = add_head(
      program, "answer", "The part of a text that answers a question (question answering models)", answer, o);
  command->add_option("-q,--question", o->question, "the question");
  command->add_option("--max-tokens", o->max_tokens, "most tokens of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
}

}  // namespace tools
