// The end of a packed file's writing, where its files get their names, and what the writer and a later call that ends
// its work share. Internal to pack*.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ggml-lite/status.h"

namespace lite::pack {

// Opens `path` for writing and locks it, so that of two writers one fails with Busy; a file left by a killed writer
// carries no lock and is used again. `create` is O_CREAT, or 0 for a file that must be there.
Result<int> open_locked(const std::string& path, int create);

// While it lives, no other FolderLock of the folder in which `path` lies does: writers of a model in other numbers of files lock
// different files, so they begin one after the other. Where folders cannot be locked it does nothing.
class FolderLock {
 public:
  explicit FolderLock(const std::string& path);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

// What the journal knows a model by: its index without what the data decide.
std::array<uint8_t, 16> layout_of(std::vector<std::byte> index);

// From partial files to the real ones, as far as it is not done yet: the first file's name comes last.
Status give_names(const std::string& path, uint32_t count, bool named_before);

}  // namespace lite::pack
