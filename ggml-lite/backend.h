// What a device must offer. Device 0 is always the host's CPU.
//
// A backend runs segments of a bound graph (plan.h): all memory has its place, nothing is allocated. Either the calling
// thread does the work, segment by segment; or the device works beside it (a GPU's stream), and is given a whole step at once.
#pragma once

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
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
  std::vector<int32_t>
      after;  // earlier segments that must be done before this one begins: those of other lanes
  // The device does it beside its other work: it copies what the host has staged. Segments of one device and lane follow each
  // other; beside them others may run.
  bool aside = false;

  int lane() const { return 2 * device + (aside ? 1 : 0); }
};

struct Plan;

// Bytes of the host's memory, and where they go in a device's.
struct Piece {
  int64_t place;
  const std::byte* from;
  int64_t bytes;
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
  // Copies many pieces, in the order of their places, to this device's memory at `to`; what lies between them is undefined.
  virtual Status upload(std::byte* to, std::span<const Piece> pieces) {
    for (const Piece& p : pieces) LITE_TRY(copy(to + p.place, p.from, p.bytes));
    return {};
  }
  // Unsupported if this backend cannot run the node as it is (a type, a shape).
  virtual Status check(const Graph& graph, const Node& node) const = 0;
  // Whether it may make the node and the next one, which is its own too, at once: what the one reads and the other writes must
  // then not share memory.
  virtual bool joins_next(const Graph&, int32_t /*node*/) const { return false; }
  // Memory of this device that prepare() takes.
  virtual int64_t recording_bytes(const Graph&, const Plan&, int /*device*/, std::span<const Phase>) const {
    return 0;
  }
  // Scratch that running the node takes.
  virtual int64_t workspace_bytes(const Graph& graph, const Node& node) const = 0;

  // ---- by the calling thread

  // Runs a segment of a bound graph. `cancel` is looked at between nodes; then Cancelled.
  virtual Status run(const Graph&, const Segment&, const std::atomic<bool>&) {
    return internal_error(name(), ": asked for a segment");
  }

  // ---- beside it

  // Whether it is so, and the following are called instead of run().
  virtual bool asynchronous() const { return false; }
  // Makes ready all that starting a step of these phases takes, whatever its size. What the graph is bound to must not
  // change afterwards.
  virtual Status prepare(const Graph&, const Plan&, int /*device*/, std::span<const Phase>) { return {}; }
  // Gives the device all its segments of a step, as `device` of the plan, and returns. Each begins when those that it comes
  // after have said so (Plan::finished), and says so itself.
  virtual Status start(const Graph&, const Plan&, int /*device*/) {
    return internal_error(name(), ": asked for a step");
  }
  // Ok, or what went wrong with what it was given; returns at once.
  virtual Status poll() { return {}; }
  // Returns when everything it was given has been done.
  virtual Status wait() { return {}; }
  // Held from start() until all devices of a step that wait for each other have been waited for; one does for all backends of a
  // kind. What the device cannot do while it waits for the host is then done by no thread, or by this one.
  virtual std::unique_lock<std::recursive_mutex> alone() { return {}; }
};

}  // namespace lite
