// An opened model: its configuration, its tensors where they will be used, and what can be said about it.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "ggml-lite/device_weights.h"
#include "ggml-lite/host_copy.h"
#include "ggml-lite/pack.h"
#include "model/config.h"
#include "model/tensors.h"

namespace dsv3 {

// A packed file's. Corrupt when it has none, or one that asks for more tensors than the file holds: a few words can ask for any
// number of layers and experts, and nothing is listed that is not there. `what` begins the message.
Result<Config> packed_config(const lite::PackFile& file, const std::string& what);

class Model {
 public:
  // Opens the packed file, reads its configuration and compares every tensor with the table; touches no weights.
  static Result<std::unique_ptr<Model>> open(const std::string& path);
  // What the checkpoint of a config.json would be once converted, without the weights: every tensor has its type and
  // shape, and an address that tells it from others and holds nothing. For planning.
  static Result<std::unique_ptr<Model>> outline(const std::string& config_path);

  // Copies the weights out of the file, one thread on each core (host_copy.h); before the first session.
  Status copy_weights(const std::function<bool(int64_t done, int64_t total)>& progress);

  bool has_weights() const { return file_.has_value(); }
  const lite::PackFile& file() const { return *file_; }  // of an opened one
  const Config& config() const { return config_; }
  const std::vector<TensorInfo>& table() const { return table_; }

  // A tensor of the table by name; of an optional one that is absent, what it is the same as, or no data at all.
  lite::Tensor tensor(const std::string& name) const;
  lite::Tensor rope_inv_freq(int64_t dim) const;  // f32 [dim / 2], of a layer's rotary_dim
  // What is stored for a line of the table, under whichever of its names; null when nothing is.
  const lite::PackFile::Item* find(const TensorInfo& info) const {
    return items_[size_t(&info - table_.data())];
  }

  int64_t parameters() const;       // of everything stored, aliases once
  int64_t bytes_per_token() const;  // weights read to decode one token
  int64_t parameters_per_token()
      const;  // weights that a token of a prompt is multiplied with: without the head

  // Everything as one JSON text; see dsv3_model_describe. Built at the first call.
  const std::string& describe();

  // What sessions need of the weights on other devices than the host.
  lite::DeviceWeights& device_weights() { return device_weights_; }

  // Evaluations of one model run one after the other.
  std::mutex& evaluation() { return evaluation_; }

 private:
  Model(std::optional<lite::PackFile> file, Config config);
  Status check_tensors() const;
  // Where in the table a name is, under all of a tensor's names. Built at the first call: to open a model takes none.
  const std::unordered_map<std::string_view, size_t>& by_name() const;

  std::optional<lite::PackFile> file_;
  std::optional<lite::HostCopy> copy_;
  std::deque<lite::PackFile::Item> outline_;  // what a file would hold, where there is none
  Config config_;
  std::vector<TensorInfo> table_;
  std::vector<const lite::PackFile::Item*> items_;  // of each tensor of the table
  mutable std::once_flag named_;
  mutable std::unordered_map<std::string_view, size_t> by_name_;  // use by_name()
  std::map<int64_t, std::vector<float>> inv_freq_;                // by dimension
  lite::DeviceWeights device_weights_;
  std::mutex evaluation_, describing_;
  std::string description_;
};

}  // namespace dsv3
