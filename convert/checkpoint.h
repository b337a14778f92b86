// A checkpoint's folder in the Hugging Face layout: config.json and other text files, and the weights as
// model.safetensors or as shards named by model.safetensors.index.json. Pickled weights (.bin, .pt) are never
// opened.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "convert/safetensors.h"

namespace dsv3 {

// The text of a file of the folder, nothing when there is none.
Result<std::optional<std::string>> read_checkpoint_text(const std::string& folder, const std::string& name);

class Checkpoint {
 public:
  struct Tensor {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };

  // NotFound, with what is there instead, when `folder` is no folder or has no weights; Corrupt when index
  // and shards do not agree about every single tensor.
  static Result<Checkpoint> open(const std::string& folder);

  const Tensor* find(std::string_view name) const;                                // null when absent
  const std::map<std::string_view, Tensor>& tensors() const { return tensors_; }  // by name

 private:
  Status open_shards(const std::string& folder, const std::vector<std::string>& names);
  Status check_index(const std::map<std::string, std::string, std::less<>>& shard_of) const;

  std::vector<SafetensorsFile> files_;  // never changes once tensors_ points into it
  std::map<std::string_view, Tensor> tensors_;
};

// "a, b, c and 17 more": names for a message, no more than 20 of them.
std::string list_names(const std::vector<std::string>& names);

}  // namespace dsv3
