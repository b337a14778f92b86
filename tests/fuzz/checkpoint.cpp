// convert/checkpoint: model.safetensors.index.json beside two shards, a.safetensors with tensors "x" and "y" and
// b.safetensors with "z". No index makes it look outside the folder.
#include "convert/checkpoint.h"

#include <filesystem>
#include <fstream>

#include "tests/fuzz/fuzz.h"

namespace {

void write_file(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), std::streamsize(bytes.size()));
}

// A folder in memory with the shards, and beside it one that no index may reach.
std::string make_folder() {
  std::string pattern = "/dev/shm/dsv3-fuzz-XXXXXX";
  fuzz::require(mkdtemp(pattern.data()) != nullptr, "a folder in memory");
  static std::string remove_at_end;
  remove_at_end = pattern;
  std::atexit([] { std::filesystem::remove_all(remove_at_end); });
  const auto shard = [](std::string header) {
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::string bytes(8, '\0');
    bytes[0] = char(header.size());
    return bytes + header;
  };
  std::filesystem::create_directory(pattern + "/in");
  write_file(pattern + "/out.safetensors",
             shard(R"({"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})"));
  write_file(pattern + "/in/a.safetensors", shard(R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                                  R"("y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})") +
                                                "abc");
  write_file(pattern + "/in/b.safetensors",
             shard(R"({"z": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})") + "abcd");
  return pattern + "/in";
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string folder = make_folder();
  write_file(folder + "/model.safetensors.index.json", fuzz::text_of(data, size));
  const auto checkpoint = dsv3::Checkpoint::open(folder);
  fuzz::check(checkpoint.status());
  if (!checkpoint.ok()) return 0;
  for (const char* name : {"x", "y", "z", "w"}) {
    const auto* tensor = checkpoint->find(name);
    if (tensor) fuzz::require(tensor->file().path().starts_with(folder + "/"), "a shard lies in the folder");
  }
  fuzz::require(!checkpoint->find("w"), "nothing outside the folder is read");
  return 0;
}
