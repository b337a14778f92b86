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

// The text files of the folder that a packed file keeps: their bytes by their paths in the folder.
Result<std::map<std::string, std::string>> read_checkpoint_texts(const std::string& folder);

// What --consume leaves in place of a shard until the conversion is complete: NAME.safetensors.consumed, its header.
constexpr const char* kConsumed = ".consumed";

class Checkpoint {
 public:
  struct Shard {
    std::string name;  // in the folder
    SafetensorsFile file;
    bool consumed;  // only its header is left, or only that is used
    std::optional<int64_t>
        consumed_ns;  // it is there, beside the header of one that was consumed: its changed_ns()
  };
  struct Tensor {
    const Shard* shard;
    const SafetensorsEntry* entry;
    const SafetensorsFile& file() const { return shard->file; }
  };

  // No tensors yet.
  explicit Checkpoint(std::string folder = {}) : folder_(std::move(folder)) {}
  // NotFound, with what is there instead, when `folder` is no folder or has no weights; Corrupt when index
  // and shards do not agree about every single tensor.
  static Result<Checkpoint> open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const std::vector<Shard>& shards() const { return shards_; }
  std::vector<Shard>& shards() { return shards_; }
  const Tensor* find(std::string_view name) const;                                // null when absent
  const std::map<std::string_view, Tensor>& tensors() const { return tensors_; }  // by name

 private:
  Status open_shards(const std::vector<std::string>& names);
  Status check_index(const std::map<std::string, std::string, std::less<>>& shard_of) const;

  std::string folder_;
  std::vector<Shard> shards_;  // never changes once tensors_ points into it
  std::map<std::string_view, Tensor> tensors_;
};

// "a, b, c and 17 more": names for a message, no more than 20 of them, and of each no more than 200 bytes.
std::string list_names(const std::vector<std::string>& names);

}  // namespace dsv3
