// dsv3-convert: a checkpoint to a packed file and back. Arguments, progress and exit codes; the work is
// convert.h's.
#include <sys/resource.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <string>

#include "convert/convert.h"
#include "convert/random.h"
#include "ggml-lite/printable.h"
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
    if (begin_ == Clock::time_point()) {
      begin_ = now;
      first_ = done;  // not 0 when an interrupted conversion goes on
    }
    if (done < total && terminal_ && now - shown_ < std::chrono::milliseconds(100)) return;
    const int64_t tenth = int64_t(10.0 * double(done) / double(total));
    if (!terminal_ && tenth <= tenth_) return;
    shown_ = now;
    tenth_ = tenth;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const double rate = seconds > 0 ? double(done - first_) / seconds : 0;
    std::string line =
        lite::str(100 * done / total, " %, ", size_text(double(done)), " of ", size_text(double(total)));
    if (rate > 0) line += ", " + size_text(rate) + "/s";
    if (rate > 0 && done < total) {
      const long left = long(double(total - done) / rate + 0.5);
      char text[48];
      std::snprintf(text, sizeof text, ", %ld:%02ld:%02ld left", left / 3600, left / 60 % 60, left % 60);
      line += text;
    }
    if (terminal_) {
      const size_t filled = size_t(kBar * done / total);
      std::fprintf(stderr, "\r[%s%s] %s\x1b[K", std::string(filled, '=').c_str(),
                   std::string(kBar - filled, ' ').c_str(), line.c_str());
    } else {
      std::fprintf(stderr, "%s\n", line.c_str());
    }
    open_ = terminal_;
  }
  // Names out of files may be in the line: nothing in it may command the terminal.
  void say(const std::string& line) {
    if (open_) std::fputc('\n', stderr);
    open_ = false;
    std::fprintf(stderr, "%s\n", lite::without_controls(line).c_str());
  }

 private:
  const bool quiet_, terminal_;
  bool open_ = false;                  // the cursor stands in the progress line
  static constexpr int64_t kBar = 20;  // characters
  int64_t tenth_ = -1, first_ = 0;
  std::chrono::steady_clock::time_point begin_, shown_;
};

// The cache of the Hugging Face hub, where its own programs keep it.
std::string hub_cache() {
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value ? value : "";
  };
  if (const std::string folder = variable("HF_HUB_CACHE"); !folder.empty()) return folder;
  if (const std::string folder = variable("HF_HOME"); !folder.empty()) return folder + "/hub";
  if (const std::string folder = variable("XDG_CACHE_HOME"); !folder.empty())
    return folder + "/huggingface/hub";
  if (const std::string folder = variable("HOME"); !folder.empty()) return folder + "/.cache/huggingface/hub";
  return "";
}

// "4G", "500M", "1000000": bytes, or what is wrong with it.
std::string read_size(const std::string& text, int64_t* bytes) {
  size_t end = 0;
  while (end < text.size() && end < 15 && text[end] >= '0' && text[end] <= '9') ++end;
  const std::string unit = text.substr(end);
  const std::map<std::string, int64_t> units = {{"", 1}, {"M", 1'000'000}, {"G", 1'000'000'000}};
  int64_t number = 0;
  for (size_t i = 0; i < end; ++i) number = 10 * number + (text[i] - '0');
  if (end == 0 || number == 0 || !units.contains(unit) || !lite::checked_mul(number, units.at(unit), bytes))
    return "got \"" + text + "\", expected a size such as 5G or 500M";
  return "";
}

// What is to be done, from the command line.
struct Arguments {
  dsv3::ConvertOptions options;  // source and out are the two positional arguments, whatever they mean
  dsv3::RandomOptions random;
  bool check = false, write_back = false, is_random = false, quiet = false;
  int64_t shard_bytes = 5'000'000'000;
};

// Standard output carries what was asked for: it has all of it, or the program fails.
int end_of_output(int code) {
  std::cout.flush();
  if (std::cout.good() && std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
  std::fprintf(stderr, "dsv3-convert: write standard output: %s\n", std::strerror(errno));
  return 1;
}

void print_plan(const dsv3::ConvertSummary& summary) {
  for (const lite::PackPart& file : summary.files)
    std::printf("%15lld  %s\n", static_cast<long long>(file.bytes),
                lite::without_controls(file.path).c_str());
  std::printf("\n%-15s  %8s  %15s\n", "role", "extents", "bytes");
  for (const auto& use : summary.roles)
    std::printf("%-15s  %8lld  %15lld\n", use.role.c_str(), static_cast<long long>(use.extents),
                static_cast<long long>(use.bytes));
  std::printf("\n%lld tensors, %lld names of the same, %lld bytes in %zu files\n",
              static_cast<long long>(summary.tensors), static_cast<long long>(summary.aliases),
              static_cast<long long>(summary.file_bytes), summary.files.size());
}

// The work itself; prints what it came to.
lite::Status run(const Arguments& arguments, Progress* progress) {
  const dsv3::ConvertOptions& options = arguments.options;
  dsv3::ConvertCallbacks callbacks;
  callbacks.note = [&](const std::string& text) {
    if (!arguments.quiet) progress->say("note: " + text);
  };
  callbacks.progress = [&](int64_t done, int64_t total) {
    progress->update(done, total);
    return g_signal == 0;
  };
  const auto say = [&](const std::string& text) {
    if (!arguments.quiet) progress->say(text);
  };
  if (arguments.check) {
    LITE_TRY(dsv3::check(options.source, options.hub_cache, options.out, options.threads, callbacks));
    say(options.out + ": the same, bit for bit");
    return {};
  }
  if (arguments.write_back) {
    LITE_ASSIGN(const dsv3::ExportSummary summary,
                dsv3::export_checkpoint(options.source, options.out, arguments.shard_bytes, callbacks));
    say(lite::str(options.out, ": ", size_text(double(summary.bytes)), ", ", summary.tensors, " tensors in ",
                  summary.shards, summary.shards == 1 ? " file" : " files"));
    if (!summary.dropped.empty())
      say(lite::str("note: ", summary.dropped.size(),
                    " tensors of the checkpoint were not converted and are not there: ", summary.dropped[0],
                    summary.dropped.size() > 1 ? ", ..." : ""));
    return {};
  }
  LITE_ASSIGN(const dsv3::ConvertSummary summary, arguments.is_random
                                                      ? dsv3::write_random_model(arguments.random, callbacks)
                                                      : dsv3::convert(options, callbacks));
  if (options.dry_run) {
    print_plan(summary);
    return {};
  }
  const std::string& first = summary.files[0].path;
  say(lite::str(first, ": ", size_text(double(summary.file_bytes)),
                summary.files.size() > 1 ? lite::str(" in ", summary.files.size(), " files") : "", ", ",
                summary.tensors, " tensors; try: dsv3 ", summary.has_tokenizer ? "run " : "info ", first));
  return {};
}

// All files of a model are open at once, and it may have more than a process may open by default.
void allow_many_files() {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

}  // namespace

int main(int argc, char** argv) {
  allow_many_files();
  Arguments arguments;
  dsv3::ConvertOptions& options = arguments.options;
  std::string dtype = "keep", head = "keep", split_size, shard_size;
  CLI::App app(
      "Converts a checkpoint (config.json, *.safetensors, tokenizer) into one packed file for dsv3.\n"
      "With --check, SRC MODEL: compares. With --export, MODEL FOLDER: writes the checkpoint back.",
      "dsv3-convert");
  app.add_option(
         "SRC", options.source,
         "the checkpoint's folder, or ORG/NAME[@REVISION] in the local Hugging Face cache; with --random, a "
         "config.json")
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
  CLI::Option* random = app.add_flag("--random", arguments.is_random,
                                     "make a model with random weights, for tests and benchmarks: SRC is its "
                                     "config.json; --dtype bf16 or another");
  app.add_option("--seed", arguments.random.seed, "of the random weights (default 1)")->needs(random);
  app.add_option("--layers", arguments.random.layers, "only the first N layers of the random model")
      ->needs(random);
  app.add_option("--split-size", split_size,
                 "write NAME-00001-of-0000N.dsv3 and so on, each at most so large, and no smaller than the "
                 "largest tensor: 50G, 500M")
      ->type_name("N[G|M]");
  app.add_flag("--consume", options.consume,
               "delete each file of the checkpoint once all its weights are safe in the packed file");
  app.add_flag("--dry-run", options.dry_run, "print what would be written, and write nothing");
  app.add_flag("--force", options.force, "replace OUT if it is a packed file, in one or several files");
  app.add_option("--threads", options.threads,
                 "threads that read and re-encode; 0 (default): one for each core")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");
  CLI::Option* check = app.add_flag("--check", arguments.check,
                                    "compare MODEL with the checkpoint it was made of, bit for bit");
  app.add_flag("--export", arguments.write_back, "write the checkpoint back into a new FOLDER")
      ->excludes(check);
  app.add_option("--shard-size", shard_size, "largest file of --export (default 5G)")->type_name("N[G|M]");
  app.add_flag("-q,--quiet", arguments.quiet, "say nothing but errors");
  app.set_version_flag("--version", "dsv3-convert " DSV3_VERSION_TEXT " (" DSV3_GIT_ID ")");
  app.footer(
      "Progress and notes go to stderr. OUT appears only when it is complete; until then it is OUT.partial, "
      "and "
      "what\n"
      "is done is noted in OUT.journal: after an interruption or a full disk the same command goes on. Of "
      "--random\n"
      "nothing is kept: the same command starts over, and makes the same file.\n"
      "Exit codes: 0 done; 1 failed, with one line saying why; 2 wrong usage; 130 stopped by Ctrl-C and 143 "
      "by a\n"
      "termination signal.");
  const auto misused = [](const std::string& why) {
    std::fprintf(stderr, "dsv3-convert: %s; try dsv3-convert --help\n", lite::without_controls(why).c_str());
    return 2;
  };
  catch_signals();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return error.get_exit_code() == 0 ? end_of_output(app.exit(error)) : misused(error.what());
  }
  if (options.source.empty() || options.out.empty())
    return misused(options.source.empty()
                       ? "the first argument is empty, expected what to read"
                       : "the second argument is empty, expected what to write, or compare with");
  const std::map<std::string, lite::DType> dtypes = {{"f32", lite::DType::F32},
                                                     {"bf16", lite::DType::BF16},
                                                     {"f16", lite::DType::F16},
                                                     {"f8", lite::DType::F8_E4M3}};
  if (dtype != "keep") options.dtype = dtypes.at(dtype);
  options.f8_head = head == "f8";
  if (!split_size.empty())
    if (const std::string wrong = read_size(split_size, &options.split_bytes); !wrong.empty())
      return misused("--split-size: " + wrong);
  if (!shard_size.empty())
    if (const std::string wrong = read_size(shard_size, &arguments.shard_bytes); !wrong.empty())
      return misused("--shard-size: " + wrong);
  if ((arguments.check || arguments.write_back) &&
      (options.dtype || options.f8_head || arguments.is_random || options.split_bytes || options.consume ||
       options.dry_run || options.force))
    return misused("--check and --export take no option of a conversion");
  if (options.consume && options.dry_run) return misused("--dry-run deletes nothing: leave --consume out");
  if (arguments.is_random && (options.consume || options.dry_run))
    return misused("--random reads no checkpoint: leave --consume and --dry-run out");
  options.hub_cache = hub_cache();
  arguments.random.config = options.source;
  arguments.random.out = options.out;
  arguments.random.dtype = options.dtype.value_or(lite::DType::BF16);
  arguments.random.f8_head = options.f8_head;
  arguments.random.force = options.force;
  arguments.random.split_bytes = options.split_bytes;

  Progress progress(arguments.quiet);
  const lite::Status done = run(arguments, &progress);
  if (!done.ok()) {
    progress.say("dsv3-convert: " + done.message());
    return done.code() == lite::Code::Cancelled ? 128 + g_signal : 1;
  }
  return end_of_output(0);
}
