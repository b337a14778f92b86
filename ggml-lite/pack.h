// The packed weight file: write it, open it (read-only mmap), verify it. Layout: docs/format.md.
//
// One file holds an index (header, a JSON block, raw sections, the tensor table, the extent table) and after
// it the data extents. An extent is the unit of reading and of checksums: one plain tensor (elements, then
// its scales), or several that are always used together, such as the three matrices of one expert. The file's
// own index checksum is checked by open(); the extents' by verify(). A large model may be split over several
// files, of which the first has the index.
#pragma once

#include <functional>
#include <memory>
#include <optional>
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

  Status check() const;  // everything above, with checked arithmetic
  Status check_but_name() const;
  int64_t data_bytes() const;                             // of the elements; valid after check()
  int64_t scale_bytes() const;                            // of the scale grid; 0 when not scaled
  Tensor view(std::byte* data, std::byte* scales) const;  // of memory that holds the two
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

struct PackOptions {
  // Several files, none longer than this but where a single extent needs it. 0: one file.
  int64_t split_bytes = 0;
  // Not empty: a writer that ends before finish(), however it ends, leaves what it has written behind, and the
  // next writer of the same path with the same layout and key goes on from there. The key is any text that
  // tells whether it would write the same data.
  std::string resume_key;
  bool only_resume = false;  // fail where the writer would have to begin anew
  // By extent: bytes on the same disk that the caller frees once it is durable. May be empty: none.
  std::vector<int64_t> frees;
};

struct PackPart {
  std::string path;
  int64_t bytes;
};

// Writes `path`, or path-00001-of-0000N (before the ending .dsv3) and so on, through *.partial:
//   create; write (every tensor of every extent, in the given order); finish.
// or, with all cores,
//   create; begin every extent that is not finished() and write it, in any order; sync now and then; finish.
// Memory is that of the index and of what is being written. Without a resume key, a writer destroyed before
// finish() removes its partial files; one that was killed leaves them to the next writer. Two writers of one
// path at a time: the second fails with Busy. A file with a partial file's or the journal's name that no writer made
// is InvalidArgument, and stays.
class PackWriter {
 public:
  // Fixes the whole layout; checks names, shapes and aliases. Touches nothing. `json` must be an object and
  // hold only what decides what the model computes: it is part of the model id.
  static Result<PackWriter> plan(const std::string& path, const Json& json, std::vector<PackSection> sections,
                                 const std::vector<PackExtent>& extents,
                                 const std::vector<PackAlias>& aliases, PackOptions options = {});
  // Makes the partial files, or takes up those of an earlier writer; checks the free disk space.
  Status start();
  // Both.
  static Result<PackWriter> create(const std::string& path, const Json& json,
                                   std::vector<PackSection> sections, const std::vector<PackExtent>& extents,
                                   const std::vector<PackAlias>& aliases, PackOptions options = {});
  PackWriter(PackWriter&&) noexcept;
  PackWriter& operator=(PackWriter&&) noexcept;
  ~PackWriter();

  const std::vector<PackPart>& parts() const;  // the finished files
  int64_t file_bytes() const;                  // of all of them
  bool has_resumed() const;                    // start() took up what an earlier writer left
  int64_t durable_bytes() const;               // of extents that need not be written any more, come what may
  bool finished(size_t extent) const;          // its data are in the file already

  // One extent being written, from front to back, by one thread at a time. Lives no longer than its writer.
  class Extent {
   public:
    Extent(Extent&&) noexcept;
    Extent& operator=(Extent&&) noexcept;
    ~Extent();
    // The next bytes: each tensor's elements, then its scales. Padding is the writer's. With the last byte the
    // extent is finished.
    Status write(std::span<const std::byte> bytes);

   private:
    friend class PackWriter;
    Extent();
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };
  // Thread-safe; each extent once.
  Extent begin(size_t extent);
  // Makes all finished extents durable, notes them in the journal if there is a resume key, and returns those
  // that were not durable before. Thread-safe, and waits for the disk, not for other threads' writing.
  Result<std::vector<size_t>> sync();
  // To be called before the caller deletes what durable extents were made of: from then on, whatever happens, a
  // writer of this path that cannot go on from here fails. Needs a resume key. Thread-safe; durable when it returns.
  Status hold_only_copy();

  // The next bytes of the next extent, in order: each tensor's elements, then its scales.
  Status write(std::span<const std::byte> bytes);
  // Writes the index, syncs files and folder, and gives the files their names, in place of those that had
  // them. `named` is called when all is durable and before the journal goes.
  Status finish(const std::function<void()>& named = {});
  // Removes the partial files and the journal.
  void discard();

 private:
  PackWriter();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A writer with a resume key that was interrupted while its files got their names.
struct NamedLate {
  std::string path;  // of the first file
  std::string key;
  bool only_copy;  // hold_only_copy() was called
};
// Ends such a writer's work as finish() would have; nothing when there was none, or its files are not there any more.
// Busy while that writer is still at it.
Result<std::optional<NamedLate>> finish_naming(const std::string& path,
                                               const std::function<void(const NamedLate&)>& named = {});

// The files of models that are named `path`, as each file's header says, in however many files each lies; but none of a
// model in `but_of` files.
std::vector<std::string> files_of_model(const std::string& path, size_t but_of = 0);

// The resume key of a writer of `path` that did not come to its end; nothing when there is none.
std::optional<std::string> unfinished_key(const std::string& path);

// InvalidArgument when a writer of `path` that did not come to its end holds the only copy of its data.
Status check_no_only_copy(const std::string& path);

// Whether the file at `path` starts as a packed file does; false when it cannot be read.
bool looks_packed(const std::string& path);

// Which file of how many a packed file is, as its header says; nothing for what has no such header.
struct PackPlace {
  uint32_t index, count;
};
std::optional<PackPlace> packed_place(const std::string& path);

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
    uint32_t file;      // index into parts()
  };

  // Any of a model's files opens it.
  static Result<PackFile> open(const std::string& path);
  PackFile(PackFile&&) noexcept;
  PackFile& operator=(PackFile&&) noexcept;
  ~PackFile();

  const std::string& path() const;             // as it was opened
  const std::vector<PackPart>& parts() const;  // the files; the first has the index
  int64_t file_bytes() const;                  // of all of them
  std::string model_id() const;  // 32 hex digits: a hash of everything that decides what the model computes
  const Json& json() const;
  const std::vector<std::string>& section_names() const;
  const std::string_view* section(std::string_view name) const;  // null when absent
  const std::vector<Item>& items() const;                        // sorted by name
  const std::vector<ExtentInfo>& extents() const;
  // Null when absent. O(log n); with an item that may lie near, the logarithm of the distance.
  const Item* find(std::string_view name, const Item* near = nullptr) const;
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
