// The journal's bytes: a head that binds it to a layout and a key, then one checked record per finished extent.
#include "ggml-lite/pack_journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "ggml-lite/file.h"
#include "ggml-lite/pack_format.h"

namespace lite::pack {
namespace {

constexpr uint32_t kJournalVersion = 1;
constexpr int64_t kMaxJournal = int64_t(1) << 30;

struct Head {
  char magic[8];
  uint32_t version, file_count;
  uint8_t layout[16];
  uint64_t key_bytes;
  uint64_t check;  // XXH3-64 of the fields before and of the key
};
static_assert(sizeof(Head) == 48);

struct CheckedRecord {
  Journal::Record record;
  uint64_t check;  // XXH3-64 of the record
};
static_assert(sizeof(CheckedRecord) == 24);

uint64_t check_of(const Head& head, std::string_view key) {
  Hash hash;
  hash.add(&head, offsetof(Head, check));
  hash.add(key.data(), key.size());
  return hash.digest64();
}

uint64_t check_of(const Journal::Record& record) {
  Hash hash;
  hash.add(&record, sizeof record);
  return hash.digest64();
}

Head head_of(const Journal::Content& content) {
  Head head = {};
  std::copy(Journal::kMagic.begin(), Journal::kMagic.end(), head.magic);
  head.version = kJournalVersion;
  head.file_count = content.file_count;
  std::copy(content.layout.begin(), content.layout.end(), head.layout);
  head.key_bytes = content.key.size();
  head.check = check_of(head, content.key);
  return head;
}

}  // namespace

Status write_failed(const std::string& path, int64_t offset, int error) {
  const char* why = error == ENOSPC || error == EDQUOT ? "the disk is full"
                    : error == EFBIG                   ? "a file may not be so large here"
                                                       : "the disk failed";
  return errno_status(str("write ", path, ": ", why, " at byte ", offset), error);
}

Journal::~Journal() {
  if (fd_ >= 0) ::close(fd_);
}

std::optional<Journal::Content> Journal::read(const std::string& path) {
  const auto text = read_text(path, kMaxJournal);
  if (!text.ok() || text->size() < sizeof(Head)) return {};
  Head head;
  std::memcpy(&head, text->data(), sizeof head);
  const std::string_view rest = std::string_view(*text).substr(sizeof head);
  if (std::string_view(head.magic, sizeof head.magic) != Journal::kMagic || head.version != kJournalVersion ||
      head.file_count < 1 || head.file_count > kMaxFiles || head.key_bytes > rest.size())
    return {};
  Content content;
  content.key = rest.substr(0, head.key_bytes);
  if (head.check != check_of(head, content.key)) return {};
  content.file_count = head.file_count;
  std::copy(std::begin(head.layout), std::end(head.layout), content.layout.begin());
  size_t at = head.key_bytes;
  for (CheckedRecord r; rest.size() - at >= sizeof r; at += sizeof r) {
    std::memcpy(&r, rest.data() + at, sizeof r);
    if (r.check != check_of(r.record)) break;
    content.records.push_back(r.record);
  }
  content.bytes = int64_t(sizeof head + at);
  at = head.key_bytes;
  for (CheckedRecord r; rest.size() - at >= sizeof r; at += sizeof r) {
    std::memcpy(&r, rest.data() + at, sizeof r);
    content.only_copy = content.only_copy || (r.record.extent == kOnlyCopy && r.check == check_of(r.record));
  }
  return content;
}

bool Journal::is_unreadable(const std::string& path) {
  const auto text = read_text(path, kMaxJournal);
  Head head = {};
  if (!text.ok() || text->size() < sizeof head || !text->starts_with(kMagic) || read(path)) return false;
  std::memcpy(&head, text->data(), sizeof head);
  return head.version != kJournalVersion || head.key_bytes <= text->size() - sizeof head;
}

Status Journal::open(const std::string& path, int64_t bytes) {
  path_ = path;
  end_ = bytes;
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd_ < 0) return errno_status("create " + path, errno);
  struct stat there;
  if (::fstat(fd_, &there) != 0) return errno_status("create " + path, errno);
  // Not for nothing: room that is reserved behind the end goes with it.
  if (there.st_size != bytes && ::ftruncate(fd_, bytes) != 0) return errno_status("create " + path, errno);
  return {};
}

Status Journal::write(const void* data, size_t n) {
  const char* from = static_cast<const char*>(data);
  while (n > 0) {
    const ssize_t done = ::pwrite(fd_, from, n, end_);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return write_failed(path_, end_, done < 0 ? errno : ENOSPC);
    from += done;
    n -= size_t(done);
    end_ += done;
  }
  return {};
}

Status Journal::create(const std::string& path, const Content& content) {
  LITE_TRY(open(path, 0));
  const Head head = head_of(content);
  LITE_TRY(write(&head, sizeof head));
  LITE_TRY(write(content.key.data(), content.key.size()));
  if (::fsync(fd_) != 0) return write_failed(path_, end_, errno);
  return sync_folder(path);
}

uint64_t Journal::mark(const Content& content) {
  return head_of(content).check;
}

Status Journal::resume(const std::string& path, const Content& content) {
  LITE_TRY(open(path, content.bytes));
  const bool told = std::any_of(content.records.begin(), content.records.end(),
                                [](const Record& r) { return r.extent == kOnlyCopy; });
  return content.only_copy && !told ? add({{kOnlyCopy, 0, 0}}) : Status();
}

int64_t Journal::room(const Content& content, size_t records) {
  return round_up(int64_t(sizeof(Head) + content.key.size() + records * sizeof(CheckedRecord)), kPage);
}

void Journal::reserve(int64_t bytes) {
  (void)::fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, bytes);
}

Status Journal::add(const std::vector<Record>& records) {
  std::vector<CheckedRecord> checked;
  for (const Record& r : records) checked.push_back({r, check_of(r)});
  LITE_TRY(write(checked.data(), checked.size() * sizeof(CheckedRecord)));
  return ::fdatasync(fd_) == 0 ? Status() : write_failed(path_, end_, errno);
}

Status Journal::remove(const std::string& path) {
  if (::unlink(path.c_str()) == 0) return sync_folder(path);
  return errno == ENOENT ? Status() : errno_status("remove " + path, errno);
}

}  // namespace lite::pack
