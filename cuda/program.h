// A decode segment as one launch: a list of stages (stage.h) in the device's memory, which blocks that stay on the GPU
// walk through. Stages of one level run side by side; between two levels all blocks meet.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "cuda/levels.h"
#include "cuda/plan/sizes.h"
#include "cuda/runtime.h"
#include "ggml-lite/graph.h"

namespace lite::cuda {

struct Grid;

// What a node reads and writes, as bytes: an arena gives the same ones to several values.
struct Range {
  const std::byte *begin, *end;
};
struct Access {
  std::vector<Range> reads, writes;
};
Access access_of(const Graph& g, std::span<const Node> nodes);

// Finds the earliest level of every stage. A node's stages come one after the other, and after those of earlier nodes that
// write what it reads or writes, or read what it writes.
class Levels {
 public:
  void begin(Access access);  // the stages that follow are of a node with this access
  int next();                 // the level of its next stage, from 0

 private:
  struct Past {
    Access access;
    int end;  // the level after its last
  };
  std::vector<Past> nodes_;
};

class Program {
 public:
  explicit Program(int64_t tokens) : tokens_(tokens) {}  // for steps of at most so many

  // The stages that follow are these nodes'.
  void begin(const Graph& g, std::span<const Node> nodes) { levels_.begin(access_of(g, nodes)); }
  template <class S>
  void add(const S& stage, const Grid& grid, int64_t shared = 0) {
    static_assert(sizeof stage <= kArgumentBytes);
    add(S::kKind, &stage, sizeof stage, grid, shared);
  }

  // Copies it to memory of a device that has `room` (most_stages), and must outlive what has been launched.
  Status upload(int device, std::byte* memory, int64_t room) const;
  void launch(Stream& stream, const std::byte* memory) const;

 private:
  struct Stage {
    StageKind kind;
    int64_t x, y, z;
    int64_t arguments;  // where they begin, in bytes from those of the first

    int64_t blocks() const { return x * y * z; }
  };
  void add(StageKind kind, const void* stage, size_t bytes, const Grid& grid, int64_t shared);
  static int64_t blocks_of(const std::vector<Stage>& stages);
  // Its memory: levels, entries, arguments, with room for as many levels as stages.
  int64_t stages() const { return int64_t(arguments_.size()) / kArgumentBytes; }
  int64_t entries_at() const { return stages() * 16; }
  int64_t arguments_at() const { return stages() * (kStageBytes - kArgumentBytes); }

  int64_t tokens_;
  Levels levels_;
  std::vector<std::vector<Stage>> stages_;  // by level
  std::vector<std::byte> arguments_;
  int64_t shared_ = 0;
};

}  // namespace lite::cuda
