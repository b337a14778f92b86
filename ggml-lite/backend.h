// What a device must offer. Device 0 is always the host's CPU.
//
// A backend runs segments of a bound graph (plan.h): all memory has its place, nothing is allocated. It may return
// from run() before the work is done (a GPU's stream); wait() ends it.
#pragma once

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "ggml-lite/graph.h"
#include "ggml-lite/status.h"

namespace lite {

// Memory of a device; freed with its owner.
using Buffer = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

// Consecutive nodes of one device.
struct Segment {
  int device;
  int32_t first_node, n_nodes;
  std::vector<int32_t> after;  // earlier segments, of other devices, whose results this one reads
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;

  // Zeroed; aligned to 4 KiB on the host. OutOfMemory with the numbers.
  virtual Result<Buffer> allocate(int64_t bytes) = 0;
  // The same of the host's memory, where this device also reads and writes by itself.
  virtual Result<Buffer> allocate_shared(int64_t bytes) { return allocate(bytes); }
  // Copies now, between this device's memory and the host's or within either.
  virtual Status copy(std::byte* to, const std::byte* from, int64_t bytes) {
    std::memcpy(to, from, size_t(bytes));
    return {};
  }
  // Unsupported if this backend cannot run the node as it is (a type, a shape).
  virtual Status check(const Graph& graph, const Node& node) const = 0;
  // Scratch that running the node takes.
  virtual int64_t workspace_bytes(const Graph& graph, const Node& node) const = 0;

  // Runs a segment of a bound graph. `cancel` is looked at between nodes, or before the first one by a device that runs
  // them as one; then Cancelled. What a graph is bound to must not change after its first run.
  virtual Status run(const Graph& graph, const Segment& segment, const std::atomic<bool>& cancel) = 0;
  // Returns when everything this backend was given has been done.
  virtual Status wait() = 0;
};

}  // namespace lite
