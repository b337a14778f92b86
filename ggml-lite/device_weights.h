// Copies of weights in the memory of devices other than the host.
#pragma once

#include <map>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "ggml-lite/backend.h"
#include "ggml-lite/graph.h"

namespace lite {

// Shared by all graphs that are built over the same weights with the same devices; outlives them.
class DeviceWeights {
 public:
  // Brings the weights that other devices than the host read there, unless they are there already, and points the
  // graph at them. One allocation per device and call. Errors: those of Backend::allocate and copy. Any thread.
  Status upload(Graph* graph, std::span<Backend* const> backends);

 private:
  using Key = std::tuple<int, const std::byte*, int64_t>;  // device, the host's memory, bytes

  std::mutex mutex_;
  std::map<Key, std::byte*> copies_;
  std::vector<Buffer> memory_;
};

}  // namespace lite
