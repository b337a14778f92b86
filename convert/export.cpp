// A packed file back to a checkpoint's folder: safetensors shards with their index, and the text files.
#include <fcntl.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <new>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "convert/convert.h"
#include "convert/match.h"
#include "convert/provenance.h"
#include "convert/workers.h"
#include "ggml-lite/file.h"
#include "model/model.h"
#include "model/sections.h"

namespace dsv3 {
namespace {

using lite::corrupt;
using lite::PackFile;
namespace fs = std::filesystem;

constexpr size_t kPiece = size_t(4) << 20;  // bytes written at once

// A tensor of the checkpoint, in as many pieces as the packed file has it.
struct Out {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<std::span<const std::byte>> pieces;
  int64_t bytes = 0;

  void add(const std::byte* data, int64_t n) {
    pieces.push_back({data, size_t(n)});
    bytes += n;
  }
};

// A file being written; what fails is kept until close().
class OutFile {
 public:
  explicit OutFile(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666)) {
    if (fd_ < 0) status_ = lite::errno_status("create " + path, errno);
  }
  ~OutFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  OutFile(const OutFile&) = delete;
  OutFile& operator=(const OutFile&) = delete;

  Status write(std::span<const std::byte> bytes) {
    while (status_.ok() && !bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0)
        status_ = lite::errno_status("write " + path_, n < 0 ? errno : ENOSPC);
      else
        bytes = bytes.subspan(size_t(n));
    }
    return status_;
  }
  Status write(std::string_view text) { return write(std::as_bytes(std::span(text.data(), text.size()))); }
  Status finish() {
    if (status_.ok() && ::fsync(fd_) != 0) status_ = lite::errno_status("write " + path_, errno);
    return status_;
  }

 private:
  const std::string path_;
  const int fd_;
  Status status_;
};

class Export {
 public:
  Export(const PackFile& file, const std::string& folder, int64_t shard_bytes,
         const ConvertCallbacks& callbacks)
      : file_(file),
        folder_(folder),
        temporary_(folder + ".partial"),
        shard_bytes_(shard_bytes),
        callbacks_(callbacks) {}

  Result<ExportSummary> run();

 private:
  Status collect(const Config& config, const Provenance& provenance);
  Status collect_fused(const Config& config, const std::vector<std::string>& names);
  void add(const std::string& name, const PackFile::Item& item);
  Status verify(Progress* progress) const;
  Status write_all(ExportSummary* summary, Progress* progress);
  Status write_shard(const std::string& path, size_t begin, size_t end, Progress* progress) const;

  const PackFile& file_;
  const std::string folder_, temporary_;
  const int64_t shard_bytes_;
  const ConvertCallbacks& callbacks_;
  std::vector<Out> tensors_;
  std::unordered_set<std::string> in_fused_;  // names of tensors that are part of another
};

Result<ExportSummary> Export::run() {
  const std::string what = "export " + file_.path();
  LITE_TRY(check_sections(file_, what));
  LITE_ASSIGN(const Provenance provenance, read_provenance(file_));
  if (provenance.dtype)
    return lite::unsupported(what, ": it was made with --dtype ", lite::info(*provenance.dtype).name,
                             ", so the checkpoint's own bits are not in it; convert again without --dtype");
  if (provenance.f8_head)
    return lite::unsupported(
        what,
        ": it was made with --head f8, so the checkpoint's own output head is not in it; "
        "convert again without --head");
  std::error_code error;
  if (fs::exists(fs::symlink_status(folder_, error)))  // a link to nothing, too
    return lite::invalid_argument(what, ": ", folder_,
                                  " exists, expected the name of a new folder; try another");
  LITE_ASSIGN(const Config config, packed_config(file_, what));
  if (const Status collected = collect(config, provenance); !collected.ok())
    return Status(collected.code(), what + ": " + collected.message() + "; get the file or convert it again");
  ExportSummary summary;
  summary.dropped = provenance.dropped;
  summary.tensors = int64_t(tensors_.size());
  int64_t to_do = 0;
  for (const PackFile::ExtentInfo& e : file_.extents()) to_do += e.bytes;
  for (const Out& t : tensors_) to_do += t.bytes;
  Progress progress(callbacks_, what, 0, to_do);
  LITE_TRY(verify(&progress).in(what));
  if (!fs::create_directory(temporary_, error))
    return error ? lite::io_error("create ", temporary_, ": ", error.message())
                 : lite::invalid_argument(
                       "create ", temporary_,
                       ": it exists, of another export or of one that was killed; remove it");
  Status done = write_all(&summary, &progress);
  if (done.ok()) {
    fs::rename(temporary_, folder_, error);
    if (error) done = lite::io_error("rename ", temporary_, " to ", folder_, ": ", error.message());
  }
  if (done.ok()) done = lite::sync_folder(folder_);
  if (done.ok()) return summary;
  fs::remove_all(temporary_, error);
  return done;
}

// A checkpoint has no checksums: what is damaged must not become one.
Status Export::verify(Progress* progress) const {
  int64_t before = 0;
  return file_.verify([&](int64_t done, int64_t) {
    const int64_t more = done - before;
    before = done;
    return progress->add(more).ok();
  });
}

void Export::add(const std::string& name, const PackFile::Item& item) {
  const lite::PackEntry& e = item.entry;
  Out out{name, lite::info(e.dtype).name, e.shape, {}, 0};
  out.add(item.tensor.data, e.data_bytes());
  tensors_.push_back(std::move(out));
  if (!e.scaled) return;
  const std::vector<int64_t> grid = {lite::ceil_div(e.shape[0], e.block_rows),
                                     lite::ceil_div(e.shape[1], e.block_cols)};
  Out scales{name + kScaleSuffix, lite::info(e.scale_dtype).name, grid, {}, 0};
  scales.add(item.tensor.scale.data, e.scale_bytes());
  tensors_.push_back(std::move(scales));
}

Status Export::collect(const Config& config, const Provenance& provenance) {
  if (!provenance.fused.empty()) LITE_TRY(collect_fused(config, provenance.fused));
  for (const PackFile::Item& item : file_.items())
    if (!in_fused_.contains(item.entry.name)) add(item.entry.name, item);
  std::unordered_set<std::string_view> names;
  for (const Out& t : tensors_)
    if (!names.insert(t.name).second) return corrupt("tensor \"", t.name, "\" would be there twice");
  return {};
}

// Puts the rows of all experts together again; the table says whose they are.
Status Export::collect_fused(const Config& config, const std::vector<std::string>& names) {
  std::unordered_map<std::string, std::vector<const TensorInfo*>> parts;  // in order: expert, then row
  const std::vector<TensorInfo> table = tensor_table(config);
  for (const TensorInfo& info : table)
    if (info.fused) parts[info.fused_name()].push_back(&info);
  for (const std::string& name : names) {
    const auto found = parts.find(name);
    if (found == parts.end())
      return corrupt(kProvenance, " names a tensor \"", name, "\" that the model cannot have");
    const std::vector<const TensorInfo*> infos = std::exchange(found->second, {});
    if (infos.empty()) return corrupt(kProvenance, " names the tensor \"", name, "\" twice");
    const std::vector<int64_t> shape = infos[0]->fused_shape();
    Out out{name, {}, shape, {}, 0}, scales{name + kScaleSuffix, {}, shape, {}, 0};
    for (const TensorInfo* info : infos) {
      const PackFile::Item* item = file_.find(info->name);
      if (!item) return corrupt("tensor \"", info->name, "\" is missing");
      const lite::PackEntry& e = item->entry;
      const std::string dtype = lite::info(e.dtype).name,
                        scale_dtype = e.scaled ? lite::info(e.scale_dtype).name : "";
      if (out.dtype.empty()) {
        out.dtype = dtype;
        scales.dtype = scale_dtype;
      }
      if (e.shape != info->shape || dtype != out.dtype || scale_dtype != scales.dtype)
        return corrupt("tensor \"", info->name, "\" is not a part of ", name);
      out.add(item->tensor.data, e.data_bytes());
      if (e.scaled) {
        scales.shape = {shape[0], lite::ceil_div(shape[1], e.block_rows),
                        lite::ceil_div(shape[2], e.block_cols)};
        scales.add(item->tensor.scale.data, e.scale_bytes());
      }
      in_fused_.insert(info->name);
    }
    tensors_.push_back(std::move(out));
    if (!scales.pieces.empty()) tensors_.push_back(std::move(scales));
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const Out& a, const Out& b) { return a.name < b.name; });
  return {};
}

Status Export::write_all(ExportSummary* summary, Progress* progress) {
  std::vector<size_t> begin = {0};  // of each shard
  int64_t bytes = 0, total = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (bytes > 0 && bytes + tensors_[i].bytes > shard_bytes_) {
      begin.push_back(i);
      bytes = 0;
    }
    bytes += tensors_[i].bytes;
    total += tensors_[i].bytes;
  }
  begin.push_back(tensors_.size());
  const size_t shards = begin.size() - 1;
  summary->shards = int64_t(shards);
  summary->bytes = total;
  int64_t room = total;
  for (const std::string& name : file_.section_names()) room += int64_t(file_.section(name)->size());
  LITE_TRY(lite::check_room(folder_, room));
  Json::Object map;
  for (size_t s = 0; s < shards; ++s) {
    char name[64] = "model.safetensors";
    if (shards > 1) std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, shards);
    LITE_TRY(write_shard(temporary_ + "/" + name, begin[s], begin[s + 1], progress));
    for (size_t i = begin[s]; i < begin[s + 1]; ++i) map.emplace_back(tensors_[i].name, name);
  }
  std::vector<std::pair<std::string, std::string>> texts;  // path in the folder, bytes
  for (const std::string& name : file_.section_names())
    if (name != kProvenance) texts.emplace_back(path_of_section(name), *file_.section(name));
  if (shards > 1) {
    Json index{Json::Object()};
    index.set("metadata", Json::Object{{"total_size", total}});
    index.set("weight_map", std::move(map));
    texts.emplace_back("model.safetensors.index.json", index.dump());
  }
  for (const auto& [name, text] : texts) {
    const std::string path = temporary_ + "/" + name, folder = lite::folder_of(path);
    std::error_code error;
    fs::create_directory(folder, error);  // one that is there already is no error
    if (error) return lite::io_error("create ", folder, ": ", error.message());
    OutFile out(path);
    LITE_TRY(out.write(std::string_view(text)));
    LITE_TRY(out.finish());
  }
  return {};
}

Status Export::write_shard(const std::string& path, size_t begin, size_t end, Progress* progress) const {
  Json::Object header{{"__metadata__", Json::Object{{"format", "pt"}}}};
  int64_t at = 0;
  for (size_t i = begin; i < end; ++i) {
    const Out& t = tensors_[i];
    header.emplace_back(t.name, Json::Object{{"dtype", t.dtype},
                                             {"shape", Json::Array(t.shape.begin(), t.shape.end())},
                                             {"data_offsets", Json::Array{at, at + t.bytes}}});
    at += t.bytes;
  }
  std::string text = Json(std::move(header)).dump();
  text.resize(size_t(lite::round_up(int64_t(text.size()), 8)), ' ');
  std::string length;
  for (int i = 0; i < 8; ++i) length += char(uint64_t(text.size()) >> (8 * i));
  OutFile out(path);
  LITE_TRY(out.write(std::string_view(length)));
  LITE_TRY(out.write(std::string_view(text)));
  for (size_t i = begin; i < end; ++i)
    for (std::span<const std::byte> piece : tensors_[i].pieces)
      while (!piece.empty()) {
        const size_t n = std::min(piece.size(), kPiece);
        LITE_TRY(out.write(piece.first(n)));
        LITE_TRY(progress->add(int64_t(n)));
        piece = piece.subspan(n);
      }
  return out.finish();
}

}  // namespace

Result<ExportSummary> export_checkpoint(const std::string& model, const std::string& folder,
                                        int64_t shard_bytes, const ConvertCallbacks& callbacks) {
  try {
    std::string name = folder;
    while (name.size() > 1 && name.ends_with('/')) name.pop_back();
    LITE_ASSIGN(const PackFile file, PackFile::open(model));
    return Export(file, name, shard_bytes, callbacks).run();
  } catch (const std::bad_alloc&) {
    return lite::out_of_memory("export ", model, ": the machine has no memory left");
  }
}

}  // namespace dsv3
