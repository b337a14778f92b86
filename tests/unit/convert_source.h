// A small checkpoint in memory, to be written whole, in shards, or broken.
#pragma once

#include <doctest/doctest.h>
#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "convert/convert.h"
#include "ggml-lite/file.h"
#include "ggml-lite/pack.h"
#include "model/tensors.h"
#include "tests/unit/advice.h"
#include "tests/unit/safetensors_writer.h"
#include "tests/unit/temp_dir.h"

namespace convert_test {

using namespace dsv3;
using lite::Code;
using lite::DType;
using lite::PackFile;

// A small checkpoint of every kind of tensor, to be broken.
struct Source {
  Json config;
  RawTensors tensors;
  std::map<std::string, std::string> files;

  explicit Source(bool f8 = true, int64_t hidden = 160, int64_t intermediate = 200) {
    config = *Json::parse(slurp(DSV3_SOURCE_DIR "/tests/golden/cases/ds3-mtp/config.json"), "config.json");
    for (const auto& [key, value] : std::map<std::string, int64_t>{{"hidden_size", hidden},
                                                                   {"intermediate_size", intermediate},
                                                                   {"moe_intermediate_size", 40},
                                                                   {"num_hidden_layers", 2},
                                                                   {"num_nextn_predict_layers", 1},
                                                                   {"first_k_dense_replace", 1},
                                                                   {"vocab_size", 50},
                                                                   {"n_routed_experts", 4},
                                                                   {"num_experts_per_tok", 2},
                                                                   {"n_group", 2},
                                                                   {"topk_group", 1},
                                                                   {"n_shared_experts", 1},
                                                                   {"num_attention_heads", 2}})
      config.set(key, value);
    fill(f8);
    tensors[kMtpEmbed] = tensors["model.embed_tokens.weight"];
    tensors[kMtpHead] = tensors["lm_head.weight"];
  }
  explicit Source(Json of) : config(std::move(of)) { fill(false); }

  // Every tensor that the configuration asks for, with random values.
  void fill(bool f8) {
    auto parsed = Config::parse(config);
    REQUIRE_MESSAGE(parsed.ok(), parsed.status().message());
    std::mt19937 random(99);
    for (const TensorInfo& info : tensor_table(*parsed)) {
      int64_t n = 1;
      for (const int64_t d : info.shape) n *= d;
      std::vector<float> values(static_cast<size_t>(n));
      for (size_t i = 0; i < values.size(); ++i)  // of another size here and there, so that scales differ
        values[i] = float(int(random() % 2001) - 1000) / float(200 + i / 5000 % 17 * 30);
      if (info.matrix && f8) {
        const std::vector<int64_t> grid = {lite::ceil_div(info.shape[0], 128),
                                           lite::ceil_div(info.shape[1], 128)};
        std::string codes(size_t(n), '\0'), scales(size_t(grid[0] * grid[1] * 4), '\0');
        lite::quantize_f8(values.data(), info.shape[0], info.shape[1],
                          reinterpret_cast<uint8_t*>(codes.data()), reinterpret_cast<float*>(scales.data()));
        tensors[info.name] = {"F8_E4M3", info.shape, codes};
        tensors[info.name + "_scale_inv"] = {"F32", grid, scales};
      } else {
        tensors[info.name] = {"F32", info.shape,
                              std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4)};
      }
    }
  }
  static constexpr const char* kMtpEmbed = "model.layers.2.embed_tokens.weight";
  static constexpr const char* kMtpHead = "model.layers.2.shared_head.head.weight";
  static constexpr const char* kMatrix = "model.layers.0.self_attn.o_proj.weight";
  static constexpr const char* kScale = "model.layers.0.self_attn.o_proj.weight_scale_inv";

  void write(const std::string& folder) const {
    std::filesystem::create_directory(folder);
    spill(folder + "/config.json", config.dump());
    spill(folder + "/model.safetensors", safetensors_of(tensors));
    for (const auto& [name, text] : files) {
      std::filesystem::create_directories(lite::folder_of(folder + "/" + name));
      spill(folder + "/" + name, text);
    }
  }
  // The same, a tensor in each of three shards in turn.
  void write_sharded(const std::string& folder) const {
    write(folder);
    std::filesystem::remove(folder + "/model.safetensors");
    RawTensors shards[3];
    Json map{Json::Object()};
    size_t i = 0;
    for (const auto& [name, t] : tensors) {
      shards[i % 3][name] = t;
      map.set(name, std::to_string(i % 3) + ".safetensors");
      ++i;
    }
    for (size_t s = 0; s < 3; ++s)
      spill(folder + "/" + std::to_string(s) + ".safetensors", safetensors_of(shards[s]));
    spill(folder + "/model.safetensors.index.json", Json(Json::Object{{"weight_map", map}}).dump());
  }
};

// It failed with this code, and its message holds every part.
inline void says(const Status& status, Code code, std::initializer_list<std::string> parts) {
  CHECK_MESSAGE(status.code() == code, status.message());
  for (const std::string& part : parts)
    CHECK_MESSAGE(status.message().find(part) != std::string::npos, status.message());
}

// Converts a broken checkpoint and finds every part of the message, and no trace of a file.
inline void refused(const Source& source, Code code, std::initializer_list<std::string> parts,
                    std::optional<DType> dtype = {}) {
  TempDir dir;
  source.write(dir / "src");
  const auto summary = convert({dir / "src", dir / "m.dsv3", dtype, false});
  says(summary.status(), code, parts);
  CHECK_MESSAGE(has_advice(summary.status().message()), summary.status().message());
  CHECK(dir.names() == std::vector<std::string>{"src"});
}

struct Notes {
  std::vector<std::string> texts;
  ConvertCallbacks callbacks() {
    return {[this](const std::string& text) { texts.push_back(text); }, {}};
  }
  bool has(const std::string& part) const {
    return std::any_of(texts.begin(), texts.end(),
                       [&](const std::string& t) { return t.find(part) != std::string::npos; });
  }
};

template <class T>
void put(std::string* bytes, size_t index, T value) {
  std::memcpy(bytes->data() + index * sizeof value, &value, sizeof value);
}

}  // namespace convert_test
