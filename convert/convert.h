// A checkpoint's folder to a packed file. Tensors stream through in pieces of a few MB: memory does not
// depend on the model's size. The same checkpoint and options give the same bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "ggml-lite/dtype.h"
#include "ggml-lite/status.h"

namespace dsv3 {

struct ConvertOptions {
  std::string source;  // a folder: config.json, *.safetensors, and what tokenizer there is
  std::string out;     // OUT.dsv3; written as OUT.dsv3.partial until it is complete
  // Projections and experts in this type; everything else, and all of it without one, keeps the checkpoint's.
  std::optional<lite::DType> dtype;  // F32, BF16, F16 or F8_E4M3
  bool force = false;                // replace an existing packed file
  bool f8_head = false;              // the output head as F8_E4M3
};

struct ConvertCallbacks {
  std::function<void(const std::string& text)> note;          // worth telling, not an error
  std::function<bool(int64_t done, int64_t total)> progress;  // bytes read; false stops with Cancelled
};

struct ConvertSummary {
  int64_t file_bytes = 0;
  int64_t tensors = 0;  // stored
  int64_t aliases = 0;  // names of tensors that are stored under another name
};

// On any error `out` is as it was before, and no partial file is left.
lite::Result<ConvertSummary> convert(const ConvertOptions& options, const ConvertCallbacks& callbacks = {});

}  // namespace dsv3
