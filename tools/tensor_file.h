// A safetensors file whose tensors are known by name and shape before their values are, written row by row in
// any order: memory does not grow with the file. It appears under its name only when it is complete.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace tools {

// Fails where a file cannot be put, or where it would replace anything but an empty file or one with `magic` at
// `offset`, which `kind` names ("a safetensors file"): a typing error must not cost a device, a link or the model.
void check_replaceable(const std::string& path, size_t offset, std::string_view magic, const char* kind);

class TensorFile {
 public:
  enum class Type { F32, I64 };

  // Fails if there can be no tensor file at `path`: asked before long work, create() asks again.
  static void check(const std::string& path);

  explicit TensorFile(std::string path) : path_(std::move(path)), partial_(path_ + ".partial") {}
  ~TensorFile();  // leaves nothing behind unless finished
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  // First every tensor, with its shape; a row is the last dimension.
  void add(const std::string& name, Type type, std::vector<int64_t> shape);
  // Then the file, in its full size.
  void create();
  // Then rows: row i of the tensor seen as a matrix; `n` values must be the last dimension.
  void write_row(const std::string& name, int64_t row, const float* values, int64_t n);
  void write_row(const std::string& name, int64_t row, const int64_t* values, int64_t n);
  void finish();

 private:
  struct Tensor {
    Type type;
    std::vector<int64_t> shape;
    int64_t offset = 0;  // in the file
  };

  void write_at(int64_t offset, const void* bytes, size_t n);
  void write_row(const std::string& name, int64_t row, Type type, const void* values, int64_t n);

  std::string path_, partial_;
  std::map<std::string, Tensor> tensors_;
  int fd_ = -1;
};

// One tensor of a safetensors file that the user gives: F32, or I64 below 2^24, or BOOL and U8 as 0 and 1.
struct TensorValues {
  std::vector<int64_t> shape;
  std::vector<float> values;
  std::string type;  // as the file names it
};
TensorValues read_tensor(const std::string& path, const std::string& name);
std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 3]"

}  // namespace tools
