#include "convert/hub_cache.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "convert/checkpoint.h"
#include "ggml-lite/file.h"
#include "ggml-lite/printable.h"

namespace dsv3 {
namespace {

using lite::not_found;
using lite::Result;
namespace fs = std::filesystem;

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

bool is_commit(const std::string& text) {
  return text.size() == 40 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// A name or a path of names that stays where it is put.
bool is_relative(const std::string& text) {
  if (text.empty() || text[0] == '/') return false;
  for (const fs::path& name : fs::path(text))
    if (name.empty() || name == "." || name == "..") return false;
  return !lite::has_controls(text);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
    names.push_back(at->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// The snapshot that a revision of a cached repository means: a commit, or what refs/REVISION says.
Result<std::string> find_snapshot(const std::string& repository, const std::string& revision) {
  const std::string what = "read " + repository;
  std::string commit = revision;
  if (!is_commit(revision)) {
    if (!is_relative(revision))
      return lite::invalid_argument(what, ": got revision \"", revision,
                                    "\", expected a branch, tag or commit; try ORG/NAME@main");
    const auto text = lite::read_text(repository + "/refs/" + revision, 4096);
    if (!text.ok())
      return not_found(what, ": the cache knows no revision ", revision,
                       "; it has the snapshots: ", list_names(names_in(repository + "/snapshots")),
                       "; try ORG/NAME@COMMIT, or download the revision first");
    commit = text->substr(0, text->find_first_of(" \r\n"));
    if (!is_commit(commit))
      return lite::corrupt(what, ": refs/", revision,
                           " does not hold a commit; remove it and download again");
  }
  const std::string snapshot = repository + "/snapshots/" + commit;
  if (!is_folder(snapshot))
    return not_found(what, ": there is no snapshot of ", commit, "; try to download the checkpoint again");
  return snapshot;
}

}  // namespace

Result<std::string> find_checkpoint(const std::string& source, const std::string& hub_cache) {
  std::string folder = source;
  while (folder.size() > 1 && folder.ends_with('/')) folder.pop_back();
  std::error_code error;
  if (fs::exists(folder, error)) {
    const bool cached = is_folder(folder + "/snapshots") && is_folder(folder + "/refs") &&
                        !fs::exists(folder + "/config.json", error);
    return cached ? find_snapshot(folder, "main") : Result<std::string>(folder);
  }
  const size_t at = source.find('@'), slash = source.find('/');
  const std::string name = source.substr(0, at);
  const bool is_name = is_relative(name) && slash < at && name.find('/', slash + 1) == std::string::npos &&
                       slash + 1 < name.size();
  if (!is_name)
    return not_found("read ", source,
                     ": there is no such folder; try to download the checkpoint first and give its folder");
  if (hub_cache.empty())
    return not_found("read ", source,
                     ": there is no such folder, and no Hugging Face cache to look in; give the checkpoint's "
                     "folder, or set HF_HOME");
  const std::string repository =
      hub_cache + "/models--" + name.substr(0, slash) + "--" + name.substr(slash + 1);
  if (!is_folder(repository))
    return not_found("read ", source, ": there is no such folder, and it is not in the Hugging Face cache ",
                     hub_cache, "; try: hf download ", name);
  return find_snapshot(repository, at == std::string::npos ? "main" : source.substr(at + 1));
}

}  // namespace dsv3
