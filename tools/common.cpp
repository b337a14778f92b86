#include "tools/common.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <optional>
#include <set>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace tools {

// ---- ends -------------------------------------------------------------------------------------------------

void fail_errno(const std::string& what) {
  fail(what, ": ", std::strerror(errno));
}

void check(dsv3_status status) {
  if (status == DSV3_CANCELLED) throw Interrupted{};
  if (status != DSV3_OK) fail(dsv3_last_error());
}

std::string printable(std::string_view bytes) {
  const auto byte = [&](size_t i) { return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u; };
  const auto is_in = [&](size_t i, unsigned low, unsigned high) { return byte(i) >= low && byte(i) <= high; };
  std::string line;
  size_t escaped = 0;  // up to here: also U+0080 to U+009F, and what turns the direction of writing
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (byte(i) < 0x20 || byte(i) == 0x7f) escaped = i + 1;
    if (byte(i) == 0xc2 && is_in(i + 1, 0x80, 0x9f)) escaped = i + 2;
    if (byte(i) == 0xe2 && ((byte(i + 1) == 0x80 && is_in(i + 2, 0xaa, 0xae)) ||
                            (byte(i + 1) == 0x81 && is_in(i + 2, 0xa6, 0xa9))))
      escaped = i + 3;
    if (i >= escaped) {
      line += bytes[i];
      continue;
    }
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\x%02x", byte(i));
    line += escape;
  }
  return line;
}

std::string size_text(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  double size = double(bytes);
  size_t unit = 0;
  for (; size >= 1000 && unit < 4; ++unit) size /= 1000;
  char number[32];
  std::snprintf(number, sizeof number, unit == 0 ? "%.0f %s" : "%.2f %s", size, kUnits[unit]);
  return number;
}

// ---- standard streams -------------------------------------------------------------------------------------

std::string read_file(const std::string& path) {
  const bool standard = path == "-";
  const std::string name = standard ? "standard input" : path;
  const int fd = standard ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_errno("read " + name);
  struct Closer {
    int fd;
    ~Closer() {
      if (fd != STDIN_FILENO) close(fd);
    }
  } closer{fd};

  std::string bytes;
  char buffer[1 << 16];
  for (;;) {
    throw_if_interrupted();
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n == 0) return bytes;
    if (n > 0)
      bytes.append(buffer, size_t(n));
    else if (errno != EINTR)
      fail_errno("read " + name);
  }
}

void write_stdout(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(STDOUT_FILENO, bytes.data(), bytes.size());
    if (n >= 0) {
      bytes.remove_prefix(size_t(n));
    } else if (errno == EINTR) {
      throw_if_interrupted();
    } else if (errno == EAGAIN) {  // whoever shares the stream has made it non-blocking
      pollfd out = {STDOUT_FILENO, POLLOUT, 0};
      poll(&out, 1, -1);
      throw_if_interrupted();
    } else if (errno == EPIPE) {
      throw ReaderGone{};
    } else {
      fail_errno("write to standard output");
    }
  }
}

void note(std::string_view line) {
  std::fprintf(stderr, "%s\n", printable(line).c_str());
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string decimal(double value, int places) {
  char number[64];
  std::snprintf(number, sizeof number, "%.*f", places, value);
  return number;
}

Progress::Progress(std::string what, bool quiet)
    : what_(std::move(what)), quiet_(quiet), terminal_(isatty(STDERR_FILENO)), last_(seconds()) {}

void Progress::show(int64_t done, int64_t total) {
  const double now = seconds(), interval = !terminal_ ? 10 : shown_ ? 0.2 : 1;  // in seconds
  if (quiet_ || done == total || now - last_ < interval) return;
  last_ = now;
  shown_ = true;
  const std::string line = text(what_, ": ", done, " of ", total, " tokens");
  if (terminal_)
    std::fprintf(stderr, "\r%s\033[K", line.c_str());
  else
    note(line);
}

void Progress::finish() {
  if (shown_ && terminal_) std::fputs("\r\033[K", stderr);
  shown_ = false;
}

int show_progress(void* progress, int64_t done, int64_t total) {
  static_cast<Progress*>(progress)->show(done, total);
  return 0;
}

// ---- signals ----------------------------------------------------------------------------------------------

namespace {

std::atomic<int> the_signal = 0;
std::atomic<dsv3_session*> the_session = nullptr;  // what a signal cancels
static_assert(std::atomic<dsv3_session*>::is_always_lock_free, "a signal handler reads it");

void on_signal(int number) {
  the_signal = number;
  dsv3_cancel(the_session);
}

}  // namespace

void catch_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = int(SA_RESETHAND);  // no SA_RESTART: a read or write that waits ends, too
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction hangup = {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // under nohup it stays ignored
}

int caught_signal() {
  return the_signal;
}

void throw_if_interrupted() {
  if (caught_signal()) throw Interrupted{};
}

// ---- the C API's handles ----------------------------------------------------------------------------------

namespace {

void log_warnings(void*, dsv3_log_level level, const char* line) {
  if (level == DSV3_LOG_WARNING) note(text("warning: ", line));
}

bool opening = false;  // a model: what it says of itself is in `dsv3 info`, but for a choice of its backend

void log_all(void*, dsv3_log_level level, const char* line) {
  if (level == DSV3_LOG_INFO && opening) return;
  note(text(level == DSV3_LOG_WARNING ? "warning: " : "", line));
}

}  // namespace

Model open_model(const std::string& path, const ComputeOptions& compute, bool quiet) {
  dsv3_model_options options = {};
  options.struct_size = sizeof options;
  options.backend = compute.backend.c_str();
  options.isa = compute.isa.c_str();
  options.load = compute.load.c_str();
  options.log = quiet ? log_warnings : log_all;
  dsv3_model* model = nullptr;
  opening = compute.backend != "auto";
  const dsv3_status status = dsv3_model_open(path.c_str(), &options, &model);
  opening = false;
  check(status);
  return Model(model);
}

dsv3_model_info get_info(const Model& model) {
  dsv3_model_info info = {};
  info.struct_size = sizeof info;
  check(dsv3_model_get_info(model.get(), &info));
  return info;
}

Session new_session(const Model& model, const dsv3_session_options& options) {
  dsv3_session* session = nullptr;
  check(dsv3_session_new(model.get(), &options, &session));
  the_session = session;
  Session owner(session);
  throw_if_interrupted();  // a signal that came before there was anything to cancel
  return owner;
}

void FreeSession::operator()(dsv3_session* session) const {
  the_session = nullptr;
  dsv3_session_free(session);
}

std::vector<int32_t> tokenize(const dsv3_tokenizer* tokenizer, std::string_view text, uint32_t flags) {
  // A token is at least a byte, but for a beginning.
  return read_all<std::vector<int32_t>>(text.size() + 1, [&](int32_t* ids, size_t capacity, size_t* n) {
    check(dsv3_tokenize(tokenizer, text.data(), text.size(), flags, ids, capacity, n));
  });
}

std::vector<int32_t> tokenize_spans(const dsv3_tokenizer* tokenizer, std::string_view text, uint32_t flags,
                                    std::vector<dsv3_span>* spans) {
  const auto ids = read_all<std::vector<int32_t>>(text.size() + 1, [&](int32_t* out, size_t capacity,
                                                                       size_t* n) {
    spans->resize(capacity);
    check(dsv3_tokenize_spans(tokenizer, text.data(), text.size(), flags, out, spans->data(), capacity, n));
  });
  spans->resize(ids.size());
  return ids;
}

std::string detokenize(const dsv3_tokenizer* tokenizer, const int32_t* ids, size_t n_ids, uint32_t flags) {
  return read_all<std::string>(16 * n_ids, [&](char* bytes, size_t capacity, size_t* n) {
    check(dsv3_detokenize(tokenizer, ids, n_ids, flags, bytes, capacity, n));
  });
}

nlohmann::json parse_json(const std::string& bytes, const std::string& what) {
  using nlohmann::json;
  std::set<std::string> names;
  constexpr int kDeepest = 200;  // what comes after would be walked by functions that call themselves
  const auto no_name_twice = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kDeepest) fail(what, ": it is nested deeper than ", kDeepest);
    if (depth == 1 && event == json::parse_event_t::key && !names.insert(value.get<std::string>()).second)
      fail(what, ": ", value.dump(), " is there twice");
    return true;
  };
  try {
    return json::parse(bytes, no_name_twice);
  } catch (const json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, ..."
    const std::string_view reason = e.what();
    fail(what, ": ", reason.substr(reason.find("] ") + 2));
  }
}

std::vector<int32_t> ids_of(const nlohmann::json& list, const std::string& what) {
  if (!list.is_array()) fail(what, ": got ", list.type_name(), ", expected a list of token ids");
  std::vector<int32_t> ids;
  for (const nlohmann::json& id : list) {
    if (!id.is_number_integer() || id < 0 || id > INT32_MAX)
      fail(what, ": item ", ids.size(), ": got ",
           id.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 40),
           ", expected a token id");
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::string one_line(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// ---- options ----------------------------------------------------------------------------------------------

namespace {

// "24G"
std::optional<int64_t> memory_size(const std::string& given) {
  char* end = nullptr;
  const double value = std::strtod(given.c_str(), &end);
  const std::string_view units = "KMGT", unit = end;
  double factor = 1;
  if (!unit.empty()) {
    if (unit.size() > 1 || units.find(unit[0]) == units.npos) return {};
    factor = std::ldexp(1.0, 10 * int(units.find(unit[0]) + 1));
  }
  if (end == given.c_str() || !(value * factor >= 1 && value * factor < 0x1p62)) return {};
  return int64_t(value * factor);
}

}  // namespace

std::function<std::string(const std::string&)> number(double smallest, double largest) {
  return [=](const std::string& given) {
    double value = NAN;
    const bool inside = CLI::detail::lexical_cast(given, value) && value >= smallest && value <= largest;
    char range[64];
    std::snprintf(range, sizeof range, "%.0f..%.0f", smallest, largest);
    return inside ? std::string() : text("got ", given, ", expected a number in ", range);
  };
}

void add_memory_option(CLI::App* command, const std::string& name, int64_t* bytes, const std::string& what) {
  command
      ->add_option_function<std::string>(
          name, [bytes](const std::string& given) { *bytes = memory_size(given).value(); }, what)
      ->check([](const std::string& given) {
        return memory_size(given) ? std::string()
                                  : text("got ", given, ", expected an amount of memory such as 24G or 512M");
      })
      ->type_name("BYTES");
}

std::string check_seed(const std::string& given) {
  uint64_t seed = 0;
  const char* end = given.data() + given.size();
  const auto [stopped, error] = std::from_chars(given.data(), end, seed);
  if (error == std::errc() && stopped == end) return "";
  return text("got ", given, ", expected a whole number in 0..", UINT64_MAX);
}

void ComputeOptions::add_device_to(CLI::App* command) {
  command
      ->add_option("-t,--threads", n_threads,
                   "threads (default: the physical cores); results do not depend on them")
      ->check(number(1, 1024))
      ->type_name("N");
  command->add_flag("--exact", exact, "f32 activations in every product, also where bf16 or f16 is faster");
  command
      ->add_option("--backend", backend,
                   "what computes: cpu; ref, the slow reference; cuda or cuda:N, a GPU, if --version names "
                   "it; auto, a GPU if "
                   "one can be used, else cpu")
      ->capture_default_str();
  command->add_option("--isa", isa, "instruction sets of --backend cpu: auto, or one that --version names")
      ->capture_default_str();
  command
      ->add_option("--load", load,
                   "weights: map, read from the file as they are needed; copy, all into memory first, in "
                   "huge pages and "
                   "divided among NUMA nodes")
      ->check(CLI::IsMember({"map", "copy"}))
      ->capture_default_str();
}

void ComputeOptions::add_to(CLI::App* command) {
  add_device_to(command);
  add_session_to(command);
}

void ComputeOptions::add_session_to(CLI::App* command) {
  add_memory_option(
      command, "--gpu-memory", &gpu_memory,
      "memory of each GPU that may be used; the rest of the model stays on the host (default: no limit)");
  command
      ->add_option("--place", place,
                   "what goes where, before --gpu-memory divides the rest; can be repeated:\n"
                   "\"layers 3-20 routed_experts=cuda\", \"layers 21 experts 0-63=cuda\", \"head=cpu\"")
      ->join(';')
      ->type_name("RULE");
  command
      ->add_option(
          "--stream-from", stream_from,
          "prompts, in passes of so many tokens or more: experts on the host are brought to a GPU and "
          "computed there; 0: never (default: where that is less work)")
      ->check(number(0, 1 << 24))
      ->type_name("N");
  command->add_option("--attention", attention, "how MLA is computed over the cached latents")
      ->check(CLI::IsMember({"auto", "absorbed", "expanded"}))
      ->capture_default_str();
  command
      ->add_option(
          "--gemm", gemm,
          "activations of products with FP8 matrices: as they are, or rounded to FP8 (W8A8) with scales in "
          "the checkpoint's format, in f32, or as powers of two")
      ->check(CLI::IsMember({"f32", "fp8", "fp8:f32", "fp8:ue8m0"}))
      ->capture_default_str();
  command->add_option("--kv", kv, "type of cached values; auto: bf16, or f32 with --exact or --backend ref")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->capture_default_str();
}

void ComputeOptions::add_batch_to(CLI::App* command) {
  command
      ->add_option(
          "--batch", batch,
          "most tokens of a prompt that are computed together; more take more memory, and where experts "
          "are on the host fewer ways of these to a GPU (default: 512; bench: 2048)")
      ->check(number(1, 1 << 20))
      ->type_name("N");
}

dsv3_session_options ComputeOptions::session_options() const {
  dsv3_session_options options = {};
  options.struct_size = sizeof options;
  options.n_threads = n_threads;
  options.exact = exact;
  options.attention = attention == "expanded"   ? DSV3_ATTENTION_EXPANDED
                      : attention == "absorbed" ? DSV3_ATTENTION_ABSORBED
                                                : DSV3_ATTENTION_AUTO;
  options.gemm = gemm == "fp8"         ? DSV3_GEMM_FP8
                 : gemm == "fp8:f32"   ? DSV3_GEMM_FP8_F32
                 : gemm == "fp8:ue8m0" ? DSV3_GEMM_FP8_UE8M0
                                       : DSV3_GEMM_F32;
  options.gpu_memory = gpu_memory;
  if (!place.empty()) options.place = place.c_str();
  options.max_batch_tokens = batch;
  if (stream_from) options.stream_from = *stream_from > 0 ? *stream_from : -1;
  options.kv = kv == "bf16" ? DSV3_KV_BF16 : kv == "f32" ? DSV3_KV_F32 : DSV3_KV_AUTO;
  return options;
}

}  // namespace tools
