// dsv3 run: the raw completion of a text, or the answer in a chat, streamed to standard output.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <random>

#include <CLI/CLI.hpp>

#include "tools/chat.h"
#include "tools/common.h"
#include "tools/sampling.h"

namespace tools {
namespace {

struct RunOptions {
  std::string model;
  std::optional<std::string> prompt;
  std::string file = "-";
  bool special = false, ignore_eos = false, quiet = false, json = false;
  ChatOptions chat;
  std::optional<int32_t> n_tokens;
  int32_t context = 0;  // 0: the library's default
  std::optional<uint64_t> seed;
  SamplingOptions sampling;
  ComputeOptions compute;
};

std::string read_prompt(const RunOptions& o) {
  if (o.prompt) return *o.prompt;
  if (o.file == "-" && isatty(STDIN_FILENO) && !o.quiet)
    note("reading the prompt from the terminal; Ctrl-D ends it");
  return read_file(o.file);
}

const dsv3_tokenizer* tokenizer_of(const RunOptions& o, const Model& model) {
  const dsv3_tokenizer* tokenizer = nullptr;
  if (dsv3_model_tokenizer(model.get(), &tokenizer) == DSV3_NOT_FOUND)
    fail("run ", o.model,
         ": the checkpoint came without a tokenizer; \"dsv3 dump --ids\" evaluates token ids");
  else if (!tokenizer)
    fail(dsv3_last_error());
  return tokenizer;
}

struct Prompt {
  std::string text;
  std::vector<int32_t> ids;
};

Prompt prompt_of(const RunOptions& o, const Model& model, const dsv3_tokenizer* tokenizer) {
  Prompt prompt = {read_prompt(o), {}};
  if (o.chat.chat) {
    const Template chat_template = model_template(model);
    const std::string arguments = o.chat.arguments(prompt.text);
    const std::string what = "run " + o.model;
    prompt = {render(chat_template.get(), arguments, what),
              render_ids(chat_template.get(), tokenizer, arguments, what)};
  } else {
    prompt.ids = tokenize(tokenizer, prompt.text, DSV3_BOS_AUTO | (o.special ? DSV3_PARSE_ADDED : 0));
  }
  if (prompt.ids.empty())
    fail("run ", o.model,
         ": the prompt is empty, and this model's texts have no beginning token; write something");
  return prompt;
}

// The answer on its way to standard output: as it is, or as rows of JSON.
class Answer {
 public:
  Answer(const RunOptions& o, const std::string& prompt) : stop_(o.sampling.stops) {
    if (o.json) rows_.emplace(prompt);
  }

  // False when a stop text has appeared.
  bool add(const dsv3_tokenizer* tokenizer, int32_t id) {
    // In rows the marks of tool calls count, which some checkpoints have as special tokens.
    const uint32_t flags = DSV3_CONTINUES | (rows_ ? 0 : DSV3_SKIP_SPECIAL);
    bool stopped = false;
    write(stop_.add(detokenize(tokenizer, &id, 1, flags), &stopped));
    return !stopped;
  }

  void finish(const char* end, int64_t prompt_tokens, int64_t tokens) {
    write(stop_.finish());
    if (rows_)
      rows_->finish(end, prompt_tokens, tokens);
    else if (isatty(STDOUT_FILENO))
      write_stdout("\n");
  }

 private:
  void write(std::string_view text) {
    if (rows_)
      rows_->add(text);
    else
      write_stdout(text);
  }

  StopTexts stop_;
  std::optional<AnswerRows> rows_;
};

// Tokens, and the time they took.
struct Speed {
  int64_t tokens = 0;
  double seconds = 0;

  double rate() const { return seconds > 0 ? double(tokens) / seconds : 0; }
};

void note_load(const RunOptions& o, const dsv3_model_info& info, int64_t context, uint64_t seed) {
  note(text(o.model, ": ", info.model_type, ", ", decimal(double(info.n_parameters) / 1e6, 1),
            " M parameters, ", size_text(info.file_bytes), "; context ", context, "; seed ", seed));
}

void note_speed(const dsv3_model_info& info, const Speed& prefill, const Speed& decode) {
  note(text("prefill ", prefill.tokens, " tokens, ", decimal(prefill.rate(), 1), " tok/s; decode ",
            decode.tokens, " tokens, ", decimal(decode.rate(), 1), " tok/s, ",
            decimal(decode.rate() * double(info.bytes_per_token) / 1e9, 2), " GB/s"));
}

// Appends the tokens to the sequence. False when a signal has stopped it.
bool evaluate(const Session& session, const int32_t* ids, size_t n, dsv3_phase phase, Speed* speed) {
  dsv3_batch batch = {};
  batch.struct_size = sizeof batch;
  batch.n = int32_t(n);
  batch.token = ids;
  batch.phase = phase;
  const double start = seconds();
  const dsv3_status status = dsv3_eval(session.get(), &batch);
  if (status == DSV3_CANCELLED) return false;
  check(status);
  speed->tokens += int64_t(n);
  speed->seconds += seconds() - start;
  return true;
}

void run(const RunOptions& o) {
  catch_signals();
  const Model model = open_model(o.model, o.compute, o.quiet);
  const dsv3_model_info info = get_info(model);
  const dsv3_tokenizer* tokenizer = tokenizer_of(o, model);
  const dsv3_sampling sampling = o.sampling.sampling(model);
  const Prompt prompt = prompt_of(o, model, tokenizer);
  const std::vector<int32_t>& ids = prompt.ids;

  Progress progress("prefill", o.quiet);
  dsv3_session_options options = o.compute.session_options();
  options.context = o.context;
  options.progress = show_progress;
  options.progress_user = &progress;
  const Session session = new_session(model, options);
  const int64_t context = dsv3_session_context(session.get()), room = context - int64_t(ids.size());
  if (room < 0)
    fail("run ", o.model, ": the prompt has ", ids.size(), " tokens and the context holds ", context,
         "; shorten the prompt or give a larger context with -c (this model's limit is ",
         info.max_position_embeddings, ")");
  const uint64_t seed = o.seed ? *o.seed : std::random_device()();
  if (!o.quiet) note_load(o, info, context, seed);

  Answer answer(o, prompt.text);
  Speed prefill, decode;
  bool going = evaluate(session, ids.data(), ids.size(), DSV3_PHASE_PROMPT, &prefill);
  progress.finish();
  const int64_t limit = std::min<int64_t>(room, o.n_tokens.value_or(room));
  int64_t n = 0;                           // tokens of the answer
  bool stopped = false;                    // by an end token or a stop text
  int32_t last = int32_t(ids.size()) - 1;  // the token to go on from, in the last batch
  while (going && n < limit) {
    int32_t id = 0;
    check(dsv3_sample(session.get(), last, &sampling, seed, &id));
    const bool end = dsv3_is_end_token(model.get(), id);
    stopped = (end && !o.ignore_eos) || (!end && !answer.add(tokenizer, id));
    going = !stopped;
    if (going && ++n < limit) going = evaluate(session, &id, 1, DSV3_PHASE_DECODE, &decode);
    last = 0;
  }
  answer.finish(stopped ? "stop" : going ? "length" : "interrupted", int64_t(ids.size()), n);
  // Without -n a full context is the end that was asked for, and -q hides it; fewer tokens than -n asks for
  // are not.
  if (n == room && (o.n_tokens ? *o.n_tokens > room : !o.quiet))
    note(text("the context of ", context, " tokens is full after ", n, " tokens of answer"));
  if (!o.quiet && prefill.tokens) note_speed(info, prefill, decode);
  throw_if_interrupted();
}

}  // namespace

void add_run(CLI::App* program) {
  const auto o = std::make_shared<RunOptions>();
  CLI::App* command = program->add_subcommand("run", "Continue a text, or answer in a chat");
  command->add_option("MODEL", o->model, "packed file")->required();
  CLI::Option* prompt = command->add_option("-p,--prompt", o->prompt, "the text to continue");
  command
      ->add_option("-f,--file", o->file,
                   "read the text from a file, byte for byte; - and the default: standard input")
      ->excludes(prompt);
  CLI::Option* special =
      command->add_flag("--special", o->special, "recognise added tokens (\"<|User|>\") in the text");
  o->chat.add_to(command)->excludes(special);
  command->add_flag(
      "--json", o->json,
      "write rows of JSON: {\"reasoning\"}, {\"content\"}, {\"tool_call\"}, {\"note\"}, and last\n"
      "{\"end\": stop, length or interrupted, \"prompt_tokens\", \"tokens\"}");
  command
      ->add_option("-n,--tokens", o->n_tokens,
                   "most tokens to write (default: until an end token or the context is full)")
      ->check(number(0, INT32_MAX))
      ->type_name("N");
  command
      ->add_option("-c,--context", o->context,
                   "most tokens of prompt and answer (default: the model's limit, at most 4096)")
      ->check(number(1, INT32_MAX))
      ->type_name("N");
  command
      ->add_option("-s,--seed", o->seed,
                   "seed of the random choices (default: random, said on standard error)")
      ->check(check_seed)
      ->type_name("N");
  o->sampling.add_to(command);
  command->add_flag("--ignore-eos", o->ignore_eos, "go on after end tokens");
  command->add_flag("-q,--quiet", o->quiet, "nothing on standard error but warnings and errors");
  o->compute.add_to(command);
  o->compute.add_batch_to(command);
  command->callback([o] { run(*o); });
}

}  // namespace tools
