#include "tools/tensor_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "tools/common.h"

namespace tools {

namespace {

int64_t value_bytes(TensorFile::Type type) {
  return type == TensorFile::Type::I64 ? 8 : 4;
}

}  // namespace

void check_replaceable(const std::string& path, size_t offset, std::string_view magic, const char* kind) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::absolute(path).parent_path();
  if (!fs::is_directory(folder)) {
    errno = fs::exists(folder) ? ENOTDIR : ENOENT;
    fail_errno("write " + path);
  }
  const fs::file_status there = fs::symlink_status(path);
  if (!fs::exists(there)) return;
  if (fs::is_directory(there)) fail("write ", path, ": it is a folder");
  if (!fs::is_regular_file(there)) fail("write ", path, ": it is there and is not a regular file");
  std::ifstream in(path, std::ios::binary);
  std::string start(offset + magic.size(), '\0');
  if (fs::file_size(path) != 0 &&
      (!in.read(start.data(), std::streamsize(start.size())) || start.substr(offset) != magic))
    fail("write ", path, ": it exists and is not ", kind, "; try another name");
}

void TensorFile::check(const std::string& path) {
  check_replaceable(path, sizeof(uint64_t), "{", "a safetensors file");
}

TensorFile::~TensorFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(partial_.c_str());
}

void TensorFile::add(const std::string& name, Type type, std::vector<int64_t> shape) {
  tensors_[name] = {type, std::move(shape)};
}

void TensorFile::create() {
  // The wider type first, so that every value lies at a multiple of its size.
  nlohmann::json header = nlohmann::json::object();
  int64_t end = 0;
  for (const Type type : {Type::I64, Type::F32})
    for (auto& [name, tensor] : tensors_) {
      if (tensor.type != type) continue;
      int64_t bytes = value_bytes(type);
      for (const int64_t n : tensor.shape) bytes *= n;
      tensor.offset = end;
      end += bytes;
      header[name] = {{"dtype", type == Type::I64 ? "I64" : "F32"},
                      {"shape", tensor.shape},
                      {"data_offsets", {tensor.offset, end}}};
    }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');

  check(path_);
  fd_ = open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_errno("write " + partial_);
  const uint64_t size = text.size();
  const int64_t data = int64_t(sizeof size + size);
  // A full disk shows now, not after the work.
  while ((errno = posix_fallocate(fd_, 0, data + end)) == EINTR) throw_if_interrupted();
  if (errno != 0) fail_errno("write " + partial_);
  write_at(0, &size, sizeof size);
  write_at(sizeof size, text.data(), text.size());
  for (auto& [name, tensor] : tensors_) tensor.offset += data;
}

void TensorFile::write_at(int64_t offset, const void* bytes, size_t n) {
  for (const char* from = static_cast<const char*>(bytes); n > 0;) {
    const ssize_t written = pwrite(fd_, from, n, offset);
    if (written < 0 && errno == EINTR) {
      throw_if_interrupted();
      continue;
    }
    if (written < 0) fail_errno("write " + partial_);
    from += written;
    offset += written;
    n -= size_t(written);
  }
}

void TensorFile::write_row(const std::string& name, int64_t row, Type type, const void* values, int64_t n) {
  const auto at = tensors_.find(name);
  if (at == tensors_.end() || at->second.type != type || at->second.shape.back() != n)
    fail("write ", partial_, ": \"", name, "\": got a row of ", n,
         " values, which is not what was announced");
  const int64_t bytes = n * value_bytes(type);
  write_at(at->second.offset + row * bytes, values, size_t(bytes));
}

void TensorFile::write_row(const std::string& name, int64_t row, const float* values, int64_t n) {
  write_row(name, row, Type::F32, values, n);
}

void TensorFile::write_row(const std::string& name, int64_t row, const int64_t* values, int64_t n) {
  write_row(name, row, Type::I64, values, n);
}

void TensorFile::finish() {
  const int fd = std::exchange(fd_, -1);
  if (close(fd) == 0 && rename(partial_.c_str(), path_.c_str()) == 0) return;
  const int why = errno;
  unlink(partial_.c_str());
  errno = why;
  fail_errno("write " + path_);
}

namespace {

using nlohmann::json;
constexpr uint64_t kMaxHeader = 100'000'000;  // bytes, as in the format's own library

// A list of an entry of the header: each number exact and not negative.
std::vector<int64_t> size_list(const json& entry, const char* key, const std::string& what) {
  const json list = entry.value(key, json());
  if (!list.is_array()) fail("read ", what, ": ", key, ": got ", list.type_name(), ", expected a list");
  std::vector<int64_t> sizes;
  for (const json& n : list) {
    if (!n.is_number_unsigned() || n.get<uint64_t>() > uint64_t(INT64_MAX))
      fail("read ", what, ": ", key, ": item ", sizes.size(), ": got ", n.dump().substr(0, 40),
           ", expected a size");
    sizes.push_back(n.get<int64_t>());
  }
  return sizes;
}

// Bytes [offset, offset + n) of a file of which `what` is the name.
std::string read_range(std::ifstream& in, const std::string& what, int64_t offset, int64_t n) {
  std::string bytes(size_t(n), '\0');
  if (!in.seekg(offset) || !in.read(bytes.data(), n))
    fail("read ", what, ": it ends before byte ", offset + n);
  return bytes;
}

}  // namespace

TensorValues read_tensor(const std::string& path, const std::string& name) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    fail("read ", path, ": it is not a regular file");
  std::ifstream in(path, std::ios::binary);
  if (!in) fail_errno("read " + path);
  const int64_t file_bytes = int64_t(std::filesystem::file_size(path));
  uint64_t header_bytes = 0;
  if (file_bytes >= 8) std::memcpy(&header_bytes, read_range(in, path, 0, 8).data(), 8);
  if (header_bytes == 0 || header_bytes > kMaxHeader || header_bytes > uint64_t(file_bytes - 8))
    fail("read ", path, ": not a safetensors file");
  const json header = parse_json(read_range(in, path, 8, int64_t(header_bytes)), path);
  if (!header.is_object()) fail("read ", path, ": its header is no JSON object; not a safetensors file");
  const std::string what = path + ": tensor \"" + name + "\"";
  const auto found = header.find(name);
  if (found == header.end()) fail("read ", what, ": the file has no such tensor");
  if (!found->is_object()) fail("read ", what, ": its entry is ", found->type_name(), ", expected an object");

  const json type = found->value("dtype", json());
  const std::string dtype = type.is_string() ? type.get<std::string>() : type.type_name();
  const std::map<std::string, int64_t> sizes = {{"F32", 4}, {"I64", 8}, {"BOOL", 1}, {"U8", 1}};
  if (!sizes.contains(dtype))
    fail("read ", what, ": got type ", dtype.substr(0, 40), ", expected F32, I64, BOOL or U8");
  TensorValues t;
  t.type = dtype;
  t.shape = size_list(*found, "shape", what);
  const std::vector<int64_t> offsets = size_list(*found, "data_offsets", what);
  int64_t elements = 1, bytes = 0;
  for (const int64_t n : t.shape)
    if (n < 1 || __builtin_mul_overflow(elements, n, &elements))
      fail("read ", what, ": got shape ", shape_text(t.shape), ", expected dimensions of at least 1");
  const int64_t data = int64_t(8 + header_bytes);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > file_bytes - data ||
      __builtin_mul_overflow(elements, sizes.at(dtype), &bytes) || offsets[1] - offsets[0] != bytes)
    fail("read ", what, ": got data_offsets ", shape_text(offsets), ", expected the place of shape ",
         shape_text(t.shape), " in a file of ", file_bytes, " bytes");
  const std::string values = read_range(in, path, data + offsets[0], bytes);
  t.values.resize(size_t(elements));
  if (sizes.at(dtype) == 1)
    std::transform(values.begin(), values.end(), t.values.begin(), [](char c) { return float(c != 0); });
  else if (dtype == "I64")
    for (size_t i = 0; i < t.values.size(); ++i) {
      int64_t value;
      std::memcpy(&value, &values[i * 8], 8);
      if (value < 0 || value >= 1 << 24)
        fail("read ", what, ": element ", i, ": got ", value, ", expected 0..2^24");
      t.values[i] = float(value);
    }
  else
    std::memcpy(t.values.data(), values.data(), values.size());
  return t;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += text(i ? ", " : "", shape[i]);
  return out + "]";
}

}  // namespace tools
