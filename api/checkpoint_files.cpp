#include "api/checkpoint_files.h"

#include <filesystem>
#include <fstream>
#include <iterator>

namespace dsv3::api {

Result<CheckpointFiles> CheckpointFiles::open(const std::string& path) {
  CheckpointFiles out;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    out.folder_ = path;
  } else {
    LITE_ASSIGN(lite::PackFile packed, lite::PackFile::open(path));
    out.packed_ = std::move(packed);
  }
  return out;
}

Tokenizer::Files CheckpointFiles::reader() {
  return [this](std::string_view name) { return find(name); };
}

const std::string_view* CheckpointFiles::find(std::string_view name) {
  if (packed_) return packed_->section(name);
  const auto [it, fresh] = read_.try_emplace(std::string(name));
  Text& text = it->second;
  if (fresh) {
    std::ifstream in(folder_ + "/" + std::string(name), std::ios::binary);
    if (in) {
      text.bytes.assign(std::istreambuf_iterator<char>(in), {});
      text.view = text.bytes;
    }
  }
  return text.view ? &*text.view : nullptr;
}

}  // namespace dsv3::api
