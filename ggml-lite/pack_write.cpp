// Writing a packed file. Every size is known at plan(), so the index gets its place first and its bytes last;
// extents go through PATH.partial, hashed on the way, and PATH appears only when everything is on the disk.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <numeric>
#include <unordered_map>

#include "ggml-lite/file.h"
#include "ggml-lite/pack.h"
#include "ggml-lite/pack_format.h"
#include "ggml-lite/pack_journal.h"
#include "ggml-lite/pack_naming.h"

namespace lite {

using namespace pack;

namespace {

constexpr size_t kBuffer = 1 << 18;                // small tensors are gathered into writes of this size
constexpr int64_t kWriteBack = int64_t(32) << 20;  // the kernel is told to start writing after so many bytes
// What is written may be ahead of what is durable, and so of what the caller has freed, by this much.
constexpr int64_t kLag = int64_t(1) << 30;

// The other files of a model: whoever holds the first one's lock has these, too.
Result<int> open_other_partial(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  if (fd < 0) return errno_status("create " + path, errno);
  struct stat opened;
  if (fstat(fd, &opened) == 0 && S_ISREG(opened.st_mode)) return fd;
  ::close(fd);
  return invalid_argument("create ", path, ": it is there and is not a file; try another name");
}

// A file that is there and begins with anything else is somebody else's. One of a writer that was killed may be empty.
Status check_own(const std::string& path, std::string_view magic) {
  const auto file = File::open(path);
  if (!file.ok()) return file.status().code() == Code::NotFound ? Status() : file.status();
  std::string start(size_t(std::min(int64_t(magic.size()), file->bytes())), '\0');
  LITE_TRY(file->read(0, std::as_writable_bytes(std::span(start))));
  if (magic.starts_with(start)) return {};
  return invalid_argument("create ", path,
                          ": it is there and was not made by this program, which would replace it; move it "
                          "away, or choose another name");
}

Status check_no_only_copy(const std::string& path, const std::optional<Journal::Content>& journal) {
  if (!journal || !journal->only_copy) return {};
  const std::string partial = part_path(path, 0, journal->file_count) + ".partial";
  return invalid_argument(
      "create ", path, ": ", partial,
      " holds the only copy of weights whose files were deleted as they were converted; finish "
      "that conversion with its own command, or, to lose them, delete ",
      partial, " and ", path, ".journal");
}

}  // namespace

struct PackWriter::Impl {
  struct Step {             // one part of one tensor
    int64_t offset, bytes;  // offset in the extent
    bool scale;
  };
  enum class State : uint8_t { ToDo, Finished, Durable };

  std::string path, json_text;
  PackOptions options;
  std::string names;        // of the tensors, then of the sections
  size_t tensor_names = 0;  // bytes of the former
  std::vector<PackSection> sections;
  Header header = {};  // of the first file
  std::vector<TensorRecord> tensors;
  std::vector<ExtentRecord> extents;
  std::vector<SectionRecord> section_records;
  std::vector<Step> steps;
  std::vector<size_t> first_step;  // [extents + 1]
  std::vector<PackPart> parts;

  std::vector<int> fds;  // of the partial files
  bool mine = false;     // the lock is held: partial files and journal are this writer's
  bool resumed = false;  // there is what an earlier writer left
  Journal::Content own;  // the head of its journal
  bool finished = false;
  Journal journal;
  bool only_copy = false;           // and the journal says so
  std::mutex syncing;               // one sync at a time
  Status lost;                      // of the first sync that failed: Linux tells of lost data only once
  std::mutex mutex;                 // of what is below
  int64_t durable_bytes = 0;        // of extents
  std::vector<State> state;         // by extent
  std::vector<size_t> not_durable;  // finished extents

  size_t next = 0;  // the extent that write() is at
  std::optional<Extent> current;

  ~Impl() {
    if (mine && !finished && options.resume_key.empty()) remove_files();  // while the lock is still ours
    for (const int fd : fds)
      if (fd >= 0) ::close(fd);
  }

  std::string partial(size_t file) const { return parts[file].path + ".partial"; }
  std::string journal_path() const { return path + ".journal"; }

  Status plan(const std::vector<PackExtent>& from, const std::vector<PackAlias>& aliases);
  Status place_extents();
  std::vector<std::byte> first_index() const;
  std::vector<std::byte> index_of(size_t file) const;
  std::array<uint8_t, 16> layout() const;
  Status start();
  Header partial_header(size_t file) const;
  bool is_own(size_t file) const;
  bool resume(const Journal::Content& content);
  Status may_begin_anew(const std::optional<Journal::Content>& old) const;
  Status begin_anew(const std::optional<Journal::Content>& old);
  Status check_disk() const;
  int64_t allocated() const;
  int64_t total_bytes() const;
  int64_t not_allocated() const;
  int64_t journal_room() const;
  Status write_at(size_t file, int64_t offset, std::span<const std::byte> bytes) const;
  Status explain(Status failure, int error) const;
  void finish_extent(size_t extent, uint64_t checksum);
  Result<std::vector<size_t>> sync();
  Result<std::vector<size_t>> sync_once();
  Status hold_only_copy();
  void set_model_id();
  Status write_indexes();
  Status publish(const std::function<void()>& named);
  void remove_files();
};

struct PackWriter::Extent::Impl {
  PackWriter::Impl* writer;
  size_t extent;
  size_t step, last_step;
  int64_t step_done = 0;  // bytes of it
  int64_t position = 0;   // in the extent, of the next byte
  int64_t written_back = 0;
  std::vector<std::byte> buffer;  // the last bytes before `position`, not written yet
  Hash hash;

  Status write(std::span<const std::byte> bytes);
  Status put(std::span<const std::byte> bytes);
  Status put_zeros(int64_t up_to);
  Status flush();
};

// Checks everything and fixes where each byte of the file lies.
Status PackWriter::Impl::plan(const std::vector<PackExtent>& from, const std::vector<PackAlias>& aliases) {
  if (from.size() >= kNoAlias) return invalid_argument("got ", from.size(), " extents, which is too many");
  struct Named {
    std::string_view name;
    TensorRecord record;
    const PackAlias* alias;
  };
  std::vector<Named> named;
  int64_t data_bytes = 0;  // of all extents so far
  for (const PackExtent& extent : from) {
    LITE_ASSIGN(const int64_t length, extent_bytes(extent));
    first_step.push_back(steps.size());
    int64_t end = 0;
    for (const PackEntry& e : extent.tensors) {
      LITE_ASSIGN(const Place place, place_in_extent(e, &end));
      TensorRecord r = {};
      r.name_bytes = uint32_t(e.name.size());
      r.dtype = uint8_t(e.dtype);
      r.rank = uint8_t(e.shape.size());
      std::fill(std::begin(r.shape), std::end(r.shape), 1);
      std::copy(e.shape.begin(), e.shape.end(), r.shape);
      r.extent = uint32_t(extents.size());
      r.alias_of = kNoAlias;
      r.data_offset = uint64_t(place.data_offset);
      r.data_bytes = uint64_t(e.data_bytes());
      steps.push_back({place.data_offset, e.data_bytes(), false});
      if (e.scaled) {
        r.flags = kScaled;
        r.scale_dtype = uint8_t(e.scale_dtype);
        r.block_rows = uint32_t(e.block_rows);
        r.block_cols = uint32_t(e.block_cols);
        r.scale_offset = uint64_t(place.scale_offset);
        r.scale_bytes = uint64_t(e.scale_bytes());
        steps.push_back({place.scale_offset, e.scale_bytes(), true});
      }
      named.push_back({e.name, r, nullptr});
    }
    extents.push_back({0, 0, 0, uint64_t(length), 0});
    data_bytes += length;
    if (data_bytes > kMaxBytes) return invalid_argument("the data is too large to be real");
  }
  first_step.push_back(steps.size());
  for (const PackAlias& alias : aliases) {
    LITE_TRY(check_name(alias.name));
    named.push_back({alias.name, {}, &alias});
  }

  std::sort(named.begin(), named.end(), [](const Named& a, const Named& b) { return a.name < b.name; });
  std::unordered_map<std::string_view, uint32_t> index_of;
  for (const Named& n : named)
    if (!index_of.emplace(n.name, uint32_t(index_of.size())).second)
      return invalid_argument("tensor \"", n.name, "\" is given twice");
  for (Named& n : named) {
    if (n.alias) {
      const auto target = index_of.find(n.alias->target);
      if (target == index_of.end() || named[target->second].alias)
        return invalid_argument("alias \"", n.name, "\" of \"", n.alias->target,
                                "\": there is no such tensor");
      n.record = named[target->second].record;
      n.record.alias_of = target->second;
    }
    n.record.name_bytes = uint32_t(n.name.size());
    n.record.name_offset = names.size();
    names += n.name;
    tensors.push_back(n.record);
  }
  tensor_names = names.size();

  std::sort(sections.begin(), sections.end(),
            [](const PackSection& a, const PackSection& b) { return a.name < b.name; });
  int64_t section_bytes = 0;
  for (size_t i = 0; i < sections.size(); ++i) {
    const PackSection& s = sections[i];
    LITE_TRY(check_section_name(s.name));
    if (i > 0 && sections[i - 1].name == s.name)
      return invalid_argument("section \"", s.name, "\" is given twice");
    section_bytes = round_up(section_bytes, kAlign);
    section_records.push_back(
        {names.size(), uint32_t(s.name.size()), 0, uint64_t(section_bytes), uint64_t(s.bytes.size())});
    names += s.name;
    section_bytes += int64_t(s.bytes.size());
  }

  header.json.bytes = json_text.size();
  header.names.bytes = names.size();
  header.tensors.bytes = tensors.size() * sizeof(TensorRecord);
  header.extents.bytes = extents.size() * sizeof(ExtentRecord);
  header.sections.bytes = section_records.size() * sizeof(SectionRecord);
  header.section_data.bytes = uint64_t(section_bytes);
  place_parts(&header);
  if (int64_t(header.data_offset) > kMaxIndex)
    return invalid_argument("the index takes ", header.data_offset, " bytes, expected at most ", kMaxIndex);
  for (SectionRecord& s : section_records) s.offset += header.section_data.offset;

  std::copy(kMagic.begin(), kMagic.end(), header.magic);
  header.version = kVersion;
  header.header_bytes = sizeof(Header);
  state.assign(extents.size(), State::ToDo);
  return place_extents();
}

// In order; a file that has an extent gets the next one if it stays within the split size.
Status PackWriter::Impl::place_extents() {
  uint32_t file = 0;
  uint64_t end = header.data_offset;
  bool empty = true;
  std::vector<uint64_t> bytes;  // of each file
  for (ExtentRecord& e : extents) {
    if (options.split_bytes > 0 && !empty && end + e.bytes > uint64_t(options.split_bytes)) {
      bytes.push_back(end);
      if (++file >= kMaxFiles)
        return invalid_argument("files of ", options.split_bytes, " bytes would be more than ", kMaxFiles,
                                "; try a larger split size");
      end = kPage;
    }
    e.file = file;
    e.offset = end;
    end += e.bytes;
    empty = false;
  }
  bytes.push_back(end);
  header.file_count = uint32_t(bytes.size());
  header.file_bytes = bytes[0];
  for (uint32_t i = 0; i < header.file_count; ++i)
    parts.push_back({part_path(path, i, header.file_count), int64_t(bytes[i])});
  return {};
}

// The index as the tables stand; its own checksum is not in it.
std::vector<std::byte> PackWriter::Impl::first_index() const {
  std::vector<std::byte> index(header.data_offset);
  const auto place = [&](uint64_t offset, const void* from, size_t n) {
    if (n) std::memcpy(index.data() + offset, from, n);
  };
  place(0, &header, sizeof header);
  place(header.json.offset, json_text.data(), json_text.size());
  place(header.names.offset, names.data(), names.size());
  place(header.tensors.offset, tensors.data(), tensors.size() * sizeof(TensorRecord));
  place(header.extents.offset, extents.data(), extents.size() * sizeof(ExtentRecord));
  place(header.sections.offset, section_records.data(), section_records.size() * sizeof(SectionRecord));
  for (size_t i = 0; i < sections.size(); ++i)
    place(section_records[i].offset, sections[i].bytes.data(), sections[i].bytes.size());
  return index;
}

// What a file begins with. The model id must be known.
std::vector<std::byte> PackWriter::Impl::index_of(size_t file) const {
  Header own = header;
  std::vector<std::byte> index;
  if (file == 0) {
    index = first_index();
  } else {
    own.json = own.names = own.tensors = own.extents = own.sections = own.section_data = {};
    place_parts(&own);
    own.file_index = uint32_t(file);
    own.file_bytes = uint64_t(parts[file].bytes);
    index.resize(own.data_offset);
    std::memcpy(index.data(), &own, sizeof own);
  }
  own.index_checksum = index_checksum(index);
  std::memcpy(index.data(), &own, sizeof own);
  return index;
}

std::array<uint8_t, 16> PackWriter::Impl::layout() const {
  return layout_of(first_index());
}

Status PackWriter::Impl::start() {
  for (const PackPart& part : parts) {
    struct stat there;
    if (::stat(part.path.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
      return invalid_argument("create ", part.path, ": it is there and is not a file; try another name");
  }
  const FolderLock folder(path);
  LITE_ASSIGN(const int first, open_locked(partial(0), O_CREAT));
  fds.push_back(first);
  const std::optional<Journal::Content> old = Journal::read(journal_path());
  own = {uint32_t(parts.size()), layout(), options.resume_key, {}};
  const bool same = old && !own.key.empty() && old->key == own.key && old->file_count == own.file_count &&
                    old->layout == own.layout;
  resumed = same && resume(*old);
  if (!resumed) LITE_TRY(may_begin_anew(old));
  mine = true;
  // Of what is gone on with, all stays there, whatever the disk has room for.
  const Status started = resumed ? check_disk() : begin_anew(old);
  if (!started.ok() && !resumed) remove_files();
  if (started.ok() && journal.is_open()) journal.reserve(journal_room());
  return started;
}

// What a partial file begins with until it gets its index: whose it is, and nothing that a reader would take.
Header PackWriter::Impl::partial_header(size_t file) const {
  Header h = {};
  std::copy(kMagic.begin(), kMagic.end(), h.magic);
  h.file_index = uint32_t(file);
  h.file_count = uint32_t(parts.size());
  h.index_checksum = Journal::mark(own);
  return h;
}

// Whether a partial file that is there belongs to this journal; one that has its index already, to such a model.
bool PackWriter::Impl::is_own(size_t file) const {
  const Header expected = partial_header(file);
  Header h;
  if (::pread(fds[file], &h, sizeof h, 0) != ssize_t(sizeof h)) return false;
  if (std::memcmp(&h, &expected, sizeof h) == 0) return true;
  return std::memcmp(h.magic, expected.magic, sizeof h.magic) == 0 && h.version == kVersion &&
         h.file_bytes == uint64_t(parts[file].bytes) && h.file_index == expected.file_index &&
         h.file_count == expected.file_count;
}

// Takes up what the journal tells of; false when the files are not as it says.
bool PackWriter::Impl::resume(const Journal::Content& content) {
  std::vector<int64_t> end(parts.size());  // of the durable data of each file
  only_copy = content.only_copy;
  for (const Journal::Record& r : content.records) {
    if (r.extent == Journal::kOnlyCopy) continue;
    if (r.extent >= extents.size()) return false;
    ExtentRecord& e = extents[r.extent];
    if (state[r.extent] == State::ToDo) durable_bytes += int64_t(e.bytes);
    state[r.extent] = State::Durable;
    e.checksum = r.checksum;
    end[e.file] = std::max(end[e.file], int64_t(e.offset + e.bytes));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) fds.push_back(::open(partial(i).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    struct stat s = {};
    if (fds[i] < 0 || fstat(fds[i], &s) != 0 || !S_ISREG(s.st_mode) || s.st_size < end[i] ||
        s.st_size > parts[i].bytes || !is_own(i))
      return false;
  }
  return journal.resume(journal_path(), content).ok();
}

// Where it may not, everything is left as it was.
Status PackWriter::Impl::may_begin_anew(const std::optional<Journal::Content>& old) const {
  Status may = check_no_only_copy(path, old);
  if (options.only_resume)
    may = corrupt(
        "create ", path, ": the partial files of the earlier start are not there any more, or are not as ",
        journal_path(), " says; put them back, or get the files that were consumed again and delete ",
        journal_path());
  // One in another number of files may be at it.
  if (may.ok() && old && old->file_count != own.file_count) {
    const auto other = open_locked(part_path(path, 0, old->file_count) + ".partial", 0);
    if (other.ok())
      ::close(*other);
    else if (other.status().code() != Code::NotFound)
      may = other.status();
  }
  for (size_t i = 0; i < parts.size() && may.ok(); ++i) may = check_own(partial(i), kMagic);
  if (may.ok()) may = check_own(journal_path(), Journal::kMagic);
  if (may.ok() && Journal::is_unreadable(journal_path()))
    may = corrupt("create ", path, ": ", journal_path(),
                  " is damaged, or of another version, and may tell that ", partial(0),
                  " holds the only copy of weights; if no files were consumed, delete both");
  struct stat s;
  if (!may.ok() && fstat(fds[0], &s) == 0 && s.st_size == 0)
    ::unlink(partial(0).c_str());  // maybe made just now
  return may;
}

Status PackWriter::Impl::begin_anew(const std::optional<Journal::Content>& old) {
  durable_bytes = 0;
  std::fill(state.begin(), state.end(), State::ToDo);
  for (ExtentRecord& e : extents) e.checksum = 0;
  only_copy = false;
  for (size_t i = 1; i < fds.size(); ++i)
    if (fds[i] >= 0) ::close(fds[i]);
  fds.resize(1);
  // First the journal goes: it must never tell of data that are not there.
  LITE_TRY(Journal::remove(journal_path()));
  for (uint32_t i = 0; old && i < old->file_count; ++i) {
    const std::string orphan = part_path(path, i, old->file_count) + ".partial";
    if (orphan != partial(0) && check_own(orphan, kMagic).ok()) ::unlink(orphan.c_str());
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) {
      LITE_ASSIGN(const int fd, open_other_partial(partial(i)));
      fds.push_back(fd);
    }
    if (::ftruncate(fds[i], 0) != 0) return errno_status("create " + partial(i), errno);
    const Header header = partial_header(i);  // so that the next writer knows it
    LITE_TRY(write_at(i, 0, std::as_bytes(std::span(&header, 1))));
    if (!own.key.empty() && ::fdatasync(fds[i]) != 0) return write_failed(partial(i), 0, errno);
  }
  LITE_TRY(check_disk());
  if (options.resume_key.empty()) return {};
  return journal.create(journal_path(), own);
}

// Bytes that the partial files and their journal take of the disk.
int64_t PackWriter::Impl::allocated() const {
  int64_t bytes = 0;
  struct stat s;
  for (const int fd : fds)
    if (fd >= 0 && fstat(fd, &s) == 0) bytes += int64_t(s.st_blocks) * 512;
  if (journal.is_open() && ::stat(journal_path().c_str(), &s) == 0) bytes += int64_t(s.st_blocks) * 512;
  return bytes;
}

// Bytes that the journal takes at its end: the last two records are those of publishing and of the only copy.
int64_t PackWriter::Impl::journal_room() const {
  return options.resume_key.empty() ? 0 : Journal::room(own, extents.size() + 2);
}

// Bytes that the disk must still have for all of it. What an earlier writer left has its place, durable or not.
int64_t PackWriter::Impl::not_allocated() const {
  return std::max<int64_t>(0, total_bytes() + journal_room() - allocated());
}

Status PackWriter::Impl::check_disk() const {
  int64_t now = 0, peak = 0;
  const int64_t all = std::min(total_bytes() + journal_room() - durable_bytes, not_allocated());
  for (size_t i = 0; i < extents.size(); ++i) {
    if (state[i] == State::ToDo) now += int64_t(extents[i].bytes);
    peak = std::max(peak, now);
    if (i < options.frees.size()) now -= options.frees[i];
  }
  return check_room(path, std::min(peak + int64_t(header.data_offset) + kLag, all));
}

// Adds to the error of a full disk how much more it must have.
Status PackWriter::Impl::explain(Status failure, int error) const {
  if (error != ENOSPC && error != EDQUOT) return failure;
  struct statvfs disk;
  if (::fstatvfs(fds[0], &disk) != 0) return failure;
  return {failure.code(), str(failure.message(), "; ", not_allocated(), " more bytes are needed and ",
                              int64_t(disk.f_bavail) * int64_t(disk.f_frsize), " available")};
}

int64_t PackWriter::Impl::total_bytes() const {
  return std::accumulate(parts.begin(), parts.end(), int64_t(0),
                         [](int64_t sum, const PackPart& part) { return sum + part.bytes; });
}

Status PackWriter::Impl::write_at(size_t file, int64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fds[file], bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : ENOSPC;
      return explain(write_failed(str(partial(file), " of ", parts[file].bytes, " bytes"), offset, error),
                     error);
    }
    bytes = bytes.subspan(size_t(n));
    offset += n;
  }
  return {};
}

void PackWriter::Impl::finish_extent(size_t extent, uint64_t checksum) {
  const std::lock_guard lock(mutex);
  extents[extent].checksum = checksum;
  state[extent] = State::Finished;
  not_durable.push_back(extent);
}

// What was written before a sync that failed is never noted as durable, whatever the next sync says.
Result<std::vector<size_t>> PackWriter::Impl::sync() {
  const std::lock_guard one(syncing);
  if (!lost.ok()) return lost;
  auto done = sync_once();
  lost = done.status();
  return done;
}

Result<std::vector<size_t>> PackWriter::Impl::sync_once() {
  std::vector<size_t> done;
  std::vector<Journal::Record> records;
  std::vector<bool> touched(parts.size());
  {
    const std::lock_guard lock(mutex);
    done.swap(not_durable);
    for (const size_t i : done) {
      touched[extents[i].file] = true;
      records.push_back({uint32_t(i), 0, extents[i].checksum});
    }
  }
  for (size_t i = 0; i < parts.size(); ++i)
    if (touched[i] && ::fdatasync(fds[i]) != 0) {
      const int error = errno;
      return explain(write_failed(partial(i), parts[i].bytes, error), error);
    }
  if (journal.is_open() && !records.empty()) LITE_TRY(journal.add(records));
  const std::lock_guard lock(mutex);
  for (const size_t i : done) {
    state[i] = State::Durable;
    durable_bytes += int64_t(extents[i].bytes);
  }
  return done;
}

Status PackWriter::Impl::hold_only_copy() {
  const std::lock_guard one(syncing);
  if (only_copy) return {};
  if (!journal.is_open()) return invalid_argument("write ", path, ": without a resume key nothing goes on");
  if (!lost.ok()) return lost;
  lost = journal.add({{Journal::kOnlyCopy, 0, 0}});
  only_copy = lost.ok();
  return lost;
}

void PackWriter::Impl::set_model_id() {
  const auto id =
      hash_model(json_text, std::as_bytes(std::span(tensors)),
                 std::string_view(names).substr(0, tensor_names), std::as_bytes(std::span(extents)));
  std::copy(id.begin(), id.end(), header.model_id);
}

Status PackWriter::Impl::write_indexes() {
  set_model_id();
  for (size_t i = 0; i < parts.size(); ++i) {
    LITE_TRY(write_at(i, 0, index_of(i)));
    if (::fsync(fds[i]) != 0) {
      const int error = errno;
      return explain(write_failed(partial(i), 0, error), error);
    }
  }
  return {};
}

Status PackWriter::Impl::publish(const std::function<void()>& named) {
  if (journal.is_open()) LITE_TRY(journal.add({{Journal::kPublishing, 0, 0}}));
  LITE_TRY(give_names(path, uint32_t(parts.size()), false));
  finished = true;
  if (named) named();
  return journal.is_open() ? Journal::remove(journal_path()) : Status();
}

void PackWriter::Impl::remove_files() {
  for (size_t i = 0; i < fds.size(); ++i)
    if (fds[i] >= 0) ::unlink(partial(i).c_str());
  if (journal.is_open()) ::unlink(journal_path().c_str());
}

Status PackWriter::Extent::Impl::flush() {
  const ExtentRecord& e = writer->extents[extent];
  const int64_t begin = position - int64_t(buffer.size());
  LITE_TRY(writer->write_at(e.file, int64_t(e.offset) + begin, buffer));
  buffer.clear();
  return {};
}

Status PackWriter::Extent::Impl::put(std::span<const std::byte> bytes) {
  const ExtentRecord& e = writer->extents[extent];
  hash.add(bytes.data(), bytes.size());
  if (buffer.size() + bytes.size() > kBuffer) LITE_TRY(flush());
  if (bytes.size() < kBuffer)
    buffer.insert(buffer.end(), bytes.begin(), bytes.end());
  else
    LITE_TRY(writer->write_at(e.file, int64_t(e.offset) + position, bytes));
  position += int64_t(bytes.size());
  if (position - written_back >= kWriteBack) {
    // Otherwise all of it would wait in memory for the next sync. Only a hint: its failure shows there.
    (void)::sync_file_range(writer->fds[e.file], int64_t(e.offset) + written_back, position - written_back,
                            SYNC_FILE_RANGE_WRITE);
    written_back = position;
  }
  return {};
}

Status PackWriter::Extent::Impl::put_zeros(int64_t up_to) {
  static constexpr std::byte zeros[kPage] = {};
  while (position < up_to)
    LITE_TRY(put(std::span(zeros).first(size_t(std::min<int64_t>(up_to - position, kPage)))));
  return {};
}

Status PackWriter::Extent::Impl::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (step == last_step)
      return invalid_argument("write ", writer->path, ": got more data than the tensors of extent ", extent,
                              " have");
    const PackWriter::Impl::Step& s = writer->steps[step];
    const std::span<const std::byte> piece = bytes.first(std::min(bytes.size(), size_t(s.bytes - step_done)));
    LITE_TRY(put(piece));
    bytes = bytes.subspan(piece.size());
    step_done += int64_t(piece.size());
    if (step_done < s.bytes) continue;
    step_done = 0;
    if (++step < last_step) {
      LITE_TRY(put_zeros(writer->steps[step].offset));
      continue;
    }
    LITE_TRY(put_zeros(int64_t(writer->extents[extent].bytes)));
    LITE_TRY(flush());
    writer->finish_extent(extent, hash.digest64());
  }
  return {};
}

PackWriter::Extent::Extent() : impl_(std::make_unique<Impl>()) {}
PackWriter::Extent::Extent(Extent&&) noexcept = default;
PackWriter::Extent& PackWriter::Extent::operator=(Extent&&) noexcept = default;
PackWriter::Extent::~Extent() = default;

Status PackWriter::Extent::write(std::span<const std::byte> bytes) {
  return impl_->write(bytes);
}

PackWriter::PackWriter() : impl_(std::make_unique<Impl>()) {}
PackWriter::PackWriter(PackWriter&&) noexcept = default;
PackWriter& PackWriter::operator=(PackWriter&&) noexcept = default;
PackWriter::~PackWriter() = default;

Result<PackWriter> PackWriter::plan(const std::string& path, const Json& json,
                                    std::vector<PackSection> sections, const std::vector<PackExtent>& extents,
                                    const std::vector<PackAlias>& aliases, PackOptions options) {
  PackWriter writer;
  Impl& impl = *writer.impl_;
  impl.path = path;
  impl.sections = std::move(sections);
  impl.options = std::move(options);
  if (!json.object()) return invalid_argument("create ", path, ": the JSON block is not an object");
  impl.json_text = json.dump();
  LITE_TRY(impl.plan(extents, aliases).in("create " + path));
  return writer;
}

Status PackWriter::start() {
  return impl_->start();
}

Result<PackWriter> PackWriter::create(const std::string& path, const Json& json,
                                      std::vector<PackSection> sections,
                                      const std::vector<PackExtent>& extents,
                                      const std::vector<PackAlias>& aliases, PackOptions options) {
  LITE_ASSIGN(PackWriter writer, plan(path, json, std::move(sections), extents, aliases, std::move(options)));
  LITE_TRY(writer.start());
  return writer;
}

const std::vector<PackPart>& PackWriter::parts() const {
  return impl_->parts;
}

int64_t PackWriter::file_bytes() const {
  return impl_->total_bytes();
}

int64_t PackWriter::durable_bytes() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->durable_bytes;
}

bool PackWriter::has_resumed() const {
  return impl_->resumed;
}

bool PackWriter::finished(size_t extent) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->state[extent] != Impl::State::ToDo;
}

PackWriter::Extent PackWriter::begin(size_t extent) {
  Extent e;
  e.impl_->writer = impl_.get();
  e.impl_->extent = extent;
  e.impl_->step = impl_->first_step[extent];
  e.impl_->last_step = impl_->first_step[extent + 1];
  return e;
}

Result<std::vector<size_t>> PackWriter::sync() {
  return impl_->sync();
}

Status PackWriter::hold_only_copy() {
  return impl_->hold_only_copy();
}

Status PackWriter::write(std::span<const std::byte> bytes) {
  Impl& impl = *impl_;
  while (!bytes.empty()) {
    while (impl.next < impl.extents.size() && finished(impl.next)) {
      ++impl.next;
      impl.current.reset();
    }
    if (impl.next == impl.extents.size())
      return invalid_argument("write ", impl.path, ": got more data than its tensors have");
    if (!impl.current) impl.current = begin(impl.next);
    const Extent::Impl& e = *impl.current->impl_;
    int64_t left = -e.step_done;
    for (size_t i = e.step; i < e.last_step; ++i) left += impl.steps[i].bytes;
    const auto piece = bytes.first(std::min(bytes.size(), size_t(left)));
    LITE_TRY(impl.current->write(piece));
    bytes = bytes.subspan(piece.size());
  }
  return {};
}

Status PackWriter::finish(const std::function<void()>& named) {
  Impl& impl = *impl_;
  const auto to_do = std::count(impl.state.begin(), impl.state.end(), Impl::State::ToDo);
  if (impl.finished || to_do > 0)
    return invalid_argument("finish ", impl.path, ": got ", impl.extents.size() - size_t(to_do),
                            " extents, expected ", impl.extents.size());
  LITE_TRY(impl.sync().status());
  LITE_TRY(impl.write_indexes());
  return impl.publish(named);
}

void PackWriter::discard() {
  impl_->remove_files();
  impl_->finished = true;
}

Status check_no_only_copy(const std::string& path) {
  return check_no_only_copy(path, Journal::read(path + ".journal"));
}

std::optional<std::string> unfinished_key(const std::string& path) {
  auto content = Journal::read(path + ".journal");
  return content ? std::optional(std::move(content->key)) : std::nullopt;
}

}  // namespace lite
