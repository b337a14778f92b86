// A tensor's bytes on their way from the checkpoint: read in pieces, searched for NaN and infinity, re-encoded if
// the packed file wants another type.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "convert/match.h"

namespace dsv3 {

// One thread's buffers. Memory: a few MB, and for a re-encoded matrix some strips of 128 rows and its scales.
class TensorReader {
 public:
  using Sink = std::function<Status(std::span<const std::byte>)>;
  // Told of bytes as they are read; an error stops the reading.
  using Progress = std::function<Status(int64_t)>;

  explicit TensorReader(Progress progress) : progress_(std::move(progress)) {}

  // All bytes that the packed file has of the tensor, in order: elements, then scales.
  Status read(const Planned& t, const Sink& sink);

 private:
  Status read_piece(const Slice& slice, int64_t at, std::span<std::byte> to);
  Status copy(const Planned& t, const Sink& sink);
  Status recode_matrix(const Planned& t, const Sink& sink);

  const Progress progress_;
  std::vector<std::byte> piece_, recoded_, scales_;
  std::vector<float> new_scales_, scratch_;
};

}  // namespace dsv3
