// The section that says how a packed file was made: what of the checkpoint is not in the file as it was.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ggml-lite/dtype.h"
#include "ggml-lite/json.h"
#include "ggml-lite/pack.h"
#include "model/sections.h"

namespace dsv3 {

struct Provenance {
  std::optional<lite::DType> dtype;  // what projections and experts were re-encoded to
  bool f8_head = false;              // the output head was re-encoded to F8_E4M3
  std::vector<std::string> fused;    // tensors of all experts of a layer, of which each expert got its rows
  std::vector<std::string> dropped;  // tensors that the packed file does not hold

  lite::Json json() const;
};

// Of a packed file; empty when it has none.
lite::Result<Provenance> read_provenance(const lite::PackFile& file);

}  // namespace dsv3
