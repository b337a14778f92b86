#include "api/checkpoint_files.h"

#include <filesystem>

#include "ggml-lite/file.h"
#include "model/sections.h"

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
  if (packed_) return checkpoint_file(*packed_, name);
  const auto [it, fresh] = read_.try_emplace(std::string(name));
  Text& text = it->second;
  if (fresh) {
    auto read = lite::read_text(folder_ + "/" + std::string(name), kMaxCheckpointFile);
    if (read.ok()) {
      text.bytes = std::move(*read);
      text.view = text.bytes;
    } else if (read.status().code() != lite::Code::NotFound && unreadable_.ok()) {
      unreadable_ = read.status();
    }
  }
  return text.view ? &*text.view : nullptr;
}

}  // namespace dsv3::api
