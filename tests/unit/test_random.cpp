// Models with random weights: what the values are, that every part matters, and the unhappy paths.
#include <doctest/doctest.h>
#include <omp.h>
#include <cmath>
#include <cstring>
#include <set>

#include "convert/random.h"
#include "ggml-lite/pack.h"
#include "model/model.h"
#include "tests/unit/temp_dir.h"

using namespace dsv3;
using lite::DType;
using lite::PackFile;

namespace {

const std::string kCases = DSV3_SOURCE_DIR "/tests/golden/cases/";

RandomOptions of_case(const TempDir& dir, const std::string& name, DType dtype = DType::BF16) {
  RandomOptions options;
  options.config = kCases + name + "/config.json";
  options.out = dir / "m.dsv3";
  options.dtype = dtype;
  options.force = true;
  return options;
}

std::string bytes_of(const RandomOptions& options) {
  const auto summary = write_random_model(options);
  REQUIRE_MESSAGE(summary.ok(), summary.status().message());
  return slurp(options.out);
}

std::vector<float> values_of(const PackFile& file, const std::string& name) {
  const PackFile::Item* item = file.find(name);
  REQUIRE_MESSAGE(item, name);
  const int64_t cols = item->entry.shape.back(), rows = item->tensor.elements() / cols;
  std::vector<float> out(size_t(rows * cols));
  lite::decode(item->entry.dtype, item->tensor.data, out.data(), rows * cols);
  for (int64_t i = 0; item->entry.scaled && i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const float* scales = reinterpret_cast<const float*>(item->tensor.scale.data);
      out[size_t(i * cols + j)] *= scales[i / 128 * lite::ceil_div(cols, 128) + j / 128];
    }
  return out;
}

struct Moments {
  double mean = 0, deviation = 0;
};
Moments moments(const std::vector<float>& values) {
  Moments m;
  for (const float v : values) m.mean += v / double(values.size());
  for (const float v : values) m.deviation += std::pow(v - m.mean, 2) / double(values.size());
  m.deviation = std::sqrt(m.deviation);
  return m;
}

}  // namespace

TEST_CASE("random: every architecture opens, and every value is finite") {
  const TempDir dir;
  for (const auto& at : std::filesystem::directory_iterator(kCases)) {
    if (!std::filesystem::exists(at.path() / "config.json")) continue;
    if (at.path().filename() == "load-balancing") continue;  // logits only
    for (const DType dtype : {DType::BF16, DType::F8_E4M3}) {
      const RandomOptions options = of_case(dir, at.path().filename().string(), dtype);
      CAPTURE(options.config);
      const auto summary = write_random_model(options);
      REQUIRE_MESSAGE(summary.ok(), summary.status().message());
      const auto model = Model::open(options.out);
      REQUIRE_MESSAGE(model.ok(), model.status().message());
      CHECK((*model)->file().verify().ok());
      for (const TensorInfo& info : (*model)->table()) {
        const PackFile::Item* item = (*model)->file().find(info.name);
        if (!item) {
          CHECK(info.optional);
          continue;
        }
        const bool bias = info.name.ends_with(".e_score_correction_bias");
        CHECK(item->entry.dtype == (info.matrix ? dtype : bias ? DType::F32 : DType::BF16));
        for (const float v : values_of((*model)->file(), info.name)) {
          if (!std::isfinite(v)) FAIL(info.name, " has ", v);
        }
      }
    }
  }
}

TEST_CASE(
    "random: norms lie around 1, biases on both sides of 0, matrices keep the size of what they multiply") {
  const TempDir dir;
  for (const DType dtype : {DType::F32, DType::F16, DType::F8_E4M3}) {
    bytes_of(of_case(dir, "ds3-f32", dtype));
    const auto file = PackFile::open(dir / "m.dsv3");
    REQUIRE(file.ok());
    for (const char* name : {"model.layers.0.self_attn.q_b_proj.weight", "lm_head.weight"}) {
      const int64_t in = file->find(name)->entry.shape[1];
      const Moments m = moments(values_of(*file, name));
      CHECK(std::fabs(m.mean) < 0.1 / std::sqrt(double(in)));
      CHECK(m.deviation * std::sqrt(double(in)) == doctest::Approx(1).epsilon(0.1));
    }
    const Moments norm = moments(values_of(*file, "model.norm.weight"));
    CHECK(norm.mean == doctest::Approx(1).epsilon(0.15));
    CHECK(norm.deviation == doctest::Approx(0.25).epsilon(0.4));
    int below = 0, above = 0;
    for (int layer = 0; layer < 8; ++layer) {
      const std::string bias = lite::str("model.layers.", layer, ".mlp.gate.e_score_correction_bias");
      if (file->find(bias))
        for (const float v : values_of(*file, bias)) ++(v < 0 ? below : above);
    }
    CHECK(below > 0);
    CHECK(above > 0);
  }
}

TEST_CASE("random: FP8 has every finite code, its largest in most blocks, and scales that differ") {
  const TempDir dir;
  RandomOptions options = of_case(dir, "", DType::F8_E4M3);
  options.config = DSV3_SOURCE_DIR "/bench/configs/deepseek-v2-lite.json";
  spill(dir / "config.json", [&] {  // its geometry with few experts
    Json json = *Json::parse(slurp(options.config), "config.json");
    for (const char* key : {"n_routed_experts", "num_experts_per_tok"}) json.set(key, 2);
    json.set("vocab_size", 1000);
    return json.dump();
  }());
  options.config = dir / "config.json";
  options.layers = 2;
  options.f8_head = true;
  bytes_of(options);
  const auto file = PackFile::open(options.out);
  REQUIRE(file.ok());
  CHECK(!file->find("model.layers.2.input_layernorm.weight"));
  CHECK(file->find("model.embed_tokens.weight")->entry.dtype == DType::BF16);
  CHECK(file->find("model.layers.1.mlp.gate.weight")->entry.dtype == DType::BF16);
  for (const char* name : {"model.layers.1.mlp.experts.1.down_proj.weight", "lm_head.weight"}) {
    const PackFile::Item* item = file->find(name);
    REQUIRE(item->entry.dtype == DType::F8_E4M3);
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(item->tensor.data);
    const std::set<uint8_t> found(codes, codes + item->tensor.elements());
    CHECK(found.size() == 254);
    CHECK(!found.contains(0x7F));
    CHECK(!found.contains(0xFF));
    const float* scales = reinterpret_cast<const float*>(item->tensor.scale.data);
    const std::set<float> different(scales, scales + item->entry.scale_bytes() / 4);
    CHECK(different.size() > 50);
    CHECK(*different.rbegin() / *different.begin() < 1.7);
  }
}

TEST_CASE("random: bytes depend on the seed alone, and not on threads or on the number of layers") {
  const TempDir dir;
  RandomOptions options = of_case(dir, "ds3-mtp", DType::F8_E4M3);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::string once = bytes_of(options);
  omp_set_num_threads(3);
  CHECK((bytes_of(options) == once));
  omp_set_num_threads(threads);
  const auto whole = PackFile::open(options.out);
  REQUIRE(whole.ok());
  CHECK(whole->json().find("config")->find("num_nextn_predict_layers")->dump() == "1");

  options.out = dir / "first.dsv3";
  options.layers = 1;
  bytes_of(options);
  const auto first = PackFile::open(options.out);
  REQUIRE(first.ok());
  for (const PackFile::Item& item : first->items()) {
    const PackFile::Item* same = whole->find(item.entry.name);
    REQUIRE(same);
    CHECK(std::memcmp(item.tensor.data, same->tensor.data, size_t(item.entry.data_bytes())) == 0);
  }
  CHECK(first->json().find("config")->find("num_nextn_predict_layers")->dump() == "0");

  options = of_case(dir, "ds3-mtp", DType::F8_E4M3);
  options.seed = 2;
  CHECK((bytes_of(options) != once));
}

TEST_CASE("random: layer_config of dropped layers goes with them") {
  const TempDir dir;
  RandomOptions options = of_case(dir, "per-layer");
  const Json json = *Json::parse(slurp(options.config), "config.json");
  for (int64_t layers = 1; layers <= *json.find("num_hidden_layers")->integer(); ++layers) {
    options.layers = layers;
    bytes_of(options);
    const auto model = Model::open(options.out);
    REQUIRE_MESSAGE(model.ok(), model.status().message());
    CHECK((*model)->config().num_hidden_layers == layers);
  }
}

TEST_CASE("random: what cannot be made is refused, and nothing is left") {
  const TempDir dir;
  const auto refused = [&](const RandomOptions& options, const std::string& part) {
    const auto summary = write_random_model(options);
    REQUIRE(!summary.ok());
    CHECK_MESSAGE(summary.status().message().find(part) != std::string::npos, summary.status().message());
    CHECK(dir.names().empty());
  };
  RandomOptions options = of_case(dir, "qwen3-moe");
  for (const int64_t layers : {int64_t(0), int64_t(-1), int64_t(1000), INT64_MAX}) {
    options.layers = layers;
    refused(options, "layers, expected 1 to ");
  }
  options = of_case(dir, "qwen3-moe", DType::I32);
  refused(options, "stored as I32");
  options = of_case(dir, "no-such-case");
  refused(options, "No such file");
  options = of_case(dir, "mixtral-window");  // its head is its embedding
  options.f8_head = true;
  refused(options, "no output head of its own");

  options = of_case(dir, "qwen3-moe");
  ConvertCallbacks stop;
  stop.progress = [](int64_t done, int64_t) { return done == 0; };
  CHECK(write_random_model(options, stop).status().code() == lite::Code::Cancelled);
  CHECK(dir.names().empty());

  // The whole of V3 does not fit a test machine's disk, and that is said before a byte is written.
  options.config = DSV3_SOURCE_DIR "/bench/configs/deepseek-v3.json";
  options.dtype = DType::F32;
  if (std::filesystem::space(dir.path()).available < int64_t(2) << 40) refused(options, "the disk of");
}
