// dsv3 verify: is every byte of a packed file as it was written?
#include <unistd.h>

#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>

#include "tools/common.h"

namespace tools {

namespace {

constexpr int64_t kMostLines = 100;  // of damage; the rest is counted

struct VerifyOptions {
  std::string model;
  bool quiet = false;
};

class Verify {
 public:
  explicit Verify(const VerifyOptions& o)
      : o_(o), terminal_(isatty(STDERR_FILENO)), begin_(seconds()), shown_(begin_) {}

  void run() {
    catch_signals();
    dsv3_verify_options options = {};
    options.struct_size = sizeof options;
    options.damage = [](void* self, dsv3_log_level, const char* line) {
      static_cast<Verify*>(self)->damage(line);
    };
    options.progress = [](void* self, int64_t done, int64_t total) {
      static_cast<Verify*>(self)->progress(done, total);
      return caught_signal();
    };
    options.damage_user = options.progress_user = this;
    const dsv3_status status = dsv3_verify(o_.model.c_str(), &options);
    wipe();
    throw_if_interrupted();
    if (lines_ > kMostLines) damage_ += text("and ", lines_ - kMostLines, " more\n");
    if (!damage_.empty()) write_stdout(damage_);
    check(status);
    if (!o_.quiet)
      write_stdout(text(printable(o_.model), ": ", size_text(total_), " of data are as they were written",
                        rate(total_), "\n"));
  }

 private:
  void damage(const char* line) {
    if (++lines_ <= kMostLines) damage_ += printable(line) + "\n";
  }

  // On a terminal one line written over and over, else a line at every 10 %.
  void progress(int64_t done, int64_t total) {
    total_ = total;
    if (o_.quiet || total == 0 || done == total) return;
    const double now = seconds();
    const int64_t tenth = int64_t(10 * double(done) / double(total));
    if (terminal_ ? now - shown_ < 0.2 : tenth == tenth_) return;
    shown_ = now;
    tenth_ = tenth;
    std::string line = text(int64_t(100 * double(done) / double(total)), " %, ", size_text(done), " of ",
                            size_text(total), rate(done));
    if (done > 0) {
      const auto left = int64_t((now - begin_) * double(total - done) / double(done) + 0.5);
      char time[48];
      std::snprintf(time, sizeof time, ", %lld:%02d:%02d left", static_cast<long long>(left / 3600),
                    int(left / 60 % 60), int(left % 60));
      line += time;
    }
    if (lines_ > 0) line += text(", ", lines_, lines_ == 1 ? " extent damaged" : " extents damaged");
    if (!terminal_) return note(line);
    std::fprintf(stderr, "\r%s\033[K", line.c_str());
    open_ = true;
  }

  void wipe() {
    if (open_) std::fputs("\r\033[K", stderr);
    open_ = false;
  }

  std::string rate(int64_t bytes) const {
    const double passed = seconds() - begin_;
    return passed > 0 && bytes > 0 ? ", " + size_text(int64_t(double(bytes) / passed)) + "/s" : "";
  }

  const VerifyOptions& o_;
  const bool terminal_;
  const double begin_;
  double shown_;
  bool open_ = false;  // the cursor stands in the progress line
  int64_t tenth_ = 0, total_ = 0, lines_ = 0;
  std::string damage_;
};

}  // namespace

void add_verify(CLI::App* program) {
  const auto o = std::make_shared<VerifyOptions>();
  CLI::App* command = program->add_subcommand(
      "verify", "Compare every byte of a packed file with its checksums; exit code 1 if any differs");
  command->add_option("MODEL", o->model, "packed file")->required();
  command->add_flag("-q,--quiet", o->quiet, "say nothing but what is damaged");
  command->callback([o] { Verify(*o).run(); });
}

}  // namespace tools
