// What the subcommands of dsv3 share: how they fail and end, standard streams, signals, owners for the C
// API's handles, text through the C API, and the options that say how to compute.
//
// A subcommand throws when it cannot go on: Failure, Interrupted or ReaderGone. main() alone turns these into
// one message and an exit code, after the destructors have put everything in order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "dsv3.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tools {

// ---- ends -------------------------------------------------------------------------------------------------

enum ExitCode { kOk = 0, kFailed = 1, kUsage = 2, kSignal = 128 };  // kSignal + its number

struct Failure {
  std::string message;
};
struct Interrupted {};  // by the signal that caught_signal() names
struct ReaderGone {};   // nobody reads standard output any more: not our failure

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Failure{text(parts...)};
}

// What errno says of `what`.
[[noreturn]] void fail_errno(const std::string& what);

// Throws the library's message if the call failed.
void check(dsv3_status status);

// One line for a terminal: names and messages may come out of a stranger's file, so control characters are
// spelt out.
std::string printable(std::string_view bytes);

// "17.86 MB"
std::string size_text(int64_t bytes);

// ---- standard streams -------------------------------------------------------------------------------------

// Everything the file holds, byte for byte; "-" is standard input.
std::string read_file(const std::string& path);

// All of it, now. Throws ReaderGone, Interrupted or Failure.
void write_stdout(std::string_view bytes);

// One line on standard error.
void note(std::string_view line);

// How far a long evaluation is, on standard error: a line rewritten in place on a terminal, else one every
// ten seconds.
class Progress {
 public:
  Progress(std::string what, bool quiet);
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(int64_t done, int64_t total);
  void finish();  // wipes the line

 private:
  std::string what_;
  bool quiet_, terminal_, shown_ = false;
  double last_;
};

// A dsv3_progress whose user is a Progress.
int show_progress(void* progress, int64_t done, int64_t total);

double seconds();                               // of a clock that never jumps
std::string decimal(double value, int places);  // 3.14

// ---- signals ----------------------------------------------------------------------------------------------

// From now on SIGINT and SIGTERM cancel the session and are remembered; a second one ends the process at
// once.
void catch_signals();
int caught_signal();  // 0: none
void throw_if_interrupted();

// ---- the C API's handles ----------------------------------------------------------------------------------

struct CloseModel {
  void operator()(dsv3_model* model) const { dsv3_model_close(model); }
};
struct FreeTokenizer {
  void operator()(dsv3_tokenizer* tokenizer) const { dsv3_tokenizer_free(tokenizer); }
};
struct FreeSession {
  void operator()(dsv3_session* session) const;
};
using Model = std::unique_ptr<dsv3_model, CloseModel>;
using Tokenizer = std::unique_ptr<dsv3_tokenizer, FreeTokenizer>;
using Session = std::unique_ptr<dsv3_session, FreeSession>;

// How to compute.
struct ComputeOptions {
  std::string backend = "cpu", isa = "auto", attention = "auto", gemm = "f32", kv = "auto", load = "map";
  bool exact = false;
  int32_t n_threads = 0;   // 0: the physical cores
  int64_t gpu_memory = 0;  // 0: no limit
  std::string place;       // rules
  std::optional<int32_t> stream_from;
  int32_t batch = 0;  // tokens of one pass; 0: the default

  void add_to(CLI::App* command);
  void add_device_to(CLI::App* command);         // without what only models of text have
  void add_session_to(CLI::App* command);        // the rest
  void add_batch_to(CLI::App* command);          // for programs that do not cut prompts themselves
  dsv3_session_options session_options() const;  // holds no longer than this
};

// Warnings go to standard error, the library's other remarks only unless `quiet`.
Model open_model(const std::string& path, const ComputeOptions& compute = {}, bool quiet = true);
dsv3_model_info get_info(const Model& model);

// The session that signals cancel, until it is freed; there is one at a time.
Session new_session(const Model& model, const dsv3_session_options& options);

// All that a function of the C API gives under the convention of dsv3_tokenize. write(data, capacity, &n) calls it,
// again if `guess` items were too few.
template <class Items, class Write>
Items read_all(size_t guess, const Write& write) {
  Items items;
  size_t n = guess;
  do {
    items.resize(n);
    write(items.data(), items.size(), &n);
  } while (n > items.size());
  items.resize(n);
  return items;
}

std::vector<int32_t> tokenize(const dsv3_tokenizer* tokenizer, std::string_view text, uint32_t flags);
// The same with the bytes of the text that each id comes from.
std::vector<int32_t> tokenize_spans(const dsv3_tokenizer* tokenizer, std::string_view text, uint32_t flags,
                                    std::vector<dsv3_span>* spans);
std::string detokenize(const dsv3_tokenizer* tokenizer, const int32_t* ids, size_t n_ids, uint32_t flags);

// The user's own JSON; a name twice in the outermost object is an error. `what` names it in messages.
nlohmann::json parse_json(const std::string& bytes, const std::string& what);
std::vector<int32_t> ids_of(const nlohmann::json& list, const std::string& what);
// On one line, without its end. Bytes that are not UTF-8 become U+FFFD: JSON can hold nothing else.
std::string one_line(const nlohmann::ordered_json& value);

// ---- options ----------------------------------------------------------------------------------------------

// A check for CLI11: what is wrong with a value, if anything. Unlike CLI::Range it lets no NaN pass.
std::function<std::string(const std::string&)> number(double smallest, double largest);
std::string check_seed(const std::string& given);  // the same for a seed: any uint64_t

// An amount of memory: bytes, or with K, M, G or T in units of 2^10, 2^20, 2^30 or 2^40.
void add_memory_option(CLI::App* command, const std::string& name, int64_t* bytes, const std::string& what);

// ---- subcommands: each adds itself, with its options, to the program --------------------------------------

void add_run(CLI::App* program);
void add_info(CLI::App* program);
void add_dump(CLI::App* program);
void add_tokenize(CLI::App* program);
void add_render(CLI::App* program);
void add_heads(CLI::App* program);  // classify, tag, answer
void add_routing(CLI::App* program);
void add_layer(CLI::App* program);
void add_plan(CLI::App* program);
void add_verify(CLI::App* program);
void add_bench(CLI::App* program);

}  // namespace tools
