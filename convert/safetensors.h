// Reading safetensors files that nobody vouches for. The header is checked as a whole (docs: the format's
// README and its Rust reader; stricter in that a tensor named twice is refused); data is read with pread,
// never mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ggml-lite/file.h"
#include "ggml-lite/status.h"

namespace dsv3 {

using lite::Result;
using lite::Status;

struct SafetensorsEntry {
  std::string name;            // without control characters: it can be printed
  std::string dtype;           // one of safetensors' own names: "F8_E4M3", "BF16", "U8", ...
  std::vector<int64_t> shape;  // dimensions may be 0; no dimensions: one element
  int64_t offset = 0;          // in the file
  int64_t bytes = 0;

  friend bool operator==(const SafetensorsEntry&, const SafetensorsEntry&) = default;
};

class SafetensorsFile {
 public:
  // Checks the header against the file's length. Memory is proportional to the header, which is at most
  // 64 MiB.
  static Result<SafetensorsFile> open(const std::string& path);
  // A copy of the header alone, made by write_header(); the data cannot be read.
  static Result<SafetensorsFile> open_header(const std::string& path);
  // Writes such a copy, durable and with this file's time of change.
  Status write_header(const std::string& path) const;

  const std::string& path() const { return file_.path(); }
  int64_t bytes() const { return bytes_; }  // of the whole file, also where only its header is there
  int64_t changed_ns() const { return changed_ns_; }     // time of the last change
  void set_changed_ns(int64_t ns) { changed_ns_ = ns; }  // of the one that this stands for
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in the order of their data
  // Nothing can be read any more; a file that has no name any more gives its room on the disk free.
  void close() { file_.close(); }
  // Bytes [from, from + to.size()) of the tensor's data. Thread-safe.
  Status read(const SafetensorsEntry& entry, int64_t from, std::span<std::byte> to) const;

 private:
  explicit SafetensorsFile(lite::File file) : file_(std::move(file)) {}
  static Result<SafetensorsFile> open(const std::string& path, bool with_data);

  lite::File file_;
  int64_t header_bytes_ = 0, bytes_ = 0, changed_ns_ = 0;
  std::vector<SafetensorsEntry> entries_;
};

}  // namespace dsv3
