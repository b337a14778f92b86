// Names for files that are complete, and the end of a naming that was interrupted.
#include "ggml-lite/pack_naming.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "ggml-lite/file.h"
#include "ggml-lite/hash.h"
#include "ggml-lite/pack.h"
#include "ggml-lite/pack_format.h"
#include "ggml-lite/pack_journal.h"

namespace lite {

namespace pack {

FolderLock::FolderLock(const std::string& path)
    : fd_(::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  while (fd_ >= 0 && flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
  }
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) ::close(fd_);
}

Result<int> open_locked(const std::string& path, int create) {
  for (;;) {
    const int fd = ::open(path.c_str(), O_RDWR | create | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (fd < 0) return errno_status("create " + path, errno);
    struct stat opened, named;
    Status failure;
    if (fstat(fd, &opened) != 0)
      failure = errno_status("create " + path, errno);
    else if (!S_ISREG(opened.st_mode))
      failure = invalid_argument("create ", path, ": it is there and is not a file; try another name");
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

std::array<uint8_t, 16> layout_of(std::vector<std::byte> index) {
  Header header;
  std::memcpy(&header, index.data(), sizeof header);
  header.index_checksum = 0;
  std::fill(std::begin(header.model_id), std::end(header.model_id), uint8_t(0));
  std::memcpy(index.data(), &header, sizeof header);
  const Part extents = header.extents;
  if (extents.offset <= index.size() && extents.bytes <= index.size() - extents.offset)
    for (uint64_t at = 0; at + sizeof(ExtentRecord) <= extents.bytes; at += sizeof(ExtentRecord))
      std::memset(index.data() + extents.offset + at + offsetof(ExtentRecord, checksum), 0, sizeof(uint64_t));
  Hash hash;
  hash.add(index.data(), index.size());
  return hash.digest128();
}

Status give_names(const std::string& path, uint32_t count, bool named_before) {
  for (uint32_t i = count; i-- > 0;) {
    const std::string name = part_path(path, i, count), partial = name + ".partial";
    if (::rename(partial.c_str(), name.c_str()) == 0) continue;
    // An interrupted writer may have named this one already; a file that is simply gone is a failure.
    const int error = errno;
    struct stat status;
    if (error != ENOENT || !named_before || ::stat(name.c_str(), &status) != 0)
      return errno_status("rename " + partial + " to " + name, error);
  }
  return sync_folder(path);
}

}  // namespace pack

using namespace pack;

namespace {

// Where a file is that is getting its name.
std::string partial_or_named(const std::string& name) {
  struct stat s;
  return ::stat((name + ".partial").c_str(), &s) == 0 ? name + ".partial" : name;
}

// Locks a model's first file under whichever name it has; NotFound when it has none.
Result<int> lock_first(const std::string& name) {
  auto fd = open_locked(name + ".partial", 0);
  return fd.ok() || fd.status().code() != Code::NotFound ? std::move(fd) : open_locked(name, 0);
}

// Whether the files of an interrupted naming are those that the journal tells of, under whichever names.
Result<bool> is_complete(const std::string& path, const Journal::Content& journal) {
  Header first = {};
  for (uint32_t i = 0; i < journal.file_count; ++i) {
    const auto file = File::open(partial_or_named(part_path(path, i, journal.file_count)));
    if (file.status().code() == Code::NotFound) return false;
    if (!file.ok()) return file.status();
    Header header = {};
    if (file->bytes() < int64_t(sizeof header)) return false;
    LITE_TRY(file->read(0, std::as_writable_bytes(std::span(&header, 1))));
    if (std::string_view(header.magic, sizeof header.magic) != kMagic || header.file_index != i ||
        header.file_count != journal.file_count || header.file_bytes != uint64_t(file->bytes()))
      return false;
    if (i > 0) {
      if (!std::equal(std::begin(header.model_id), std::end(header.model_id), std::begin(first.model_id)))
        return false;
      continue;
    }
    first = header;
    if (header.data_offset < sizeof header ||
        header.data_offset > uint64_t(std::min(kMaxIndex, file->bytes())))
      return false;
    std::vector<std::byte> index(header.data_offset);
    LITE_TRY(file->read(0, index));
    if (layout_of(std::move(index)) != journal.layout) return false;
  }
  return true;
}

}  // namespace

std::vector<std::string> files_of_model(const std::string& path, size_t but_of) {
  std::vector<std::string> found;
  std::string stem = std::filesystem::path(path).filename().string();
  if (stem.ends_with(kEnding)) stem.resize(stem.size() - kEnding.size());
  std::error_code error;
  std::filesystem::directory_iterator at(folder_of(path), error);
  for (const std::filesystem::directory_iterator end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (!name.starts_with(stem)) continue;
    const auto place = packed_place(at->path().string());
    if (!place || place->count == but_of) continue;
    std::string own = part_path(path, place->index, place->count);
    if (std::filesystem::path(own).filename() == name) found.push_back(std::move(own));
  }
  std::sort(found.begin(), found.end());
  return found;
}

Result<std::optional<NamedLate>> finish_naming(const std::string& path,
                                               const std::function<void(const NamedLate&)>& named) {
  std::optional<NamedLate> none;
  const auto is_naming = [](const std::optional<Journal::Content>& journal) {
    return journal && !journal->records.empty() && journal->records.back().extent == Journal::kPublishing;
  };
  const std::string journal_path = path + ".journal";
  std::optional<Journal::Content> journal = Journal::read(journal_path);
  if (!is_naming(journal)) return none;
  const uint32_t count = journal->file_count;
  const std::string first = part_path(path, 0, count);
  const auto fd = lock_first(first);
  if (fd.status().code() == Code::NotFound) return none;
  if (!fd.ok()) return fd.status();
  struct Lock {
    const int fd;
    ~Lock() { ::close(fd); }
  } const lock = {*fd};
  journal = Journal::read(journal_path);  // the lock's last owner may have ended it
  if (!is_naming(journal) || journal->file_count != count) return none;
  LITE_ASSIGN(const bool complete, is_complete(path, *journal));
  if (!complete) return none;
  LITE_TRY(give_names(path, count, true));
  const NamedLate late = {first, journal->key, journal->only_copy};
  if (named) named(late);
  LITE_TRY(Journal::remove(journal_path));
  return std::optional(late);
}

}  // namespace lite
