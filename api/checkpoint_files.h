// The small files of a checkpoint, from its folder or from the packed file made of it.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "ggml-lite/pack.h"
#include "text/tokenizer.h"

namespace dsv3::api {

class CheckpointFiles {
 public:
  // Errors as PackFile::open. A folder is read as its files are asked for.
  static Result<CheckpointFiles> open(const std::string& path);

  // By name; what it gives holds as long as this object, which must stay where it is.
  Tokenizer::Files reader();
  // The first file that is there and cannot be read; to be looked at after what reader() was given to.
  const Status& unreadable() const { return unreadable_; }

 private:
  const std::string_view* find(std::string_view name);

  std::string folder_;
  Status unreadable_;
  std::optional<lite::PackFile> packed_;
  struct Text {
    std::string bytes;
    std::optional<std::string_view> view;  // none: there is no such file
  };
  std::map<std::string, Text, std::less<>> read_;
};

}  // namespace dsv3::api
