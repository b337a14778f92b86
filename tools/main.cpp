// The dsv3 program: its command line, and how it ends. Each subcommand has its own file; all see only dsv3.h.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include <CLI/CLI.hpp>

#include "tools/common.h"

namespace {

// A closed standard stream would give its number to the next file we open, and messages would end up in that
// file.
void occupy_standard_streams() {
  int fd = open("/dev/null", O_RDONLY);  // writing to it goes on failing
  while (fd >= 0 && fd <= STDERR_FILENO) fd = dup(fd);
  if (fd >= 0) close(fd);
}

int complain(const std::string& message, tools::ExitCode code) {
  std::fprintf(stderr, "dsv3: %s\n", tools::printable(message).c_str());
  return code;
}

// CLI11 ends --help and --version with an exception, too; these print to standard output.
int end_of_parsing(CLI::App& program, const CLI::ParseError& e) {
  if (e.get_exit_code() == int(CLI::ExitCodes::Success)) return program.exit(e);
  std::string command = "dsv3";
  for (const CLI::App* chosen : program.get_subcommands()) command += " " + chosen->get_name();
  return complain(std::string(e.what()) + "; see " + command + " --help", tools::kUsage);
}

int run_program(int argc, char** argv) {
  CLI::App program(
      "Runs DeepSeek-V3-family Mixture-of-Experts models from one packed file (made by dsv3-convert).",
      "dsv3");
  program.footer(
      "Standard output carries the result and nothing else.\n"
      "Exit codes: 0 done (also when the reader of standard output went away), 1 failure, 2 wrong usage,\n"
      "130 interrupted (Ctrl-C), 143 terminated.");
  program.set_version_flag("--version", std::string(dsv3_version()),
                           "Version, git id, backends, instruction sets");
  program.require_subcommand(0, 1);  // with none the message below says more than CLI11's
  tools::add_run(&program);
  tools::add_info(&program);
  tools::add_dump(&program);
  tools::add_tokenize(&program);
  tools::add_render(&program);
  tools::add_heads(&program);
  tools::add_routing(&program);
  tools::add_layer(&program);
  tools::add_plan(&program);
  tools::add_verify(&program);
  tools::add_bench(&program);
  try {
    program.parse(argc, argv);
    if (!program.get_subcommands().empty()) return tools::kOk;
    return complain("expected a command, such as run or info; see dsv3 --help", tools::kUsage);
  } catch (const CLI::ParseError& e) {
    return end_of_parsing(program, e);
  }
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
  occupy_standard_streams();
  allow_many_files();
  // A reader that has gone away and a file that may not grow show as failed writes.
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  try {
    return run_program(argc, argv);
  } catch (const tools::Failure& e) {
    return complain(e.message, tools::kFailed);
  } catch (const tools::Interrupted&) {
    return tools::kSignal + tools::caught_signal();
  } catch (const tools::ReaderGone&) {
    return tools::kOk;
  } catch (const std::bad_alloc&) {
    return complain("out of memory", tools::kFailed);
  } catch (const std::exception& e) {
    return complain(e.what(), tools::kFailed);
  }
}
