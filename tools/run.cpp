// dsv3 run: the raw completion of a text, streamed to standard output.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <random>

#include <CLI/CLI.hpp>

#include "tools/common.h"

namespace tools {
namespace {

struct RunOptions {
  std::string model;
  std::optional<std::string> prompt;
  std::string file = "-";
  bool special = false, ignore_eos = false, quiet = false;
  std::optional<int32_t> n_tokens;
  int32_t context = 0;  // 0: the library's default
  std::optional<uint64_t> seed;
  std::optional<double> temperature, top_p, min_p;
  std::optional<int32_t> top_k;
  std::vector<std::string> stops;
  ComputeOptions compute;
};

// The answer on its way to standard output. Held back is what may be the beginning of a stop text, and an
// incomplete character at the end. Where tokens begin and end makes no difference: the stop text that is
// complete first counts, of two that end together the longer one.
class Answer {
 public:
  explicit Answer(const std::vector<std::string>& stops) : stops_(stops) {}

  // False when a stop text has appeared; what precedes it is out.
  bool add(std::string_view bytes) {
    held_ += bytes;
    size_t begin = std::string::npos, end = std::string::npos;
    for (const std::string& stop : stops_) {
      const size_t at = held_.find(stop);
      if (at == std::string::npos || at + stop.size() > end || (at + stop.size() == end && at > begin))
        continue;
      begin = at;
      end = at + stop.size();
    }
    if (end != std::string::npos) {
      held_.resize(begin);
      return false;
    }
    put(dsv3_utf8_complete(held_.data(), held_.size() - possible_stop()));
    return true;
  }

  // All that is still held back.
  void finish() {
    put(held_.size());
    if (isatty(STDOUT_FILENO)) write_stdout("\n");
  }

 private:
  // Bytes at the end that some stop text may begin with.
  size_t possible_stop() const {
    size_t longest = 0;
    for (const std::string& stop : stops_)
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n)
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) longest = n;
    return longest;
  }

  void put(size_t n) {
    write_stdout(std::string_view(held_).substr(0, n));
    held_.erase(0, n);
  }

  const std::vector<std::string>& stops_;
  std::string held_;
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

std::vector<int32_t> prompt_ids(const RunOptions& o, const dsv3_tokenizer* tokenizer) {
  const uint32_t flags = DSV3_BOS_AUTO | (o.special ? DSV3_PARSE_ADDED : 0);
  std::vector<int32_t> ids = tokenize(tokenizer, read_prompt(o), flags);
  if (ids.empty())
    fail("run ", o.model,
         ": the prompt is empty, and this model's texts have no beginning token; write something");
  return ids;
}

dsv3_sampling sampling_of(const RunOptions& o, const Model& model) {
  dsv3_sampling s = {};
  s.struct_size = sizeof s;
  check(dsv3_model_sampling(model.get(), &s));
  s.temperature = o.temperature.value_or(s.temperature);
  s.top_k = o.top_k.value_or(s.top_k);
  s.top_p = o.top_p.value_or(s.top_p);
  s.min_p = o.min_p.value_or(s.min_p);
  return s;
}

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
  const dsv3_sampling sampling = sampling_of(o, model);
  const std::vector<int32_t> ids = prompt_ids(o, tokenizer);

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

  Answer answer(o.stops);
  Speed prefill, decode;
  bool going = evaluate(session, ids.data(), ids.size(), DSV3_PHASE_PROMPT, &prefill);
  progress.finish();
  const int64_t limit = std::min<int64_t>(room, o.n_tokens.value_or(room));
  int64_t n = 0;                           // tokens of the answer
  int32_t last = int32_t(ids.size()) - 1;  // the token to go on from, in the last batch
  while (going && n < limit) {
    int32_t id = 0;
    check(dsv3_sample(session.get(), last, &sampling, seed, &id));
    const bool end = dsv3_is_end_token(model.get(), id);
    going = o.ignore_eos || !end;
    if (!end) going = answer.add(detokenize(tokenizer, &id, 1, DSV3_SKIP_SPECIAL));
    if (going && ++n < limit) going = evaluate(session, &id, 1, DSV3_PHASE_DECODE, &decode);
    last = 0;
  }
  answer.finish();
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
  CLI::App* command = program->add_subcommand("run", "Continue a text: raw completion, no chat template");
  command->add_option("MODEL", o->model, "packed file")->required();
  CLI::Option* prompt = command->add_option("-p,--prompt", o->prompt, "the text to continue");
  command
      ->add_option("-f,--file", o->file,
                   "read the text from a file, byte for byte; - and the default: standard input")
      ->excludes(prompt);
  command->add_flag("--special", o->special, "recognise added tokens (\"<|User|>\") in the text");
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
      ->check(number(0, double(UINT64_MAX)))
      ->type_name("N");
  command
      ->add_option("--temp", o->temperature,
                   "temperature, 0: always the likeliest token; this and the next three\n"
                   "default to the checkpoint's generation_config.json, or else to 0")
      ->check(number(0, 1e6))
      ->type_name("X");
  command->add_option("--top-k", o->top_k, "choose among the k likeliest tokens; 0: all")
      ->check(number(0, INT32_MAX))
      ->type_name("N");
  command
      ->add_option("--top-p", o->top_p,
                   "choose among the likeliest tokens that reach this probability; 0 or 1: all")
      ->check(number(0, 1))
      ->type_name("X");
  command
      ->add_option("--min-p", o->min_p,
                   "leave out tokens less likely than this share of the likeliest one's; 0: none")
      ->check(number(0, 1))
      ->type_name("X");
  // The raw results: CLI11 would read a stop text "[a,b]" as a list.
  CLI::Option* stop = command->add_option("--stop", "end the answer before this text; may be repeated")
                          ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
                          ->type_name("TEXT")
                          ->check([](const std::string& t) { return t.empty() ? "is empty" : ""; });
  command->add_flag("--ignore-eos", o->ignore_eos, "go on after end tokens");
  command->add_flag("-q,--quiet", o->quiet, "nothing on standard error but warnings and errors");
  o->compute.add_to(command);
  command->callback([o, stop] {
    o->stops = stop->results();
    run(*o);
  });
}

}  // namespace tools
