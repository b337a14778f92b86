// The tensor table that follows from a configuration.
#include <map>
#include <set>

#include "tests/unit/config_samples.h"

using namespace config_test;

namespace {

// Names and shapes in the headers of a checkpoint's safetensors files.
std::map<std::string, std::vector<int64_t>> tensors_in(const fs::path& folder) {
  std::map<std::string, std::vector<int64_t>> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("model") || entry.path().extension() != ".safetensors") continue;
    std::ifstream in(entry.path(), std::ios::binary);
    uint64_t size = 0;
    in.read(reinterpret_cast<char*>(&size), 8);
    std::string header(size, '\0');
    in.read(header.data(), std::streamsize(size));
    const Json tensors = json_of(header);
    for (const auto& [tensor, about] : *tensors.object()) {
      if (tensor == "__metadata__") continue;
      CHECK(!out.contains(tensor));
      for (const Json& n : *about.find("shape")->array()) out[tensor].push_back(*n.integer());
    }
  }
  return out;
}

}  // namespace

TEST_CASE("tensors: names and shapes are those of every checkpoint we have") {
  for (const fs::path& folder : checkpoints()) {
    CAPTURE(folder.filename().string());
    const auto config = Config::parse(json_file(folder / "config.json"));
    if (!config.ok()) continue;  // the first test says so
    std::map<std::string, std::vector<int64_t>> files = tensors_in(folder);
    REQUIRE(!files.empty());
    for (const TensorInfo& t : tensor_table(*config)) {
      std::vector<std::string> names = t.also;
      names.insert(names.begin(), t.name);
      int found = 0;
      for (const std::string& name : names) {
        const auto at = files.find(name);
        if (at == files.end()) continue;
        ++found;
        CHECK_MESSAGE(at->second == t.shape, name);
        files.erase(at);
        std::string stem = name;
        if (stem.ends_with(".weight")) stem += "_scale_inv";
        const auto scale = files.find(stem);
        if (scale == files.end()) continue;
        CHECK_MESSAGE(t.matrix, name);
        CHECK(scale->second ==
              std::vector<int64_t>{lite::ceil_div(t.shape[0], 128), lite::ceil_div(t.shape[1], 128)});
        files.erase(scale);
      }
      const bool whole_experts = t.role == Role::RoutedExperts;  // may be stacked: transformers 5
      CHECK_MESSAGE((found == 1 || (found == 0 && (t.optional || whole_experts))), t.name);
    }
    for (const auto& file : files)
      CHECK_MESSAGE(file.first.find(".experts.") != std::string::npos, file.first << " is in no table");
  }
}

namespace {

int64_t elements(const TensorInfo& t) {
  return t.shape[0] * (t.shape.size() == 2 ? t.shape[1] : 1);
}

}  // namespace

TEST_CASE("tensors: parameter counts of the released models") {
  const std::pair<Json, double> models[] = {{v2_lite(), 15.706},
                                            {kimi_k2(), 1026.408},
                                            {moonlight(), 15.960},
                                            {qwen3_30b(), 30.532},
                                            {mixtral(), 46.703}};
  for (const auto& [json, billions] : models) {
    double sum = 0;
    for (const TensorInfo& t : tensor_table(parsed(json))) sum += double(elements(t));
    CHECK(sum / 1e9 == doctest::Approx(billions).epsilon(5e-5));
  }
}

TEST_CASE("tensors: DeepSeek-V3 has 90,427 and its MTP layer 1,564, scales counted") {
  const std::vector<TensorInfo> table = tensor_table(parsed(deepseek_v3()));
  int64_t main = 0, mtp = 0, experts = 0, parameters = 0;
  std::set<std::string> names;
  for (const TensorInfo& t : table) {
    CHECK(names.insert(t.name).second);
    int64_t& count = t.layer == 61 ? mtp : main;
    count += t.matrix ? 2 : 1;
    experts += t.layer < 61 && t.role == Role::RoutedExperts ? 2 : 0;
    if (t.layer < 61) parameters += elements(t);
  }
  CHECK(main == 90427);
  CHECK(mtp == 1564);
  CHECK(experts == 89088);
  CHECK(double(parameters) == doctest::Approx(671.026e9).epsilon(1e-6));
  const auto at = [&](const std::string& name) {
    for (const TensorInfo& t : table)
      if (t.name == name) return t;
    FAIL(name);
    return TensorInfo();
  };
  using Shape = std::vector<int64_t>;
  CHECK(at("model.layers.0.self_attn.q_b_proj.weight").shape == Shape{24576, 1536});
  CHECK(at("model.layers.0.self_attn.kv_a_proj_with_mqa.weight").shape == Shape{576, 7168});
  CHECK(at("model.layers.60.self_attn.kv_b_proj.weight").shape == Shape{32768, 512});
  CHECK(at("model.layers.2.mlp.down_proj.weight").shape == Shape{7168, 18432});
  CHECK(at("model.layers.3.mlp.experts.255.down_proj.weight").shape == Shape{7168, 2048});
  CHECK(at("model.layers.3.mlp.experts.255.down_proj.weight").expert == 255);
  CHECK(at("model.layers.3.mlp.gate.e_score_correction_bias").shape == Shape{256});
  CHECK_FALSE(at("model.layers.3.mlp.gate.e_score_correction_bias").optional);
  CHECK(at("model.layers.61.eh_proj.weight").shape == Shape{7168, 14336});
  CHECK_FALSE(at("model.layers.61.eh_proj.weight").matrix);
  CHECK(at("model.layers.61.embed_tokens.weight").same_as == "model.embed_tokens.weight");
  CHECK(at("model.layers.61.shared_head.head.weight").same_as == "lm_head.weight");
  CHECK(at("model.layers.61.shared_head.norm.weight").same_as.empty());
  CHECK_FALSE(at("lm_head.weight").optional);
}

TEST_CASE("tensors: tied embeddings, biases") {
  int tied = 0, biases = 0;
  for (const TensorInfo& t :
       tensor_table(parsed(patched(small(), R"({"tie_word_embeddings": true, "attention_bias": true})")))) {
    if (t.name == "lm_head.weight") tied += t.optional && t.same_as == "model.embed_tokens.weight";
    biases += t.name.ends_with(".bias");
  }
  CHECK(tied == 1);
  CHECK(biases == 5 * 3);  // q_a, kv_a and o of 5 layers
}
