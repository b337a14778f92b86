// What every way of making a packed file shares: where its tensors lie, and whether its place is free.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "ggml-lite/pack.h"
#include "model/tensors.h"

namespace dsv3 {

// A tensor of the table as the file holds it.
struct Stored {
  const TensorInfo* info;
  lite::PackEntry entry;
};

// Extents in the order of the table: a tensor each, or one expert's matrices; all experts of a layer get the length of
// its longest, so that expert e lies at e times that.
Result<std::vector<lite::PackExtent>> group_into_extents(std::span<const Stored> tensors);

// Whether the files of a model may be written: where each goes, nothing is, or with `force` a packed file; but never one
// of several that another model lies in.
Status check_destination(const std::vector<lite::PackPart>& parts, bool force);

// What --force leaves of a model named `out` whose files were cut otherwise than the `files` that are there now: those
// files go, and nothing else. Notes say which.
void remove_replaced(const std::string& out, size_t files,
                     const std::function<void(const std::string&)>& note);

// Whether the files of a model, `parts`, are as small as was asked for; 0: one of any size.
Status check_split(const std::vector<lite::PackPart>& parts, int64_t split_bytes);

}  // namespace dsv3
