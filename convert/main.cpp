// dsv3-convert: a checkpoint's folder to a packed file. Arguments, progress and exit codes; the work is
// convert.cpp's.
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <map>
#include <string>

#include "convert/convert.h"
#include "convert/random.h"
#include "version.h"

namespace {

volatile std::sig_atomic_t g_signal = 0;

// The first signal ends the work in good order; a second one ends the program at once, as its handler is
// gone.
void catch_signals() {
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before, action = {};
    if (sigaction(number, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) continue;  // as under nohup
    action.sa_handler = [](int caught) { g_signal = caught; };
    action.sa_flags = int(SA_RESETHAND);
    sigaction(number, &action, nullptr);
  }
  // What these would report comes back as an error of the write.
  for (const int number : {SIGPIPE, SIGXFSZ}) std::signal(number, SIG_IGN);
}

// "688.6 GB"
std::string size_text(double bytes) {
  const char* unit = "B";
  for (const char* larger : {"kB", "MB", "GB", "TB"}) {
    if (bytes < 999.95) break;
    bytes /= 1000;
    unit = larger;
  }
  char text[32];
  std::snprintf(text, sizeof text, *unit == 'B' ? "%.0f %s" : "%.1f %s", bytes, unit);
  return text;
}

// On a terminal one line written over and over, else a line at every 10 %.
class Progress {
 public:
  explicit Progress(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO)) {}

  void update(int64_t done, int64_t total) {
    using Clock = std::chrono::steady_clock;
    if (quiet_ || total == 0) return;
    const Clock::time_point now = Clock::now();
    if (begin_ == Clock::time_point()) begin_ = now;
    if (done < total && terminal_ && now - shown_ < std::chrono::milliseconds(100)) return;
    const int64_t tenth = int64_t(10.0 * double(done) / double(total));
    if (!terminal_ && tenth <= tenth_) return;
    shown_ = now;
    tenth_ = tenth;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const double rate = seconds > 0 ? double(done) / seconds : 0;
    std::string line =
        lite::str(100 * done / total, " %, ", size_text(double(done)), " of ", size_text(double(total)));
    if (rate > 0) line += ", " + size_text(rate) + "/s";
    if (rate > 0 && done < total) {
      const long left = long(double(total - done) / rate + 0.5);
      char text[48];
      std::snprintf(text, sizeof text, ", %ld:%02ld:%02ld left", left / 3600, left / 60 % 60, left % 60);
      line += text;
    }
    if (terminal_)
      std::fprintf(stderr, "\r%s\x1b[K", line.c_str());
    else
      std::fprintf(stderr, "%s\n", line.c_str());
    open_ = terminal_;
  }
  // Names out of files may be in the line: nothing in it may command the terminal.
  void say(std::string line) {
    std::replace_if(
        line.begin(), line.end(), [](char c) { return uint8_t(c) < 0x20 || c == 0x7F; }, '?');
    if (open_) std::fputc('\n', stderr);
    open_ = false;
    std::fprintf(stderr, "%s\n", line.c_str());
  }

 private:
  const bool quiet_, terminal_;
  bool open_ = false;  // the cursor stands in the progress line
  int64_t tenth_ = -1;
  std::chrono::steady_clock::time_point begin_, shown_;
};

}  // namespace

int main(int argc, char** argv) {
  dsv3::ConvertOptions options;
  dsv3::RandomOptions random;
  bool quiet = false, is_random = false;
  std::string dtype = "keep", head = "keep";
  CLI::App app("Converts a checkpoint (config.json, *.safetensors, tokenizer) into one packed file for dsv3.",
               "dsv3-convert");
  app.add_option("SRC", options.source, "the checkpoint's folder; with --random, a config.json")
      ->required()
      ->type_name("");
  app.add_option("OUT", options.out, "the file to write: NAME.dsv3")->required()->type_name("");
  app.add_option(
         "--dtype", dtype,
         "type of projections and experts: keep (default: as they are, FP8 included), f32, bf16, f16, or f8 "
         "(128x128 blocks); everything else is kept")
      ->check(CLI::IsMember({"keep", "f32", "bf16", "f16", "f8"}));
  app.add_option("--head", head, "type of the output head: keep, or f8: half the bytes, a little less exact")
      ->check(CLI::IsMember({"keep", "f8"}));
  CLI::Option* wants_random = app.add_flag("--random", is_random,
                                           "make a model with random weights, for tests and benchmarks: SRC "
                                           "is its config.json; --dtype bf16 or another");
  app.add_option("--seed", random.seed, "of the random weights (default 1)")->needs(wants_random);
  app.add_option("--layers", random.layers, "only the first N layers of the random model")
      ->needs(wants_random);
  app.add_flag("--force", options.force, "replace OUT if it is a packed file");
  app.add_flag("-q,--quiet", quiet, "say nothing but errors");
  app.set_version_flag("--version", "dsv3-convert " DSV3_VERSION_TEXT " (" DSV3_GIT_ID ")");
  app.footer(
      "Progress and notes go to stderr. OUT appears only when it is complete; until then it is OUT.partial.\n"
      "Exit codes: 0 done; 1 failed, with one line saying why; 2 wrong usage; 130 stopped by Ctrl-C and 143 "
      "by a\n"
      "termination signal, with nothing left behind.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::fprintf(stderr, "dsv3-convert: %s; try dsv3-convert --help\n", error.what());
    return 2;
  }
  const std::map<std::string, lite::DType> dtypes = {{"f32", lite::DType::F32},
                                                     {"bf16", lite::DType::BF16},
                                                     {"f16", lite::DType::F16},
                                                     {"f8", lite::DType::F8_E4M3}};
  if (dtype != "keep") options.dtype = dtypes.at(dtype);
  options.f8_head = head == "f8";
  random.config = options.source;
  random.out = options.out;
  random.dtype = options.dtype.value_or(lite::DType::BF16);
  random.f8_head = options.f8_head;
  random.force = options.force;

  catch_signals();
  Progress progress(quiet);
  dsv3::ConvertCallbacks callbacks;
  callbacks.note = [&](const std::string& text) {
    if (!quiet) progress.say("note: " + text);
  };
  callbacks.progress = [&](int64_t done, int64_t total) {
    progress.update(done, total);
    return g_signal == 0;
  };
  const auto summary =
      is_random ? dsv3::write_random_model(random, callbacks) : dsv3::convert(options, callbacks);
  if (!summary.ok()) {
    progress.say("dsv3-convert: " + summary.status().message());
    return summary.status().code() == lite::Code::Cancelled ? 128 + g_signal : 1;
  }
  if (!quiet)
    progress.say(lite::str(options.out, ": ", size_text(double(summary->file_bytes)), ", ", summary->tensors,
                           " tensors; try: dsv3 ", is_random ? "info " : "run ", options.out));
  return 0;
}
