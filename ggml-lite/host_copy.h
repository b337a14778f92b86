// A packed file's weights copied into this process's own memory, for machines where that is read faster than mapped pages.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "ggml-lite/backend.h"
#include "ggml-lite/pack.h"

namespace lite {

class HostCopy {
 public:
  // Reads all extents with one thread on each of the processors. A tensor's rows are divided among them in order, and pages
  // belong to the memory of the processor that first writes them: so on a machine of several nodes each reads its own part of
  // every matrix, as Team::tasks divides the work. Huge pages where the system has them.
  // `progress` gets bytes done and in all, on the calling thread, and stops the work by returning false (Cancelled).
  // Errors: OutOfMemory with the numbers when the file is larger than this process may use, IO, Cancelled.
  static Result<HostCopy> read(const PackFile& file, std::span<const int> processors,
                               const std::function<bool(int64_t done, int64_t total)>& progress = {});

  // An item of that file, here.
  Tensor tensor(const PackFile::Item& item) const;

 private:
  std::vector<std::ptrdiff_t> moved_;  // by extent: from the mapping to the copy
  Buffer memory_;
};

}  // namespace lite
