// A checkpoint's tensors and the table of what the model needs, brought together: where each tensor comes from,
// and what it becomes in the packed file.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "convert/checkpoint.h"
#include "ggml-lite/dtype.h"
#include "ggml-lite/pack.h"
#include "model/tensors.h"

namespace dsv3 {

constexpr const char* kScaleSuffix = "_scale_inv";  // of the name of an FP8 tensor's scales

// Bytes of a checkpoint's tensor: all of it, or one expert's rows of a tensor of all experts.
struct Slice {
  Checkpoint::Tensor tensor;
  lite::DType dtype = lite::DType::F32;
  int64_t from = 0, bytes = 0;

  Status read(int64_t at, std::span<std::byte> to) const {
    return tensor.file().read(*tensor.entry, from + at, to);
  }
};

// A tensor of the table that the checkpoint has.
struct Planned {
  const TensorInfo* info;
  Slice data;
  std::optional<Slice> scale;
  lite::PackEntry entry;  // in the packed file
};

struct Match {
  Config config;
  std::vector<TensorInfo> table;
  std::vector<Planned> tensors;      // in the order of the table
  std::vector<std::string> fused;    // names of tensors of all experts
  std::vector<std::string> dropped;  // names of tensors that nothing needs
};

// Checks presence, type, shape and scales of every tensor; an error names all that are wrong in one way.
// `dtype`: what projections and experts become; `f8_head`: the output head becomes F8_E4M3. `note` gets what is worth
// telling.
Result<Match> match_checkpoint(const Checkpoint& checkpoint, const Config& config,
                               std::optional<lite::DType> dtype, bool f8_head,
                               const std::function<void(const std::string&)>& note);

}  // namespace dsv3
