// A checkpoint to a packed file, and what can be done with the two. Tensors stream through in pieces: memory does
// not depend on the model's size. The same checkpoint and options give the same bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ggml-lite/dtype.h"
#include "ggml-lite/pack.h"
#include "ggml-lite/status.h"

namespace dsv3 {

struct ConvertOptions {
  std::string source;  // a checkpoint's folder, or ORG/NAME[@REVISION] in the cache: hub_cache.h
  std::string out;     // OUT.dsv3; written as OUT.dsv3.partial until it is complete
  // Projections and experts in this type; everything else, and all of it without one, keeps the checkpoint's.
  std::optional<lite::DType> dtype;  // F32, BF16, F16 or F8_E4M3
  bool force = false;                // replace an existing packed file, in however many files it lies
  bool f8_head = false;              // the output head as F8_E4M3
  std::string hub_cache = {};        // folder of the Hugging Face cache; empty: there is none
  int64_t split_bytes = 0;  // several files of at most this, refused where a tensor needs more; 0: one
  bool consume = false;     // delete each shard once all its data are durable in the packed file
  bool dry_run = false;     // write nothing
  int threads = 0;          // 0: one for each core
};

struct ConvertCallbacks {
  std::function<void(const std::string& text)> note;  // worth telling, not an error
  // Bytes of the checkpoint that are done; false stops with Cancelled. From one thread at a time, not always the
  // same. The total is 0 while tensors are still compared.
  std::function<bool(int64_t done, int64_t total)> progress;
};

struct ConvertSummary {
  struct RoleUse {
    std::string role;
    int64_t extents = 0, bytes = 0;
  };
  std::vector<lite::PackPart> files;
  std::vector<RoleUse> roles;
  int64_t file_bytes = 0;
  int64_t tensors = 0;  // stored
  int64_t aliases = 0;  // names of tensors that are stored under another name
  bool has_tokenizer = false;
};

// With Io, OutOfMemory and Cancelled, OUT.partial and OUT.journal stay, and the same call goes on where this one
// ended; so it does after the process was killed. After any other error `out` is as it was before and nothing is
// left.
lite::Result<ConvertSummary> convert(const ConvertOptions& options, const ConvertCallbacks& callbacks = {});

// Compares a packed file with the checkpoint it was made of: every tensor, scales included, and every text file,
// bit for bit; what --dtype re-encoded is re-encoded again. Corrupt names what differs first.
lite::Status check(const std::string& source, const std::string& hub_cache, const std::string& model,
                   int threads, const ConvertCallbacks& callbacks = {});

struct ExportSummary {
  int64_t tensors = 0, bytes = 0, shards = 0;
  std::vector<std::string> dropped;  // names of the checkpoint's tensors that the packed file does not hold
};

// Writes the checkpoint back: a new folder with the text files as they were and every tensor under its own name,
// type and shape, in shards of at most `shard_bytes` (but for a single larger tensor). Unsupported when the file
// was made with --dtype: the checkpoint's bits are not in it.
lite::Result<ExportSummary> export_checkpoint(const std::string& model, const std::string& folder,
                                              int64_t shard_bytes, const ConvertCallbacks& callbacks = {});

}  // namespace dsv3
