// What the fuzz targets share: how a broken promise ends a run, files without a disk, and input taken apart.
//
// A target feeds one parser. Beyond "no crash, no hang, no memory out of proportion", which the sanitizers and
// libFuzzer's limits watch over, it checks what the parser promises: require().
#pragma once

#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "ggml-lite/status.h"
#include "tests/unit/temp_dir.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fuzz {

constexpr const char* kMemory = "/dev/shm";  // where a TempDir costs no disk

inline void require(bool promise, const char* what) {
  if (promise) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

// An error is one line that a person can read, whatever the input.
inline void check(const lite::Status& status) {
  if (status.ok()) return;
  require(!status.message().empty(), "an error says something");
  require(status.message().size() < 20000, "a message is not as long as its input");
  require(status.code() != lite::Code::Internal, "no input is our bug");
}

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// The text up to the first `separator` or the end, taken off its front.
inline std::string_view take_up_to(char separator, std::string_view* text) {
  const size_t end = std::min(text->find(separator), text->size());
  const std::string_view front = text->substr(0, end);
  text->remove_prefix(std::min(end + 1, text->size()));
  return front;
}

// A file in memory that has a path, rewritten for every input.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", 0)), path_("/proc/self/fd/" + std::to_string(fd_)) {
    require(fd_ >= 0, "a file in memory");
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::string& path() const { return path_; }
  // `bytes`, then zeros up to `length`.
  void set(std::string_view bytes, size_t length) {
    require(ftruncate(fd_, 0) == 0 && pwrite(fd_, bytes.data(), bytes.size(), 0) == ssize_t(bytes.size()) &&
                ftruncate(fd_, off_t(length)) == 0,
            "a file in memory can be written");
  }

 private:
  int fd_;
  std::string path_;
};

// Makes a read happen that the optimiser would leave out.
inline void touch(const std::byte* first, int64_t bytes) {
  [[maybe_unused]] static volatile unsigned sink;
  if (bytes > 0) sink = unsigned(first[0]) + unsigned(first[bytes - 1]);
}

}  // namespace fuzz
