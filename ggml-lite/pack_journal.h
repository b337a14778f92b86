// What a writer of a packed file has finished, noted in a file beside it, so that the next writer can go on.
// Layout: docs/format.md. Internal to pack*.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/status.h"

namespace lite::pack {

class Journal {
 public:
  struct Record {
    uint32_t extent;
    uint32_t reserved;
    uint64_t checksum;  // the extent's
  };
  static constexpr std::string_view kMagic = "DSV3JRNL";  // what a journal begins with
  // A record of this extent says that every file is complete and is getting its name.
  static constexpr uint32_t kPublishing = 0xFFFFFFFF;
  // One of this says that the caller deletes what it has written from: nobody may begin anew in these files' place.
  static constexpr uint32_t kOnlyCopy = 0xFFFFFFFE;

  struct Content {
    uint32_t file_count = 0;
    std::array<uint8_t, 16> layout = {};  // XXH3-128 of the index without checksums
    std::string key;
    std::vector<Record> records;
    int64_t bytes = 0;       // of the journal up to the last good record
    bool only_copy = false;  // there is a record of kOnlyCopy, be it behind a damaged one
  };

  Journal() = default;
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  ~Journal();

  // What the journal at `path` says; nothing when there is none or its head is damaged. Records end at the first
  // that is damaged: it was being written when the writer was killed.
  static std::optional<Content> read(const std::string& path);
  // Whether there is one that has been written whole, and cannot be read: what it told may matter.
  static bool is_unreadable(const std::string& path);

  // Begins a journal, in place of any other.
  Status create(const std::string& path, const Content& content);
  // What ties partial files to the journal with this head.
  static uint64_t mark(const Content& content);
  // Goes on with a journal that was read.
  Status resume(const std::string& path, const Content& content);
  // What one with this head and so many records takes of a disk.
  static int64_t room(const Content& content, size_t records);
  // Takes so much of the disk, if it can: of a full disk must be told what it has.
  void reserve(int64_t bytes);
  // Adds records and waits until they are durable.
  Status add(const std::vector<Record>& records);
  bool is_open() const { return fd_ >= 0; }

  // The journal at `path` is not needed any more; durable when this returns. That there is none is no error.
  static Status remove(const std::string& path);

 private:
  Status open(const std::string& path, int64_t bytes);
  Status write(const void* data, size_t n);
  int fd_ = -1;
  std::string path_;
  int64_t end_ = 0;
};

// What kept `path` from being written, in words; `error` is an errno.
Status write_failed(const std::string& path, int64_t offset, int error);

}  // namespace lite::pack
