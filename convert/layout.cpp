#include "convert/layout.h"

#include <algorithm>
#include <filesystem>
#include <unordered_map>

namespace dsv3 {

namespace fs = std::filesystem;

Result<std::vector<lite::PackExtent>> group_into_extents(std::span<const Stored> tensors) {
  std::vector<lite::PackExtent> extents;
  std::vector<int> layer_of;  // of extents of experts, else -1
  const TensorInfo* before = nullptr;
  for (const Stored& t : tensors) {
    const bool same_expert =
        before && t.info->expert >= 0 && t.info->expert == before->expert && t.info->layer == before->layer;
    if (!same_expert) {
      extents.emplace_back();
      layer_of.push_back(t.info->expert >= 0 ? t.info->layer : -1);
    }
    extents.back().tensors.push_back(t.entry);
    before = t.info;
  }
  std::unordered_map<int, int64_t> stride;  // of a layer's experts
  for (size_t i = 0; i < extents.size(); ++i) {
    if (layer_of[i] < 0) continue;
    LITE_ASSIGN(const int64_t bytes, lite::extent_bytes(extents[i]));
    stride[layer_of[i]] = std::max(stride[layer_of[i]], bytes);
  }
  for (size_t i = 0; i < extents.size(); ++i)
    if (layer_of[i] >= 0) extents[i].stride = stride[layer_of[i]];
  return extents;
}

namespace {

Status check_destination(const std::string& path, bool force, const lite::PackPlace& place) {
  std::error_code error;
  const fs::file_status out = fs::status(path, error);
  const std::string what = "create " + path;
  if (!fs::exists(out)) {
    if (!fs::is_symlink(fs::symlink_status(path, error))) return {};
    return lite::invalid_argument(what, ": it is a link to nothing; try another name, or remove it");
  }
  if (!fs::is_regular_file(out))
    return lite::invalid_argument(what, ": it is there and is not a file; try another name");
  const auto there = lite::packed_place(path);
  if (there && there->count > 1 && (there->count != place.count || there->index != place.index))
    return lite::invalid_argument(
        what, ": it is file ", there->index + 1, " of the ", there->count,
        " of a model, which would be broken; try another name, or --force and the model's "
        "name, without a number, to replace all of it");
  if (!force) return lite::invalid_argument(what, ": it exists; try another name, or --force to replace it");
  // A typing error must not cost the weights: --force replaces only what this program made.
  if (fs::file_size(path, error) != 0 && !lite::looks_packed(path))
    return lite::invalid_argument(
        what, ": it exists and is not a packed file, which --force does not replace; try another name");
  return {};
}

}  // namespace

Status check_destination(const std::vector<lite::PackPart>& parts, bool force) {
  for (size_t i = 0; i < parts.size(); ++i)
    LITE_TRY(check_destination(parts[i].path, force, {uint32_t(i), uint32_t(parts.size())}));
  return {};
}

void remove_replaced(const std::string& out, size_t files,
                     const std::function<void(const std::string&)>& note) {
  for (const std::string& path : lite::files_of_model(out, files)) {
    std::error_code error;
    fs::remove(path, error);
    if (!note) continue;
    note(error ? lite::str("remove ", path, ", of the model that was replaced: ", error.message(),
                           "; it is not needed any more")
               : "removed " + path + ", of the model that was replaced");
  }
}

// A file is as long as its index and its longest extent need, however it is split.
Status check_split(const std::vector<lite::PackPart>& parts, int64_t split_bytes) {
  const auto longest =
      std::max_element(parts.begin(), parts.end(),
                       [](const lite::PackPart& a, const lite::PackPart& b) { return a.bytes < b.bytes; });
  if (split_bytes == 0 || longest->bytes <= split_bytes) return {};
  return lite::invalid_argument(
      "create ", longest->path, ": it would have ", longest->bytes, " bytes, more than the split size of ",
      split_bytes, ": a tensor, the matrices of an expert and the index are not cut; try --split-size ",
      longest->bytes, " or more");
}

}  // namespace dsv3
