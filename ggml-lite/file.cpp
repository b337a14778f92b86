#include "ggml-lite/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace lite {

Status errno_status(const std::string& what, int error) {
  const std::string text = what + ": " + std::generic_category().message(error);
  switch (error) {
    case ENOENT:
    case ENOTDIR: return not_found(text);
    case ENOMEM: return out_of_memory(text);
    default: return io_error(text);
  }
}

bool is_lfs_pointer(std::string_view bytes) {
  return bytes.starts_with("version https://git-lfs");
}

Result<File> File::open(const std::string& path) {
  // Without O_NONBLOCK a FIFO would wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int why = errno;
    std::error_code error;
    if (const auto target = std::filesystem::read_symlink(path, error); why == ENOENT && !error)
      return not_found("open ", path, ": it is a link to ", target.string(),
                       ", and nothing is there; get the file again");
    return errno_status("open " + path, why);
  }
  File file(fd, path);
  struct stat s;
  if (fstat(fd, &s) != 0) return errno_status("open " + path, errno);
  if (!S_ISREG(s.st_mode))
    return invalid_argument("open ", path, ": got ", S_ISDIR(s.st_mode) ? "a folder" : "a device or pipe",
                            ", expected a file; give the path of a file");
  file.bytes_ = s.st_size;
  return file;
}

File::File(File&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)), bytes_(other.bytes_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

File::~File() {
  close();
}

void File::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

Status File::read(int64_t offset, std::span<std::byte> to) const {
  size_t done = 0;
  while (done < to.size()) {
    const ssize_t n = ::pread(fd_, to.data() + done, to.size() - done, offset + int64_t(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status("read " + path_, errno);
    if (n == 0)
      return corrupt("read ", path_, ": the file ends before byte ", offset + int64_t(to.size()), "; it had ",
                     bytes_, " bytes when it was opened; get it again");
    done += size_t(n);
  }
  return {};
}

Result<NewFile> NewFile::create(const std::string& path) {
  struct stat s;
  if (lstat(path.c_str(), &s) == 0 && !S_ISREG(s.st_mode))
    return invalid_argument("write ", path, ": it is there and is not a file");
  std::string partial = path + ".XXXXXX";
  const int fd = ::mkostemp(partial.data(), O_CLOEXEC);
  if (fd < 0) return errno_status("write " + path, errno);
  return NewFile(fd, path, std::move(partial));
}

NewFile::NewFile(NewFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)), partial_(std::move(other.partial_)) {}

NewFile::~NewFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

Status NewFile::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status("write " + path_, errno);
    bytes = bytes.subspan(size_t(n));
  }
  return {};
}

// In an order that survives a power cut: bytes, then the name.
Status NewFile::finish() {
  if (::fsync(fd_) != 0) return errno_status("write " + path_, errno);
  if (::rename(partial_.c_str(), path_.c_str()) != 0)
    return errno_status("rename " + partial_ + " to " + path_, errno);
  ::close(std::exchange(fd_, -1));
  const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
  const int folder_fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd < 0) return errno_status("open the folder of " + path_, errno);
  const int error = ::fsync(folder_fd) != 0 && errno != EINVAL ? errno : 0;  // some file systems cannot
  ::close(folder_fd);
  return error ? errno_status("sync the folder of " + path_, error) : Status();
}

Result<std::string> read_text(const std::string& path, int64_t limit) {
  LITE_ASSIGN(const File file, File::open(path));
  if (file.bytes() > limit)
    return unsupported("read ", path, ": got ", file.bytes(), " bytes, expected at most ", limit);
  std::string text(size_t(file.bytes()), '\0');
  LITE_TRY(file.read(0, std::as_writable_bytes(std::span(text))));
  if (is_lfs_pointer(text))
    return corrupt("read ", path,
                   ": it is a git-lfs pointer, not the file itself; try \"git lfs pull\" in its folder");
  return text;
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

Status sync_folder(const std::string& path) {
  const std::string folder = folder_of(path);
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno_status("sync " + folder, errno);
  // Some file systems cannot sync a folder and say EINVAL.
  const int error = ::fsync(fd) != 0 && errno != EINVAL ? errno : 0;
  ::close(fd);
  return error ? errno_status("sync " + folder, error) : Status();
}

Status check_room(const std::string& path, int64_t bytes) {
  const std::string folder = folder_of(path);
  struct statvfs disk;
  if (::statvfs(folder.c_str(), &disk) != 0) return errno_status("look at the disk of " + path, errno);
  const int64_t available = int64_t(disk.f_bavail) * int64_t(disk.f_frsize);
  if (available >= bytes) return {};
  return io_error("create ", path, ": it needs ", bytes, " bytes, but the disk of ", folder, " has ",
                  available, " available; free ", bytes - available, " bytes or choose another disk");
}

}  // namespace lite
