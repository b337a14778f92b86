// Writing a packed file. Every size is known at create(), so the index gets its place first and its bytes
// last; data goes through PATH.partial in file order, hashed on the way, and PATH appears only when
// everything is on the disk.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "ggml-lite/file.h"
#include "ggml-lite/pack.h"
#include "ggml-lite/pack_format.h"

namespace lite {

using namespace pack;

namespace {

constexpr size_t kBuffer = 1 << 20;                // small tensors are gathered into writes of this size
constexpr int64_t kWriteBack = int64_t(64) << 20;  // the kernel is told to start writing after so many bytes

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// Opens `path` for writing and locks it, so that of two writers one fails; a file left by a killed writer
// carries no lock and is used again.
Result<int> open_partial(const std::string& path) {
  for (;;) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (fd < 0) return errno_status("create " + path, errno);
    struct stat opened, named;
    Status failure;
    if (fstat(fd, &opened) != 0)
      failure = errno_status("create " + path, errno);
    else if (!S_ISREG(opened.st_mode))
      failure = invalid_argument("create ", path, ": it is there and is not a file");
    else if (flock(fd, LOCK_EX | LOCK_NB) != 0)
      failure =
          errno == EWOULDBLOCK
              ? Status(Code::Busy, str("create ", path, ": another process is writing it; wait for its end"))
              : errno_status("lock " + path, errno);
    if (!failure.ok()) {
      ::close(fd);
      return failure;
    }
    // The other writer may have renamed or removed the file between our open and our lock: then it is not
    // ours.
    if (::stat(path.c_str(), &named) == 0 && named.st_dev == opened.st_dev && named.st_ino == opened.st_ino)
      return fd;
    ::close(fd);
  }
}

}  // namespace

struct PackWriter::Impl {
  struct Step {  // one part of one tensor
    int64_t offset, bytes;
    uint32_t extent;
    bool scale;
  };

  std::string path, partial, json_text;
  std::string names;        // of the tensors, then of the sections
  size_t tensor_names = 0;  // bytes of the former
  std::vector<PackSection> sections;
  Header header = {};
  std::vector<TensorRecord> tensors;
  std::vector<ExtentRecord> extents;
  std::vector<SectionRecord> section_records;
  std::vector<Step> steps;

  int fd = -1;
  bool finished = false;
  size_t step = 0;        // the one being filled
  int64_t step_done = 0;  // bytes of it
  int64_t position = 0;   // in the file, of the next byte
  int64_t written_back = 0;
  std::vector<std::byte> buffer;  // the last bytes before `position`, not written yet
  Hash hash;

  ~Impl() {
    if (fd < 0) return;
    if (!finished) ::unlink(partial.c_str());  // while the lock is still ours
    ::close(fd);
  }

  Status plan(const std::vector<PackExtent>& from, const std::vector<PackAlias>& aliases);
  Status start();
  Status write_at(int64_t offset, std::span<const std::byte> bytes);
  Status put(std::span<const std::byte> bytes);
  Status put_zeros(int64_t up_to);
  Status flush();
  Status write(std::span<const std::byte> bytes);
  Status write_index();
  Status publish();
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
      steps.push_back({data_bytes + place.data_offset, e.data_bytes(), r.extent, false});
      if (e.scaled) {
        r.flags = kScaled;
        r.scale_dtype = uint8_t(e.scale_dtype);
        r.block_rows = uint32_t(e.block_rows);
        r.block_cols = uint32_t(e.block_cols);
        r.scale_offset = uint64_t(place.scale_offset);
        r.scale_bytes = uint64_t(e.scale_bytes());
        steps.push_back({data_bytes + place.scale_offset, e.scale_bytes(), r.extent, true});
      }
      named.push_back({e.name, r, nullptr});
    }
    extents.push_back({0, 0, uint64_t(data_bytes), uint64_t(length), 0});
    data_bytes += length;
    if (data_bytes > kMaxBytes) return invalid_argument("the data is too large to be real");
  }
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
  for (ExtentRecord& e : extents) e.offset += header.data_offset;
  for (Step& s : steps) s.offset += int64_t(header.data_offset);

  std::copy(kMagic.begin(), kMagic.end(), header.magic);
  header.version = kVersion;
  header.header_bytes = sizeof(Header);
  header.file_bytes = header.data_offset + uint64_t(data_bytes);
  header.file_count = 1;
  return {};
}

Status PackWriter::Impl::start() {
  struct stat there;
  if (::stat(path.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
    return invalid_argument("create ", path, ": it is there and is not a file");
  LITE_ASSIGN(fd, open_partial(partial));
  if (::ftruncate(fd, 0) != 0) return errno_status("create " + partial, errno);
  struct statvfs disk;
  if (::fstatvfs(fd, &disk) != 0) return errno_status("look at the disk of " + partial, errno);
  const uint64_t available = uint64_t(disk.f_bavail) * disk.f_frsize;
  if (available < header.file_bytes)
    return io_error("create ", path, ": it needs ", header.file_bytes, " bytes, but the disk of ",
                    folder_of(path), " has ", available, " available; free some or choose another disk");
  buffer.reserve(kBuffer);
  position = written_back = int64_t(header.data_offset);
  return {};
}

Status PackWriter::Impl::write_at(int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : ENOSPC;
      const char* why = error == ENOSPC || error == EDQUOT ? "the disk is full"
                        : error == EFBIG                   ? "a file may not be so large here"
                                                           : "the disk failed";
      return errno_status(str("write ", partial, ": ", why, " at byte ", offset, " of ", header.file_bytes),
                          error);
    }
    bytes = bytes.subspan(size_t(n));
    offset += n;
  }
  return {};
}

Status PackWriter::Impl::flush() {
  LITE_TRY(write_at(position - int64_t(buffer.size()), buffer));
  buffer.clear();
  if (position - written_back >= kWriteBack) {
    // Otherwise all of it would wait in memory for the fsync at the end. Only a hint: its failure shows
    // there.
    (void)::sync_file_range(fd, written_back, position - written_back, SYNC_FILE_RANGE_WRITE);
    written_back = position;
  }
  return {};
}

Status PackWriter::Impl::put(std::span<const std::byte> bytes) {
  hash.add(bytes.data(), bytes.size());
  if (buffer.size() + bytes.size() > kBuffer) LITE_TRY(flush());
  if (bytes.size() < kBuffer)
    buffer.insert(buffer.end(), bytes.begin(), bytes.end());
  else
    LITE_TRY(write_at(position, bytes));
  position += int64_t(bytes.size());
  return {};
}

Status PackWriter::Impl::put_zeros(int64_t up_to) {
  static constexpr std::byte zeros[kPage] = {};
  while (position < up_to)
    LITE_TRY(put(std::span(zeros).first(size_t(std::min<int64_t>(up_to - position, kPage)))));
  return {};
}

Status PackWriter::Impl::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (step == steps.size())
      return invalid_argument("write ", partial, ": got more data than its tensors have");
    const Step& s = steps[step];
    const std::span<const std::byte> piece = bytes.first(std::min(bytes.size(), size_t(s.bytes - step_done)));
    LITE_TRY(put(piece));
    bytes = bytes.subspan(piece.size());
    step_done += int64_t(piece.size());
    if (step_done < s.bytes) continue;
    step_done = 0;
    ++step;
    if (step < steps.size() && steps[step].extent == s.extent) {
      LITE_TRY(put_zeros(steps[step].offset));
    } else {
      ExtentRecord& extent = extents[s.extent];
      LITE_TRY(put_zeros(int64_t(extent.offset + extent.bytes)));
      extent.checksum = hash.digest64();
      hash.reset();
    }
  }
  return {};
}

Status PackWriter::Impl::write_index() {
  const auto tensor_bytes = std::as_bytes(std::span(tensors));
  const auto extent_bytes = std::as_bytes(std::span(extents));
  const auto id =
      hash_model(json_text, tensor_bytes, std::string_view(names).substr(0, tensor_names), extent_bytes);
  std::copy(id.begin(), id.end(), header.model_id);

  std::vector<std::byte> index(header.data_offset);
  const auto place = [&](uint64_t offset, const void* from, size_t n) {
    if (n) std::memcpy(index.data() + offset, from, n);
  };
  place(0, &header, sizeof header);
  place(header.json.offset, json_text.data(), json_text.size());
  place(header.names.offset, names.data(), names.size());
  place(header.tensors.offset, tensors.data(), tensor_bytes.size());
  place(header.extents.offset, extents.data(), extent_bytes.size());
  place(header.sections.offset, section_records.data(), section_records.size() * sizeof(SectionRecord));
  for (size_t i = 0; i < sections.size(); ++i)
    place(section_records[i].offset, sections[i].bytes.data(), sections[i].bytes.size());
  header.index_checksum = index_checksum(index);
  place(0, &header, sizeof header);
  return write_at(0, index);
}

// From a partial file to the real one, in an order that survives a power cut: bytes, then the name.
Status PackWriter::Impl::publish() {
  if (::fsync(fd) != 0) return errno_status("write " + partial, errno);
  if (::rename(partial.c_str(), path.c_str()) != 0)
    return errno_status("rename " + partial + " to " + path, errno);
  finished = true;
  const std::string folder = folder_of(path);
  const int folder_fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd < 0) return errno_status("sync " + folder, errno);
  // Some file systems cannot sync a folder and say EINVAL.
  const int error = ::fsync(folder_fd) != 0 && errno != EINVAL ? errno : 0;
  ::close(folder_fd);
  return error ? errno_status("sync " + folder, error) : Status();
}

PackWriter::PackWriter() : impl_(std::make_unique<Impl>()) {}
PackWriter::PackWriter(PackWriter&&) noexcept = default;
PackWriter& PackWriter::operator=(PackWriter&&) noexcept = default;
PackWriter::~PackWriter() = default;

Result<PackWriter> PackWriter::create(const std::string& path, const Json& json,
                                      std::vector<PackSection> sections,
                                      const std::vector<PackExtent>& extents,
                                      const std::vector<PackAlias>& aliases) {
  PackWriter writer;
  Impl& impl = *writer.impl_;
  impl.path = path;
  impl.partial = path + ".partial";
  impl.sections = std::move(sections);
  if (!json.object()) return invalid_argument("create ", path, ": the JSON block is not an object");
  impl.json_text = json.dump();
  LITE_TRY(impl.plan(extents, aliases).in("create " + path));
  LITE_TRY(impl.start());
  return writer;
}

int64_t PackWriter::file_bytes() const {
  return int64_t(impl_->header.file_bytes);
}

Status PackWriter::write(std::span<const std::byte> bytes) {
  return impl_->write(bytes);
}

Status PackWriter::append(std::span<const std::byte> data, std::span<const std::byte> scales) {
  const Impl& impl = *impl_;
  const auto expected = [&](size_t step, bool scale) {
    return step < impl.steps.size() && impl.steps[step].scale == scale ? impl.steps[step].bytes : 0;
  };
  if (impl.step_done || int64_t(data.size()) != expected(impl.step, false) ||
      int64_t(scales.size()) != expected(impl.step + 1, true))
    return invalid_argument("write ", impl.partial, ": got ", data.size(), " bytes and ", scales.size(),
                            " bytes of scales, expected ", expected(impl.step, false), " and ",
                            expected(impl.step + 1, true));
  LITE_TRY(write(data));
  return write(scales);
}

Status PackWriter::finish() {
  if (impl_->finished || impl_->step != impl_->steps.size())
    return invalid_argument("finish ", impl_->path, ": got ", impl_->step, " parts of tensors, expected ",
                            impl_->steps.size());
  LITE_TRY(impl_->flush());
  LITE_TRY(impl_->write_index());
  return impl_->publish();
}

}  // namespace lite
