// What the tests of the packed file write and break.
#pragma once

#include <map>
#include <random>
#include <string>
#include <vector>

#include "ggml-lite/pack.h"
#include "ggml-lite/pack_format.h"

namespace pack_test {

using namespace lite;

using Bytes = std::vector<std::byte>;

inline Bytes random_bytes(std::mt19937_64& random, int64_t n) {
  Bytes out(static_cast<size_t>(n));
  for (std::byte& b : out) b = std::byte(random());
  return out;
}

inline PackEntry entry(const std::string& name, DType dtype, std::vector<int64_t> shape) {
  PackEntry e;
  e.name = name;
  e.dtype = dtype;
  e.shape = std::move(shape);
  return e;
}

inline PackEntry scaled(const std::string& name, std::vector<int64_t> shape, DType scale_dtype = DType::F32,
                        int64_t block = 128) {
  PackEntry e = entry(name, DType::F8_E4M3, std::move(shape));
  e.scaled = true;
  e.scale_dtype = scale_dtype;
  e.block_rows = e.block_cols = block;
  return e;
}

// What a test wants in a file, with the bytes of every tensor by name.
struct Content {
  Json json{Json::Object()};
  std::vector<PackSection> sections;
  std::vector<PackExtent> extents;
  std::vector<PackAlias> aliases;
  std::map<std::string, std::pair<Bytes, Bytes>> bytes;

  void add(std::vector<PackEntry> tensors, std::mt19937_64& random, int64_t stride = 0) {
    for (const PackEntry& e : tensors)
      bytes[e.name] = {random_bytes(random, e.data_bytes()), random_bytes(random, e.scale_bytes())};
    extents.push_back({std::move(tensors), stride});
  }
  Status write(const std::string& path, const PackOptions& options = {}) const {
    LITE_ASSIGN(PackWriter writer, PackWriter::create(path, json, sections, extents, aliases, options));
    for (const PackExtent& extent : extents)
      for (const PackEntry& e : extent.tensors) {
        const auto& [data, scales] = bytes.at(e.name);
        LITE_TRY(writer.write(data));
        LITE_TRY(writer.write(scales));
      }
    return writer.finish();
  }
};

// Two plain tensors, one of them ragged FP8, an expert's group, an alias, sections.
inline Content sample() {
  std::mt19937_64 random(1);
  Content c;
  c.json.set("config", Json("x"));
  c.sections = {{"tokenizer.json", std::string(100, 't')}, {"config.json", "{}"}, {"empty", ""}};
  c.add({scaled("layers.0.w", {200, 130})}, random);
  c.add({entry("norm", DType::F32, {3})}, random);
  c.add({scaled("layers.1.e.gate", {130, 64}), scaled("layers.1.e.up", {130, 64})}, random, 8 * pack::kPage);
  c.aliases = {{"z.copy", "norm"}};
  return c;
}

}  // namespace pack_test
