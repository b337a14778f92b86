// convert/checkpoint: model.safetensors.index.json beside two shards, a.safetensors with tensors "x" and "y" and
// b.safetensors with "z". No index makes it look outside the folder.
#include "convert/checkpoint.h"

#include <filesystem>

#include "tests/fuzz/fuzz.h"

namespace {

// A folder with the shards, and beside it one that no index may reach.
std::string make_shards(const std::string& folder) {
  const auto shard = [](std::string header) {
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::string bytes(8, '\0');
    bytes[0] = char(header.size());
    return bytes + header;
  };
  std::filesystem::create_directory(folder + "/in");
  spill(folder + "/out.safetensors",
        shard(R"({"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})"));
  spill(folder + "/in/a.safetensors", shard(R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                            R"("y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})") +
                                          "abc");
  spill(folder + "/in/b.safetensors",
        shard(R"({"z": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})") + "abcd");
  return folder + "/in";
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const TempDir memory(fuzz::kMemory);
  static const std::string folder = make_shards(memory.path());
  spill(folder + "/model.safetensors.index.json", fuzz::text_of(data, size));
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
