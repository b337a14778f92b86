// The packed weight file: write it, open it (read-only mmap), verify it. Layout: docs/format.md.
//
// One file holds an index (header, a JSON block, raw sections, the tensor table, the extent table) and after
// it the data extents. An extent is the unit of reading and of checksums: one plain tensor (elements, then
// its scales), or several that are always used together, such as the three matrices of one expert. The file's
// own index checksum is checked by open(); the extents' by verify().
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"
#include "ggml-lite/tensor.h"

namespace lite {

// What the table says of one tensor, before or without its data.
struct PackEntry {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;  // 1..4 dimensions, each at least 1
  bool scaled = false;  // has block scales: grid [ceil(shape[0] / block_rows), ceil(shape[1] / block_cols)]
  DType scale_dtype = DType::F32;
  int64_t block_rows = 0, block_cols = 0;

  Status check() const;         // everything above, with checked arithmetic
  int64_t data_bytes() const;   // of the elements; valid after check()
  int64_t scale_bytes() const;  // of the scale grid; 0 when not scaled
};

struct PackSection {
  std::string name;   // a file's name: "config.json"
  std::string bytes;  // as it was
};

// An alias names another tensor of the table that holds the very same bytes.
struct PackAlias {
  std::string name, target;
};

// One extent to be written: its tensors, in order, and its length. Extents of one group (the experts of a
// layer) get the same `stride`, so that extent i of the group lies at i * stride.
struct PackExtent {
  std::vector<PackEntry> tensors;
  int64_t stride = 0;  // 0: just as long as needed; else at least that, a multiple of 4 KiB
};

// Bytes an extent of these tensors takes, each part at a multiple of 64, the whole a multiple of 4 KiB.
Result<int64_t> extent_bytes(const PackExtent& extent);

// Writes `path` through `path`.partial, in file order and in pieces of any size:
//   create; write or append (every tensor of every extent, in the given order); finish.
// Memory is that of the index. A writer destroyed before finish() removes the partial file and leaves `path`
// as it was; one that was killed leaves a partial file that the next writer takes over. Two writers of one
// path at a time: the second fails with Busy.
class PackWriter {
 public:
  // Fixes the whole layout; checks names, shapes, aliases and free disk space before a byte of data is
  // written. `json` must be an object and hold only what decides what the model computes: it is part of the
  // model id.
  static Result<PackWriter> create(const std::string& path, const Json& json,
                                   std::vector<PackSection> sections, const std::vector<PackExtent>& extents,
                                   const std::vector<PackAlias>& aliases);
  PackWriter(PackWriter&&) noexcept;
  PackWriter& operator=(PackWriter&&) noexcept;
  ~PackWriter();

  int64_t file_bytes() const;  // of the finished file
  // The next bytes of the data: each tensor's elements, then its scales. Padding is the writer's.
  Status write(std::span<const std::byte> bytes);
  // The next tensor as a whole: exactly data_bytes() and scale_bytes() of its entry.
  Status append(std::span<const std::byte> data, std::span<const std::byte> scales);
  // Writes the index, syncs file and folder, and gives the file its name, in place of one that had it.
  Status finish();

 private:
  PackWriter();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether the file at `path` starts as a packed file does; false when it cannot be read.
bool looks_packed(const std::string& path);

// An opened file. Tensors are views of the mapping and live as long as the PackFile.
class PackFile {
 public:
  struct Item {
    PackEntry entry;  // its own name, also for an alias
    Tensor tensor;    // read-only memory
    int32_t extent = -1;
    int32_t alias_of = -1;  // item that this one names
  };
  struct ExtentInfo {
    int64_t offset, bytes;
    uint64_t checksum;  // XXH3-64 of all its bytes, padding included
  };

  static Result<PackFile> open(const std::string& path);
  PackFile(PackFile&&) noexcept;
  PackFile& operator=(PackFile&&) noexcept;
  ~PackFile();

  const std::string& path() const;
  int64_t file_bytes() const;
  std::string model_id() const;  // 32 hex digits: a hash of everything that decides what the model computes
  const Json& json() const;
  const std::vector<std::string>& section_names() const;
  const std::string_view* section(std::string_view name) const;  // null when absent
  const std::vector<Item>& items() const;                        // sorted by name
  const std::vector<ExtentInfo>& extents() const;
  const Item* find(std::string_view name) const;  // null when absent; O(log n)
  std::vector<std::string_view> tensors_of_extent(int32_t extent) const;

  // Bytes [from, from + to.size()) of an extent, read and not through the mapping: a disk that fails is then an
  // error and not a signal. Thread-safe.
  Status read(int32_t extent, int64_t from, std::span<std::byte> to) const;

  // Compares every extent with its checksum, at the speed of the disk: a few threads read a MB at a time.
  // `progress` gets bytes done and in all, and stops the work by returning false (Cancelled); `damage` gets a line
  // for each extent that differs or cannot be read, with the names of its tensors, in no particular order. Both
  // are called on the calling thread. Corrupt, with the first of these lines and their number, when there is any.
  Status verify(const std::function<bool(int64_t done, int64_t total)>& progress = {},
                const std::function<void(const std::string& line)>& damage = {}) const;

 private:
  PackFile();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lite
