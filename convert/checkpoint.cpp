#include "convert/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "ggml-lite/json.h"
#include "ggml-lite/printable.h"
#include "model/sections.h"

namespace dsv3 {
namespace {

using lite::corrupt;
using lite::Json;
using lite::not_found;
namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

using ShardOf = std::map<std::string, std::string, std::less<>>;  // tensor -> file name

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(
      fs::symlink_status(path, error));  // a dangling link exists, and opening it says what is wrong
}

// A shard, or what is left of it. A dangling link is none: what it leads to was not fetched.
bool shard_exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error) || fs::exists(path + kConsumed, error);
}

// A shard that is there may have been consumed before, and got again. What it has left tells what it was, if it is the
// same but for the time of its change.
std::optional<int64_t> consumed_before(const SafetensorsFile& file) {
  const auto header = SafetensorsFile::open_header(file.path() + kConsumed);
  if (!header.ok() || header->bytes() != file.bytes() || header->entries() != file.entries()) return {};
  return header->changed_ns();
}

// Why there are no weights, from what the folder holds instead.
Status no_weights(const std::string& folder) {
  std::vector<std::string> pickles, others;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string extension = at->path().extension().string(), name = at->path().filename().string();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".ckpt")
      pickles.push_back(name);
    if (extension == ".safetensors") others.push_back(name);
  }
  std::sort(pickles.begin(), pickles.end());
  std::sort(others.begin(), others.end());
  const std::string missing = lite::str("read ", folder, ": there is no ", kSingle, " and no ", kIndex);
  if (!others.empty())
    return not_found(missing, ", only ", list_names(others), "; try to get the missing files again");
  if (!pickles.empty())
    return not_found(
        missing, ", only ", list_names(pickles),
        "; pickled weights are never opened, as they can run code: get the checkpoint as safetensors");
  return not_found(missing, "; try to get the weights again");
}

// A file of the folder itself: an index must not lead anywhere else.
bool is_plain_name(const std::string& name) {
  return name.ends_with(".safetensors") && name.find_first_of("/\\") == std::string::npos &&
         !lite::has_controls(name);
}

Result<ShardOf> read_index(const std::string& folder) {
  const std::string path = folder + "/" + kIndex;
  LITE_ASSIGN(const std::string text, lite::read_text(path, kMaxCheckpointFile));
  LITE_ASSIGN(const Json json, Json::parse_file(text, path));
  const Json* map = json.find("weight_map");
  if (!map || !map->object())
    return corrupt("read ", path, ": it has no object \"weight_map\"; get it again");
  ShardOf shard_of;
  for (const auto& [name, file] : *map->object()) {
    if (!file.string() || !is_plain_name(*file.string()))
      return corrupt("read ", path, ": tensor ", Json(name).dump(), ": got shard ",
                     file.dump().substr(0, 200),
                     ", expected the name of a .safetensors file of the same folder; get the index again");
    shard_of.emplace(name, *file.string());
  }
  return shard_of;
}

}  // namespace

std::string list_names(const std::vector<std::string>& names) {
  constexpr size_t kMost = 20, kMostBytes = 200;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMost); ++i) {
    size_t bytes = std::min(names[i].size(), kMostBytes);
    while (bytes < names[i].size() && bytes > 0 && (uint8_t(names[i][bytes]) & 0xC0) == 0x80) --bytes;
    text += (i ? ", " : "") + names[i].substr(0, bytes) + (bytes < names[i].size() ? "..." : "");
  }
  if (names.size() > kMost) text += lite::str(" and ", names.size() - kMost, " more");
  return text;
}

Result<std::map<std::string, std::string>> read_checkpoint_texts(const std::string& folder) {
  std::vector<std::string> paths(std::begin(kCheckpointFiles), std::end(kCheckpointFiles));
  const std::string templates = lite::str(folder, "/", kTemplateFolder);
  std::error_code error;
  if (fs::is_directory(templates, error)) {
    fs::directory_iterator at(templates, error);
    for (const fs::directory_iterator end; !error && at != end; at.increment(error)) {
      const std::string path = lite::str(kTemplateFolder, "/", at->path().filename().string());
      if (is_named_template(path, '/')) paths.push_back(path);
    }
    if (error) return lite::io_error("read ", templates, ": ", error.message());
  }
  std::map<std::string, std::string> texts;
  for (const std::string& path : paths) {
    const std::string whole = folder + "/" + path;
    if (!exists(whole)) continue;
    LITE_ASSIGN(texts[path], lite::read_text(whole, kMaxCheckpointFile));
  }
  return texts;
}

Result<Checkpoint> Checkpoint::open(const std::string& folder) {
  const std::string one = folder + "/" + kSingle;
  const bool single = exists(one) || exists(one + kConsumed), index = exists(folder + "/" + kIndex);
  if (!single && !index) return no_weights(folder);
  if (single && index)
    return corrupt("read ", folder, ": there are both ", kSingle, " and ", kIndex,
                   "; remove the one that is stale");

  Checkpoint checkpoint(folder);
  if (single) {
    LITE_TRY(checkpoint.open_shards({kSingle}));
    return checkpoint;
  }
  LITE_ASSIGN(const ShardOf shard_of, read_index(folder));
  std::set<std::string> shards;
  for (const auto& [name, shard] : shard_of) shards.insert(shard);
  std::vector<std::string> missing;
  for (const std::string& shard : shards)
    if (const std::string path = folder + "/" + shard; !shard_exists(path))
      missing.push_back(shard + (exists(path) ? " (a link to nothing)" : ""));
  if (!missing.empty())
    return not_found("read ", folder, ": ", missing.size(), " of ", shards.size(), " shards named by ",
                     kIndex, " are missing: ", list_names(missing), "; try to get them again");
  LITE_TRY(checkpoint.open_shards({shards.begin(), shards.end()}));
  LITE_TRY(checkpoint.check_index(shard_of).in("read " + folder));
  return checkpoint;
}

Status Checkpoint::open_shards(const std::vector<std::string>& names) {
  Status first;
  std::vector<std::string> bad;
  shards_.reserve(names.size());
  for (const std::string& name : names) {
    const std::string path = folder_ + "/" + name;
    std::error_code error;
    const bool consumed = !fs::exists(path, error) && fs::exists(path + kConsumed, error);
    auto file = consumed ? SafetensorsFile::open_header(path + kConsumed) : SafetensorsFile::open(path);
    if (file.ok()) {
      const auto consumed_ns = consumed ? std::nullopt : consumed_before(*file);
      shards_.push_back({name, std::move(*file), consumed, consumed_ns});
      continue;
    }
    if (first.ok())
      first = file.status();
    else
      bad.push_back(name);
  }
  // An interrupted download often leaves several: name them all at once.
  if (!bad.empty()) return {first.code(), first.message() + "; also bad: " + list_names(bad)};
  LITE_TRY(first);
  for (const Shard& shard : shards_)
    for (const SafetensorsEntry& entry : shard.file.entries()) {
      const auto [at, is_new] = tensors_.emplace(entry.name, Tensor{&shard, &entry});
      if (!is_new)
        return corrupt("read ", folder_, ": tensor \"", entry.name, "\" is both in ",
                       at->second.shard->file.path(), " and in ", shard.file.path(),
                       "; remove the shard that is not of this checkpoint");
    }
  return {};
}

Status Checkpoint::check_index(const ShardOf& shard_of) const {
  std::vector<std::string> absent, unnamed;
  for (const auto& [name, shard] : shard_of) {
    const Tensor* tensor = find(name);
    if (!tensor || tensor->shard->name != shard) absent.push_back(Json(name).dump() + " in " + shard);
  }
  if (!absent.empty())
    return corrupt(kIndex, " names ", absent.size(),
                   " tensors that are not in their shard: ", list_names(absent),
                   "; index and shards are of different versions: get both again");
  for (const auto& [name, tensor] : tensors_)
    if (!shard_of.contains(name)) unnamed.emplace_back(name);
  if (!unnamed.empty())
    return corrupt(kIndex, " does not name ", unnamed.size(), " tensors of its shards: ", list_names(unnamed),
                   "; index and shards are of different versions: get both again");
  return {};
}

const Checkpoint::Tensor* Checkpoint::find(std::string_view name) const {
  const auto at = tensors_.find(name);
  return at == tensors_.end() ? nullptr : &at->second;
}

}  // namespace dsv3
