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
};

class SafetensorsFile {
 public:
  // Checks the header against the file's length. Memory is proportional to the header, which is at most 100
  // MB.
  static Result<SafetensorsFile> open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in the order of their data
  // Bytes [from, from + to.size()) of the tensor's data. Thread-safe.
  Status read(const SafetensorsEntry& entry, int64_t from, std::span<std::byte> to) const;

 private:
  explicit SafetensorsFile(lite::File file) : file_(std::move(file)) {}
  lite::File file_;
  std::vector<SafetensorsEntry> entries_;
};

}  // namespace dsv3
