// A regular file opened for reading, and reads that either give every byte asked for or say why not. A file
// that shrinks while it is read is an error here; through a mapping it would be a signal. And a new file, which
// has its name only when it is complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "ggml-lite/status.h"

namespace lite {

class File {
 public:
  // NotFound when there is none; InvalidArgument for a folder or anything else that is not a regular file.
  static Result<File> open(const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }  // when it was opened
  int descriptor() const { return fd_; }
  void close();  // nothing can be read any more
  // Fills `to` from `offset` on; Corrupt when the file ends before. Thread-safe.
  Status read(int64_t offset, std::span<std::byte> to) const;

 private:
  File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
  int64_t bytes_ = 0;
};

// A file written beside `path` that takes its name at the end: whoever opens `path` finds what was there before or all
// of the new bytes. Only its owner can read it. Destroyed before finish(), it leaves nothing behind.
class NewFile {
 public:
  // InvalidArgument when `path` is there and is no regular file.
  static Result<NewFile> create(const std::string& path);
  NewFile(NewFile&& other) noexcept;
  NewFile& operator=(NewFile&&) = delete;
  ~NewFile();

  Status append(std::span<const std::byte> bytes);
  // Everything is on the disk when this returns.
  Status finish();

 private:
  NewFile(int fd, std::string path, std::string partial)
      : fd_(fd), path_(std::move(path)), partial_(std::move(partial)) {}
  int fd_;
  std::string path_, partial_;
};

// A whole file of at most `limit` bytes.
Result<std::string> read_text(const std::string& path, int64_t limit);

// The folder that `path` lies in.
std::string folder_of(const std::string& path);
// Waits until the names in that folder are durable.
Status sync_folder(const std::string& path);

// Io, saying how much is missing, unless the disk of the folder of `path` has room for so many bytes more.
Status check_room(const std::string& path, int64_t bytes);

// "open PATH: No such file or directory", with the code that fits `error` (an errno).
Status errno_status(const std::string& what, int error);

// Whether these are the first bytes of what git-lfs leaves in a folder until the real file is fetched.
bool is_lfs_pointer(std::string_view bytes);

}  // namespace lite
