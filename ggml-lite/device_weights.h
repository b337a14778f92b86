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

// Bytes that a tensor's copy takes on another device: elements and scales, each at a multiple of 256.
int64_t copied_bytes(const Tensor& tensor);

// Shared by all graphs that are built over the same weights with the same devices; outlives them.
class DeviceWeights {
 public:
  // Brings the weights that other devices than the host read there, unless they are there already, and points the
  // graph at them. One allocation per device and call. Errors: those of Backend::allocate and upload. Any thread.
  Status upload(Graph* graph, std::span<Backend* const> backends);

  // Bytes that have been copied to a device. Any thread.
  int64_t bytes(int device);

 private:
  using Key = std::tuple<int, const std::byte*, int64_t>;  // device, the host's memory, bytes

  std::mutex mutex_;
  std::map<Key, std::byte*> copies_;
  std::vector<Buffer> memory_;
  std::map<int, int64_t> bytes_;  // by device
};

}  // namespace lite
