#include "convert/consume.h"

#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>

#include "ggml-lite/file.h"

namespace dsv3 {
namespace {

namespace fs = std::filesystem;

// Of a link in a snapshot of the Hugging Face cache: the snapshots with other links that lead to the same blob, in whatever
// folder.
std::vector<std::string> other_users(const fs::path& link, const fs::path& blob) {
  std::vector<std::string> users;
  std::error_code error;
  const fs::path own = fs::canonical(link.parent_path(), error);
  const fs::path snapshots = own.parent_path();
  for (fs::recursive_directory_iterator at(snapshots, error), end; !error && at != end; at.increment(error))
    if (std::error_code none; at->path() != own / link.filename() && fs::is_symlink(at->path(), none) &&
                              fs::canonical(at->path(), none) == blob)
      users.push_back(at->path().lexically_relative(snapshots).begin()->string());
  if (error) users.push_back("one that cannot be read");
  return users;
}

// Whether a link leads from SNAPSHOTS/COMMIT/NAME to BLOBS/HASH of the same repository.
bool is_of_cache(const fs::path& link, const fs::path& blob) {
  std::error_code error;
  const fs::path snapshot = fs::canonical(link.parent_path(), error);
  return !error && snapshot.parent_path().filename() == "snapshots" &&
         blob.parent_path().filename() == "blobs" &&
         snapshot.parent_path().parent_path() == blob.parent_path().parent_path();
}

}  // namespace

Result<Consumer> Consumer::make(Plan* from, const std::string& out, const ConvertCallbacks& callbacks) {
  const auto note = [&](const std::string& text) {
    if (callbacks.note) callbacks.note(text);
  };
  const Plan& plan = *from;
  Consumer consumer;
  consumer.frees_.assign(plan.extents().size(), 0);
  consumer.shards_of_.resize(plan.extents().size());

  std::unordered_map<const Checkpoint::Shard*, std::set<size_t>> extents_of;
  const std::vector<Planned>& tensors = plan.match().tensors;
  for (size_t i = 0; i < tensors.size(); ++i) {
    extents_of[tensors[i].data.tensor.shard].insert(plan.extent_of(i));
    if (tensors[i].scale) extents_of[tensors[i].scale->tensor.shard].insert(plan.extent_of(i));
  }
  std::set<const Checkpoint::Shard*> needed;  // with tensors that are not converted
  for (const std::string& name : plan.match().dropped) needed.insert(plan.checkpoint().find(name)->shard);

  struct stat disk = {};
  const fs::path folder = fs::path(out).parent_path();
  (void)::stat(folder.empty() ? "." : folder.c_str(), &disk);
  std::vector<std::string> kept, shared;
  size_t blobs = 0;
  for (Checkpoint::Shard& shard : from->checkpoint().shards()) {
    const std::string path = plan.folder() + "/" + shard.name;
    if (shard.consumed) {  // of a link in the cache the blob went first
      std::error_code error;
      if (fs::is_symlink(path, error) && !fs::exists(path, error)) fs::remove(path, error);
      continue;
    }
    if (needed.contains(&shard)) {
      kept.push_back(shard.name);
      continue;
    }
    std::string blob;
    std::error_code error;
    if (fs::is_symlink(path, error)) {
      blob = fs::canonical(path, error).string();
      if (!is_of_cache(path, blob))
        return lite::invalid_argument("consume ", path, ": it is a link to ", blob,
                                      ", which others may use; --consume deletes files of the checkpoint's "
                                      "folder and of the Hugging Face cache only: leave it out");
      if (!other_users(path, blob).empty()) {
        shared.push_back(shard.name);
        continue;
      }
      ++blobs;
    }
    const std::set<size_t>& extents = extents_of[&shard];
    struct stat s;
    if (!extents.empty() && ::stat(path.c_str(), &s) == 0 && s.st_dev == disk.st_dev && s.st_nlink == 1)
      consumer.frees_[*extents.rbegin()] += int64_t(s.st_blocks) * 512;
    for (const size_t e : extents) consumer.shards_of_[e].push_back(consumer.shards_.size());
    consumer.shards_.push_back({path, blob, &shard.file, extents.size()});
  }
  if (!kept.empty()) note("--consume keeps shards with tensors that are not converted: " + list_names(kept));
  if (!shared.empty())
    note("--consume keeps shards that another snapshot in the cache uses: " + list_names(shared));
  if (blobs > 0)
    note(lite::str("--consume will delete ", blobs, " blobs of the Hugging Face cache ", plan.folder()));
  return consumer;
}

Status Consumer::durable(const std::vector<size_t>& extents, lite::PackWriter* writer) {
  for (const size_t e : extents)
    for (const size_t s : shards_of_[e])
      if (--shards_[s].waiting == 0) {
        LITE_TRY(writer->hold_only_copy());
        LITE_TRY(remove(shards_[s]));
        consumed_ = true;
      }
  return {};
}

// The header first, and durable: from then on the shard is not needed to go on. An open file would keep its room
// on the disk without its name.
Status Consumer::remove(const Shard& shard) const {
  LITE_TRY(shard.file->write_header(shard.path + kConsumed));
  LITE_TRY(lite::sync_folder(shard.path));
  shard.file->close();
  for (const std::string& path : {shard.blob, shard.path})
    if (!path.empty() && ::unlink(path.c_str()) != 0 && errno != ENOENT)
      return lite::errno_status("consume " + path, errno);
  return {};
}

void remove_consumed_headers(const std::string& folder, const std::vector<std::string>& shards) {
  std::error_code error;
  for (const std::string& name : shards)
    if (name.ends_with(".safetensors") && name.find('/') == std::string::npos)
      fs::remove(folder + "/" + name + kConsumed, error);
}

}  // namespace dsv3
