#include "convert/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>

#include "ggml-lite/json.h"
#include "ggml-lite/printable.h"

namespace dsv3 {
namespace {

using lite::corrupt;
using lite::Json;
using lite::unsupported;

// Of one file with 92,000 tensors it would be 14 MB; the format itself allows 100 MB.
constexpr int64_t kMaxHeader = int64_t(64) << 20;

// Every element type of the format with its bits: sizes are checked for tensors nobody needs, too.
constexpr std::array<std::pair<std::string_view, int64_t>, 22> kBits = {{
    {"BOOL", 8},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},
    {"F8_E5M2", 8},     {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"U16", 16},    {"I16", 16}, {"F16", 16},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"BF16", 16},   {"U32", 32},    {"I32", 32}, {"F32", 32},
    {"C64", 64},        {"U64", 64},        {"I64", 64},    {"F64", 64},
}};

// A string of the file in quotes, without anything a terminal would obey.
std::string quoted(const std::string& text) {
  return Json(text.substr(0, 200)).dump();
}

std::string text_of(const Json* value) {
  return value ? value->dump().substr(0, 100) : "missing";
}

// A list of integers that are not negative.
bool read_sizes(const Json* list, std::vector<int64_t>* out) {
  if (!list || !list->array()) return false;
  for (const Json& item : *list->array()) {
    if (!item.integer() || *item.integer() < 0) return false;
    out->push_back(*item.integer());
  }
  return true;
}

// One member of the header; its offset is still relative to the end of the header.
Result<SafetensorsEntry> read_entry(const std::string& name, const Json& value) {
  const std::string what = "tensor " + quoted(name);
  if (lite::has_controls(name)) return corrupt(what, ": its name has control characters, expected none");
  if (!value.object()) return corrupt(what, ": got ", value.type_name(), ", expected an object");
  SafetensorsEntry e;
  e.name = name;
  const Json* dtype = value.find("dtype");
  if (!dtype || !dtype->string()) return corrupt(what, ": it has no dtype, expected a string");
  e.dtype = *dtype->string();
  const auto type =
      std::find_if(kBits.begin(), kBits.end(), [&](const auto& t) { return t.first == e.dtype; });
  if (type == kBits.end())
    return unsupported(what, ": unknown element type ", quoted(e.dtype),
                       "; try a BF16 or FP8 checkpoint of the model");
  if (!read_sizes(value.find("shape"), &e.shape))
    return corrupt(what, ": its shape is ", text_of(value.find("shape")),
                   ", expected a list of integers of at least 0");
  std::vector<int64_t> offsets;
  if (!read_sizes(value.find("data_offsets"), &offsets) || offsets.size() != 2 || offsets[0] > offsets[1])
    return corrupt(what, ": its data_offsets are ", text_of(value.find("data_offsets")),
                   ", expected [begin, end] with begin <= end");
  e.offset = offsets[0];
  e.bytes = offsets[1] - offsets[0];

  int64_t bits = type->second;
  for (const int64_t n : e.shape)
    if (!lite::checked_mul(bits, n, &bits)) return corrupt(what, ": its shape is too large to be real");
  if (bits % 8 != 0 || bits / 8 != e.bytes)
    return corrupt(what, ": its shape and type take ", bits, " bits, but its data_offsets span ", e.bytes,
                   " bytes");
  return e;
}

// The header's text as tensors, and the bytes of their data.
Result<int64_t> read_header(const std::string& text, std::vector<SafetensorsEntry>* entries) {
  // The format's words: "the header data must begin with a {".
  if (!text.starts_with('{')) return corrupt("the header does not begin with {, expected a JSON object");
  LITE_ASSIGN(const Json header, Json::parse(text, "the header"));
  entries->reserve(header.object()->size());
  for (const auto& [name, value] : *header.object()) {
    if (name == "__metadata__") {
      if (!value.object()) return corrupt("__metadata__ is ", value.type_name(), ", expected an object");
      for (const auto& [key, item] : *value.object())
        if (!item.string())
          return corrupt("__metadata__ ", quoted(key), " is ", item.type_name(), ", expected a string");
      continue;
    }
    LITE_ASSIGN(SafetensorsEntry entry, read_entry(name, value));
    entries->push_back(std::move(entry));
  }
  std::sort(entries->begin(), entries->end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return a.offset != b.offset ? a.offset < b.offset
           : a.bytes != b.bytes ? a.bytes < b.bytes
                                : a.name < b.name;
  });
  int64_t end = 0;
  for (const SafetensorsEntry& e : *entries) {
    if (e.offset != end)
      return corrupt("tensor ", quoted(e.name), ": its data begins at ", e.offset, ", expected ", end,
                     ": the tensors overlap or leave a hole");
    if (!lite::checked_add(e.offset, e.bytes, &end))
      return corrupt("tensor ", quoted(e.name), ": its data_offsets are too large to be real");
  }
  return end;
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  return open(path, true);
}

Result<SafetensorsFile> SafetensorsFile::open_header(const std::string& path) {
  return open(path, false);
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path, bool with_data) {
  LITE_ASSIGN(lite::File opened, lite::File::open(path));
  SafetensorsFile out(std::move(opened));
  const lite::File& file = out.file_;
  const std::string what = "read " + path;

  char start[24] = {};
  const auto first = std::span(start).first(size_t(std::min<int64_t>(sizeof start, file.bytes())));
  LITE_TRY(file.read(0, std::as_writable_bytes(first)));
  if (lite::is_lfs_pointer({first.data(), first.size()}))
    return corrupt(what,
                   ": it is a git-lfs pointer, not the file itself; try \"git lfs pull\" in its folder");
  if (file.bytes() < 8)
    return corrupt(what, ": got ", file.bytes(), " bytes, too few for a safetensors file; get it again");
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | uint8_t(start[i]);
  if (header_bytes > uint64_t(kMaxHeader))
    return corrupt(what, ": it says its header has ", header_bytes, " bytes, expected at most ", kMaxHeader,
                   "; is it a safetensors file? Get it again");
  const int64_t data_begin = 8 + int64_t(header_bytes);
  if (data_begin > file.bytes())
    return corrupt(what, ": got ", file.bytes(), " bytes, expected at least the ", data_begin,
                   " of the header; the file is cut off: get it again");
  std::string text(header_bytes, '\0');
  LITE_TRY(file.read(8, std::as_writable_bytes(std::span(text))));
  const auto data_bytes = read_header(text, &out.entries_);
  if (data_bytes.status().code() == lite::Code::Corrupt)
    return corrupt(what, ": ", data_bytes.status().message(), "; get the file again");
  if (!data_bytes.ok()) return data_bytes.status().in(what);
  const int64_t found = file.bytes() - data_begin, expected = with_data ? *data_bytes : 0;
  if (found != expected)
    return corrupt(what, ": got ", found, " bytes of data, expected ", expected,
                   expected > found ? "; the file is cut off: get it again"
                                    : "; something is appended to the file: get it again");
  if (!lite::checked_add(data_begin, *data_bytes, &out.bytes_))
    return corrupt(what, ": its tensors are too large to be real; get it again");
  out.header_bytes_ = data_begin;
  struct stat s;
  if (::fstat(file.descriptor(), &s) != 0) return lite::errno_status(what, errno);
  out.changed_ns_ = int64_t(s.st_mtim.tv_sec) * 1'000'000'000 + s.st_mtim.tv_nsec;
  for (SafetensorsEntry& e : out.entries_) e.offset += data_begin;
  // Tensors are read from front to back; only a hint.
  (void)::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_SEQUENTIAL);
  return out;
}

Status SafetensorsFile::write_header(const std::string& path) const {
  std::string text(size_t(header_bytes_), '\0');
  LITE_TRY(file_.read(0, std::as_writable_bytes(std::span(text))));
  const std::string temporary = path + ".new";
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0) return lite::errno_status("create " + temporary, errno);
  size_t done = 0;
  bool good = true;
  while (good && done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    good = n > 0 || (n < 0 && errno == EINTR);
    if (n > 0) done += size_t(n);
  }
  const timespec time = {time_t(changed_ns_ / 1'000'000'000), long(changed_ns_ % 1'000'000'000)};
  const timespec times[2] = {time, time};
  good = good && ::futimens(fd, times) == 0 && ::fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  if (!good) return lite::errno_status("write " + temporary, error);
  if (::rename(temporary.c_str(), path.c_str()) != 0) return lite::errno_status("create " + path, errno);
  return {};
}

Status SafetensorsFile::read(const SafetensorsEntry& entry, int64_t from, std::span<std::byte> to) const {
  if (from < 0 || from > entry.bytes || int64_t(to.size()) > entry.bytes - from)
    return lite::invalid_argument("read ", path(), ": tensor \"", entry.name, "\": bytes ", from, " to ",
                                  from + int64_t(to.size()), " of ", entry.bytes);
  return file_.read(entry.offset + from, to);
}

}  // namespace dsv3
