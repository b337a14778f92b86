// What config.json means, and the tensor table that follows from it.
#include <filesystem>
#include <fstream>
#include <map>
#include <numbers>
#include <set>

#include "model/config.h"
#include "model/tensors.h"
#include "tests/unit/support.h"

using namespace dsv3;
using lite::Code;
namespace fs = std::filesystem;

namespace {

Json json_of(const std::string& text) {
  auto json = Json::parse(text, "test");
  REQUIRE_MESSAGE(json.ok(), json.status().message());
  return std::move(*json);
}

Json json_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE_MESSAGE(in.good(), path);
  return json_of({std::istreambuf_iterator<char>(in), {}});
}

// `base` with the members of `patch` in place of its own.
Json patched(Json base, const std::string& patch) {
  const Json members = json_of(patch);
  for (const auto& [key, value] : *members.object()) base.set(key, value);
  return base;
}

Json without(const Json& base, const std::string& key) {
  Json out{Json::Object()};
  for (const auto& [k, v] : *base.object())
    if (k != key) out.set(k, v);
  return out;
}

Config parsed(const Json& json) {
  auto config = Config::parse(json);
  REQUIRE_MESSAGE(config.ok(), config.status().message());
  return std::move(*config);
}

// Released models, from the table of hyper-parameters in the papers and config.json files.
Json deepseek_v3() {
  return json_of(
      R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "norm_topk_prob": true, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "max_position_embeddings": 163840, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                     "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                            "activation_scheme": "dynamic"},
    "aux_loss_alpha": 0.001, "seq_aux": true, "ep_size": 1, "pretraining_tp": 1, "attention_dropout": 0.0,
    "initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}})");
}

Json v2_lite() {
  return json_of(
      R"({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400,
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2, "n_routed_experts": 64,
    "num_experts_per_tok": 6, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "norm_topk_prob": false, "scoring_func": "softmax", "topk_method": "greedy", "q_lora_rank": null,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "max_position_embeddings": 163840, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                     "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
    "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": false, "bos_token_id": 100000,
    "eos_token_id": 100001})");
}

Json kimi_k2() {
  return patched(deepseek_v3(), R"({"model_type": "kimi_k2", "vocab_size": 163840, "num_attention_heads": 64,
    "n_routed_experts": 384, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827, "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0, "rope_theta": 50000.0, "max_position_embeddings": 131072,
    "rope_scaling": {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 1.0,
                     "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}})");
}

Json moonlight() {
  return patched(
      without(without(deepseek_v3(), "rope_scaling"), "quantization_config"),
      R"({"vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264, "moe_intermediate_size": 1408,
    "num_hidden_layers": 27, "num_nextn_predict_layers": 0, "num_attention_heads": 16, "num_key_value_heads": 16,
    "n_shared_experts": 2, "n_routed_experts": 64, "num_experts_per_tok": 6, "routed_scaling_factor": 2.446, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": null, "rope_theta": 50000.0, "rms_norm_eps": 1e-05,
    "max_position_embeddings": 8192})");
}

Json qwen3_30b() {
  return json_of(
      R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936,
    "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "rope_theta": 1000000.0, "rope_scaling": null,
    "rms_norm_eps": 1e-06, "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": false,
    "use_sliding_window": false, "sliding_window": null, "max_window_layers": 48, "max_position_embeddings": 40960,
    "bos_token_id": 151643, "eos_token_id": 151645, "router_aux_loss_coef": 0.001, "output_router_logits": false})");
}

Json mixtral() {
  return json_of(
      R"({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1000000.0, "rms_norm_eps": 1e-05, "hidden_act": "silu",
    "tie_word_embeddings": false, "sliding_window": null, "max_position_embeddings": 32768, "bos_token_id": 1,
    "eos_token_id": 2, "router_aux_loss_coef": 0.02, "output_router_logits": false, "attention_dropout": 0.0})");
}

// A small model to change things of.
Json small() {
  return patched(deepseek_v3(),
                 R"({"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
    "num_hidden_layers": 4, "num_attention_heads": 2, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4, "v_head_dim": 5})");
}

bool same_layer(const LayerConfig& a, const LayerConfig& b) {
  return a.num_attention_heads == b.num_attention_heads && a.num_key_value_heads == b.num_key_value_heads &&
         a.head_dim == b.head_dim && a.moe == b.moe && a.intermediate_size == b.intermediate_size &&
         a.moe_intermediate_size == b.moe_intermediate_size && a.n_routed_experts == b.n_routed_experts &&
         a.num_experts_per_tok == b.num_experts_per_tok && a.n_shared_experts == b.n_shared_experts &&
         a.n_group == b.n_group && a.topk_group == b.topk_group;
}

// What `effective` promises: parsing it gives the same configuration, and knows all its keys.
void check_round_trip(const Config& c) {
  std::vector<std::string> unknown;
  const auto again = Config::parse(c.effective, &unknown);
  REQUIRE_MESSAGE(again.ok(), again.status().message());
  CHECK(again->effective.dump() == c.effective.dump());
  CHECK(unknown.empty());
  CHECK(again->architecture == c.architecture);
  CHECK(again->model_type == c.model_type);
  CHECK(again->rope_inv_freq(64) == c.rope_inv_freq(64));
  CHECK(again->rope_cos_sin_scale() == c.rope_cos_sin_scale());
  CHECK(again->scale_fmt == c.scale_fmt);
  CHECK(again->eos_token_id == c.eos_token_id);
  REQUIRE(again->layers.size() == c.layers.size());
  for (size_t i = 0; i < c.layers.size(); ++i) CHECK(same_layer(again->layers[i], c.layers[i]));
  const auto table = tensor_table(c), same = tensor_table(*again);
  REQUIRE(table.size() == same.size());
  for (size_t i = 0; i < table.size(); ++i)
    CHECK((table[i].name == same[i].name && table[i].shape == same[i].shape));
}

const fs::path kRoot = DSV3_SOURCE_DIR;

// Folders of checkpoints that tests have: the golden cases and the demo model.
std::vector<fs::path> checkpoints() {
  std::vector<fs::path> out = {kRoot / "examples/demo-model"};
  for (const auto& entry : fs::directory_iterator(kRoot / "tests/golden/cases"))
    if (fs::exists(entry.path() / "model.safetensors") ||
        fs::exists(entry.path() / "model.safetensors.index.json"))
      out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  REQUIRE(out.size() > 5);
  return out;
}

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

TEST_CASE("config: every checkpoint we have parses, and its effective configuration says the same") {
  for (const fs::path& folder : checkpoints()) {
    CAPTURE(folder.filename().string());
    std::vector<std::string> unknown;
    const auto config = Config::parse(json_file(folder / "config.json"), &unknown);
    REQUIRE_MESSAGE(config.ok(), config.status().message());
    for (const std::string& key : unknown) MESSAGE(folder.filename().string() << ": unknown key " << key);
    CHECK(unknown.empty());
    check_round_trip(*config);
  }
  for (const Json& json : {deepseek_v3(), v2_lite(), kimi_k2(), moonlight(), qwen3_30b(), mixtral(), small()})
    check_round_trip(parsed(json));
}

TEST_CASE("config: the released models") {
  const Config v3 = parsed(deepseek_v3());
  CHECK(v3.architecture == Architecture::DeepseekV3);
  CHECK(v3.layers.size() == 62);
  CHECK(v3.num_nextn_predict_layers == 1);
  for (int i = 0; i < 62; ++i) CHECK(v3.layers[i].moe == (i >= 3));
  CHECK(v3.layers[0].intermediate_size == 18432);
  CHECK(v3.layers[61].n_routed_experts == 256);
  CHECK(v3.layers[3].n_group == 8);
  CHECK(v3.topk_method == TopkMethod::NoauxTc);
  CHECK(v3.scoring_func == ScoringFunc::Sigmoid);
  CHECK(v3.norm_topk_prob);
  CHECK(v3.scale_fmt == ScaleFormat::F32);
  CHECK(v3.eos_token_id == std::vector<int64_t>{1});
  CHECK(v3.latent_dim() == 576);
  CHECK(v3.mla_norm_eps == 1e-6);

  const Config lite = parsed(v2_lite());
  CHECK(lite.architecture == Architecture::DeepseekV2);
  CHECK(lite.q_lora_rank == 0);
  CHECK(lite.topk_method == TopkMethod::Greedy);
  CHECK(lite.scoring_func == ScoringFunc::Softmax);
  CHECK_FALSE(lite.norm_topk_prob);

  const Config k2 = parsed(kimi_k2());
  CHECK(k2.architecture == Architecture::DeepseekV3);
  CHECK(k2.model_type == "kimi_k2");
  const Config moon = parsed(moonlight());
  CHECK(moon.rms_norm_eps == 1e-5);
  CHECK(moon.mla_norm_eps == 1e-6);
  CHECK_FALSE(moon.has_rope_scaling);

  const Config qwen = parsed(qwen3_30b());
  CHECK(qwen.architecture == Architecture::Qwen3Moe);
  CHECK(qwen.layers.size() == 48);
  CHECK(qwen.layers[0].moe);
  CHECK(qwen.layers[0].head_dim == 128);  // of its own: hidden_size / num_attention_heads is 64
  CHECK(qwen.cached_values(qwen.layers[0]) * 48 == 49152);
  CHECK(qwen.norm_topk_prob);
  CHECK_FALSE(qwen.rope_interleave);
  const Config mix = parsed(mixtral());
  CHECK(mix.layers[0].head_dim == 128);
  CHECK(mix.layers[0].moe_intermediate_size == 14336);
  CHECK(mix.norm_topk_prob);  // no flag: always
  CHECK(mix.sliding_window == 0);
  CHECK(parsed(patched(mixtral(), R"({"sliding_window": 4096})")).sliding_window == 4096);
  CHECK(parsed(patched(qwen3_30b(), R"({"sliding_window": 4096})")).sliding_window ==
        0);  // not without the flag
  CHECK_FALSE(parsed(without(qwen3_30b(), "norm_topk_prob")).norm_topk_prob);
  const Config some =
      parsed(patched(qwen3_30b(), R"({"mlp_only_layers": [1, 47], "decoder_sparse_step": 2})"));
  for (int i = 0; i < 48; ++i) CHECK(some.layers[i].moe == (i % 2 == 1 && i != 1 && i != 47));
}

TEST_CASE("config: softmax scales and YaRN's frequencies, goldens") {
  const auto scale = [](const Json& json) {
    const Config c = parsed(json);
    return c.softmax_scale(c.layers[0]);
  };
  CHECK(scale(deepseek_v3()) == doctest::Approx(0.135233779).epsilon(1e-8));
  CHECK(scale(v2_lite()) == doctest::Approx(0.114721387).epsilon(1e-8));
  CHECK(scale(kimi_k2()) == doctest::Approx(0.130860800).epsilon(1e-8));
  CHECK(scale(moonlight()) == doctest::Approx(0.0721687836).epsilon(1e-8));
  CHECK(scale(qwen3_30b()) == doctest::Approx(0.0883883476).epsilon(1e-8));
  CHECK(scale(mixtral()) == doctest::Approx(0.0883883476).epsilon(1e-8));
  const std::string yarn64 =
      R"({"rope_scaling": {"type": "yarn", "factor": 64, "original_max_position_embeddings": 4096,
    "beta_fast": 1, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1}})";
  CHECK(scale(patched(kimi_k2(), yarn64)) == doctest::Approx(0.144679626).epsilon(1e-8));

  const double expected[] = {1,
                             .749894209,
                             .562341325,
                             .421696503,
                             .316227766,
                             .237137371,
                             .177827941,
                             .133352143,
                             .1,
                             .0749894209,
                             .0562341325,
                             .0390069266,
                             .0268793601,
                             .0183781462,
                             .0124479559,
                             .00833450895,
                             .0055,
                             .00356199749,
                             .0022493653,
                             .00137051364,
                             7.90569415e-4,
                             4.14990398e-4,
                             1.77827941e-4,
                             3.33380358e-5,
                             2.5e-5,
                             1.87473552e-5,
                             1.40585331e-5,
                             1.05424126e-5,
                             7.90569415e-6,
                             5.92843426e-6,
                             4.44569853e-6,
                             3.33380358e-6};
  for (const Json& json : {deepseek_v3(), v2_lite()}) {
    const std::vector<float> inv = parsed(json).rope_inv_freq(64);
    REQUIRE(inv.size() == 32);
    for (int i = 0; i < 32; ++i) CHECK(double(inv[i]) == doctest::Approx(expected[i]).epsilon(1e-7));
    CHECK(parsed(json).rope_cos_sin_scale() == 1);
  }
  const std::vector<float> k2 = parsed(kimi_k2()).rope_inv_freq(64);
  CHECK(double(k2[19]) == doctest::Approx(.00162175991).epsilon(1e-7));
  CHECK(double(k2[20]) == doctest::Approx(3.61404677e-5).epsilon(1e-7));
  CHECK(double(k2[31]) == doctest::Approx(8.76441291e-7).epsilon(1e-7));
  const std::vector<float> plain = parsed(moonlight()).rope_inv_freq(64);
  for (int i = 0; i < 32; ++i) CHECK(plain[i] == float(std::pow(50000.0, -2.0 * i / 64)));
}

namespace {

// YaRN's frequencies; `clamp` is the largest index that `high` may have.
std::vector<double> yarn(double theta, int64_t dim, double factor, double original, double fast, double slow,
                         double clamp) {
  const auto turns = [&](double rotations) {
    return double(dim) * std::log(original / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  const double low = std::max(std::floor(turns(fast)), 0.0);
  double high = std::min(std::ceil(turns(slow)), clamp);
  if (low == high) high += 0.001;
  std::vector<double> out;
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double base = std::pow(theta, -2.0 * double(i) / double(dim));
    const double ramp = std::min(1.0, std::max(0.0, (double(i) - low) / (high - low)));
    out.push_back(base / factor * ramp + base * (1 - ramp));
  }
  return out;
}

}  // namespace

TEST_CASE("config: YaRN's ramp ends at dim - 1, not at dim / 2 - 1; an empty ramp has a width") {
  const Json base =
      patched(small(), R"({"qk_rope_head_dim": 16, "rope_theta": 500, "rope_scaling": {"type": "yarn",
    "factor": 10, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}})");
  const std::vector<float> got = parsed(base).rope_inv_freq(16);
  const auto right = yarn(500, 16, 10, 4096, 32, 1, 15), wrong = yarn(500, 16, 10, 4096, 32, 1, 7);
  for (int i = 0; i < 8; ++i) CHECK(double(got[i]) == doctest::Approx(right[i]).epsilon(1e-6));
  CHECK(std::fabs(right[7] / wrong[7] - 1) > 0.01);  // else this would show nothing

  // Both ends at 0: the first frequency is left alone, all others are divided.
  const Json empty =
      patched(base, R"({"rope_scaling": {"type": "yarn", "factor": 10, "original_max_position_embeddings": 6,
    "beta_fast": 32, "beta_slow": 1}})");
  const std::vector<float> inv = parsed(empty).rope_inv_freq(16);
  CHECK(inv[0] == 1);
  for (int i = 1; i < 8; ++i)
    CHECK(double(inv[i]) == doctest::Approx(std::pow(500.0, -i / 8.0) / 10).epsilon(1e-6));
  // Without the mscale pair cosine and sine take the factor; the softmax scale does not.
  CHECK(parsed(base).rope_cos_sin_scale() == doctest::Approx(0.1 * std::log(10.0) + 1));
  CHECK(parsed(base).softmax_scale(parsed(base).layers[0]) == doctest::Approx(1 / std::sqrt(22.0)));
  // mscale_all_dim alone decides about the latter.
  const Config all_dim = parsed(patched(base, R"({"rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0,
    "original_max_position_embeddings": 4096, "mscale_all_dim": 1}})"));
  CHECK(all_dim.softmax_scale(all_dim.layers[0]) == doctest::Approx(1.87385421 / std::sqrt(22.0)));
}

TEST_CASE("config: rope_parameters says what rope_scaling and rope_theta say") {
  const Config old = parsed(deepseek_v3());
  Json json = without(without(deepseek_v3(), "rope_scaling"), "rope_theta");
  const Config fresh =
      parsed(patched(json, R"({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0,
    "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}})"));
  CHECK(fresh.rope_inv_freq(64) == old.rope_inv_freq(64));
  CHECK(fresh.softmax_scale(fresh.layers[0]) == old.softmax_scale(old.layers[0]));
  check_round_trip(fresh);
  const Config plain =
      parsed(patched(json, R"({"rope_parameters": {"rope_type": "default", "rope_theta": 70000}})"));
  CHECK(plain.rope_theta == 70000);
  CHECK_FALSE(plain.has_rope_scaling);
  check_round_trip(plain);
  const Config null = parsed(patched(json, R"({"rope_scaling": null, "rope_theta": 5000})"));
  CHECK(null.rope_theta == 5000);
  CHECK_FALSE(null.has_rope_scaling);
}

TEST_CASE("config: what is absent has the architecture's default") {
  const Config c =
      parsed(patched(without(without(without(small(), "topk_method"), "scoring_func"), "norm_topk_prob"),
                     R"({"eos_token_id": [3, 4], "bos_token_id": null, "q_lora_rank": 0})"));
  CHECK(c.topk_method == TopkMethod::NoauxTc);
  CHECK(c.scoring_func == ScoringFunc::Sigmoid);
  CHECK(c.norm_topk_prob);
  CHECK(c.q_lora_rank == 0);
  CHECK(c.bos_token_id.empty());
  CHECK(c.eos_token_id == std::vector<int64_t>{3, 4});
  const Config v2 =
      parsed(without(without(without(v2_lite(), "topk_method"), "scoring_func"), "norm_topk_prob"));
  CHECK(v2.topk_method == TopkMethod::Greedy);
  CHECK(v2.scoring_func == ScoringFunc::Softmax);
  CHECK_FALSE(v2.norm_topk_prob);
  const Json bare = without(without(small(), "first_k_dense_replace"), "routed_scaling_factor");
  CHECK_FALSE(parsed(bare).layers[2].moe);
  CHECK(parsed(bare).layers[3].moe);
  CHECK(parsed(bare).routed_scaling_factor == 2.5);
  const Json bare_v2 = without(without(v2_lite(), "first_k_dense_replace"), "routed_scaling_factor");
  CHECK(parsed(bare_v2).layers[0].moe);
  CHECK(parsed(bare_v2).routed_scaling_factor == 1);
  CHECK(parsed(patched(small(),
                       R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128],
    "scale_fmt": "ue8m0"}})"))
            .scale_fmt == ScaleFormat::Ue8m0);
  // A layer is MoE only every moe_layer_freq layers.
  const Config sparse = parsed(patched(small(), R"({"moe_layer_freq": 2, "first_k_dense_replace": 0})"));
  for (int i = 0; i < 5; ++i) CHECK(sparse.layers[i].moe == (i % 2 == 0));
  // Without routed experts every layer is dense.
  const Config dense = parsed(patched(small(), R"({"n_routed_experts": null, "n_shared_experts": null})"));
  for (const LayerConfig& l : dense.layers) CHECK_FALSE(l.moe);
  for (const Config& config : {c, v2, sparse, dense}) check_round_trip(config);
}

TEST_CASE("config: a missing key is named") {
  for (const char* key :
       {"model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group",
        "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings"}) {
    CAPTURE(key);
    for (const Json& json :
         {without(small(), key), patched(small(), std::string("{\"") + key + "\": null}")}) {
      const auto c = Config::parse(json);
      CHECK(c.status().code() == Code::InvalidArgument);
      CHECK_MESSAGE(c.status().message().find(std::string("\"") + key + "\" is missing") != std::string::npos,
                    c.status().message());
    }
  }
}

TEST_CASE("config: what cannot be, or is not known, is refused and named") {
  const Code invalid = Code::InvalidArgument, unsupported = Code::Unsupported;
  const struct {
    const char* patch;
    Code code;
    const char* message;
  } cases[] = {
      // Sizes.
      {R"({"hidden_size": "16"})", invalid, "\"hidden_size\": got \"16\""},
      {R"({"hidden_size": 16.0})", invalid, "\"hidden_size\": got 16.0"},
      {R"({"hidden_size": 0})", invalid, "\"hidden_size\": got 0"},
      {R"({"hidden_size": -1})", invalid, "\"hidden_size\": got -1"},
      {R"({"hidden_size": true})", invalid, "\"hidden_size\": got true"},
      {R"({"hidden_size": [16]})", invalid, "\"hidden_size\": got [16]"},
      {R"({"hidden_size": 9223372036854775807})", invalid, "\"hidden_size\""},
      {R"({"vocab_size": 16777217})", invalid, "\"vocab_size\""},
      {R"({"num_hidden_layers": 16777216})", invalid, "\"num_hidden_layers\""},
      {R"({"n_routed_experts": -8})", invalid, "\"n_routed_experts\""},
      {R"({"q_lora_rank": -1})", invalid, "\"q_lora_rank\""},
      {R"({"kv_lora_rank": 1e3})", invalid, "\"kv_lora_rank\""},
      {R"({"moe_layer_freq": 0})", invalid, "\"moe_layer_freq\""},
      {R"({"first_k_dense_replace": -1})", invalid, "\"first_k_dense_replace\""},
      {R"({"qk_rope_head_dim": 5})", invalid, "\"qk_rope_head_dim\": got 5"},
      {R"({"num_nextn_predict_layers": 2})", unsupported, "\"num_nextn_predict_layers\": got 2"},
      // Numbers and booleans.
      {R"({"rms_norm_eps": -1e-6})", invalid, "\"rms_norm_eps\""},
      {R"({"rms_norm_eps": "1e-6"})", invalid, "\"rms_norm_eps\""},
      {R"({"rope_theta": 0})", invalid, "\"rope_theta\""},
      {R"({"rope_theta": 1})", invalid, "\"rope_theta\""},
      {R"({"rope_theta": -10000})", invalid, "\"rope_theta\""},
      {R"({"routed_scaling_factor": 0})", invalid, "\"routed_scaling_factor\""},
      {R"({"routed_scaling_factor": 1e300})", invalid, "\"routed_scaling_factor\""},
      {R"({"norm_topk_prob": 1})", invalid, "\"norm_topk_prob\""},
      {R"({"attention_bias": "false"})", invalid, "\"attention_bias\""},
      {R"({"tie_word_embeddings": 0})", invalid, "\"tie_word_embeddings\""},
      {R"({"eos_token_id": "</s>"})", invalid, "\"eos_token_id\""},
      {R"({"eos_token_id": [1, "x"]})", invalid, "\"eos_token_id\""},
      {R"({"eos_token_id": -2})", invalid, "\"eos_token_id\""},
      {R"({"eos_token_id": 4294967296})", invalid, "\"eos_token_id\""},
      // Choices.
      {R"({"model_type": "llama"})", unsupported, "\"model_type\": got \"llama\""},
      {R"({"model_type": "deepseek_v32"})", unsupported, "\"model_type\""},
      {R"({"architectures": ["DeepseekV2ForCausalLM"]})", unsupported, "\"architectures\""},
      {R"({"architectures": "DeepseekV3ForCausalLM"})", unsupported, "\"architectures\""},
      {R"({"architectures": ["DeepseekV3ForCausalLM", "X"]})", unsupported, "\"architectures\""},
      {R"({"hidden_act": "gelu"})", unsupported, "\"hidden_act\": got \"gelu\""},
      {R"({"topk_method": "gready"})", unsupported, "\"topk_method\": got \"gready\""},
      {R"({"scoring_func": "tanh"})", unsupported, "\"scoring_func\": got \"tanh\""},
      // Experts.
      {R"({"num_experts_per_tok": 9})", invalid, "num_experts_per_tok 9 is more than n_routed_experts 8"},
      {R"({"n_group": 3})", invalid, "n_routed_experts 8 is not a multiple of n_group 3"},
      {R"({"topk_group": 5})", invalid, "topk_group 5 is more than n_group 4"},
      {R"({"topk_group": 1, "num_experts_per_tok": 3})", invalid, "hold fewer than num_experts_per_tok 3"},
      {R"({"n_group": 8, "topk_group": 4})", invalid, "two best"},
      {R"({"n_group": 0})", invalid, "\"n_group\""},
      // rope_scaling.
      {R"({"rope_scaling": []})", invalid, "\"rope_scaling\""},
      {R"({"rope_scaling": {}})", invalid, "rope_scaling: key \"type\" is missing"},
      {R"({"rope_scaling": {"type": "linear", "factor": 2}})", unsupported,
       "rope_scaling: key \"type\": got \"linear\""},
      {R"({"rope_scaling": {"rope_type": "llama3", "factor": 2}})", unsupported, "\"rope_type\""},
      {R"({"rope_scaling": {"rope_type": "yarn", "type": "default", "factor": 2, "original_max_position_embeddings": 8}})",
       invalid, "differ"},
      {R"({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 8}})", invalid,
       "\"factor\" is missing"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 40}})", invalid,
       "\"original_max_position_embeddings\" is missing"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 0.5, "original_max_position_embeddings": 8}})", invalid,
       "\"factor\""},
      {R"({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "beta_slow": 0}})",
       invalid, "\"beta_slow\""},
      {R"({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "truncate": false}})",
       unsupported, "unknown key \"truncate\""},
      {R"({"rope_scaling": {"type": "default", "factor": 2}})", unsupported, "unknown key \"factor\""},
      {R"({"rope_parameters": {"rope_type": "default"}})", invalid, "both"},
      // quantization_config.
      {R"({"quantization_config": {"weight_block_size": [128, 128]}})", invalid,
       "\"quant_method\" is missing"},
      {R"({"quantization_config": {"quant_method": "gptq", "weight_block_size": [128, 128]}})", unsupported,
       "\"quant_method\": got \"gptq\""},
      {R"({"quantization_config": {"quant_method": "fp8"}})", invalid, "\"weight_block_size\" is missing"},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}})", unsupported,
       "\"weight_block_size\": got [64,128]"},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}})",
       unsupported, "\"fmt\": got \"e5m2\""},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "static"}})",
       unsupported, "\"activation_scheme\""},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "bf16"}})",
       unsupported, "\"scale_fmt\""},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "bits": 8}})",
       unsupported, "unknown key \"bits\""},
      // layer_config.
      {R"({"layer_config": []})", invalid, "\"layer_config\""},
      {R"({"layer_config": {"5": {}}})", invalid, "layer_config \"5\": expected a layer index from 0 to 4"},
      {R"({"layer_config": {"-1": {}}})", invalid, "expected a layer index"},
      {R"({"layer_config": {"01": {}}})", invalid, "expected a layer index"},
      {R"({"layer_config": {"1 ": {}}})", invalid, "expected a layer index"},
      {R"({"layer_config": {"": {}}})", invalid, "expected a layer index"},
      {R"({"layer_config": {"99999999999999999999": {}}})", invalid, "expected a layer index"},
      {R"({"layer_config": {"1": 3}})", invalid, "layer_config \"1\": got an integer"},
      {R"({"layer_config": {"1": {"hidden_size": 8}}})", unsupported,
       "\"hidden_size\" cannot differ between layers"},
      {R"({"layer_config": {"1": {"n_heads": 8}}})", unsupported, "\"n_heads\" cannot differ"},
      {R"({"layer_config": {"1": {"num_attention_heads": 0}}})", invalid,
       "layer_config \"1\": key \"num_attention_heads\": got 0"},
      {R"({"layer_config": {"2": {"n_routed_experts": 6}}})", invalid, "not a multiple of n_group"},
      {R"({"layer_config": {"2": {"num_experts_per_tok": 20}}})", invalid, "num_experts_per_tok 20"},
  };
  for (const auto& refused : cases) {
    const std::string patch = refused.patch;
    CAPTURE(patch);
    const auto c = Config::parse(patched(small(), patch));
    CHECK(int(c.status().code()) == int(refused.code));
    CHECK_MESSAGE(c.status().message().find(refused.message) != std::string::npos, c.status().message());
  }
  for (const char* text : {"[]", "3", "null", "\"x\""})
    CHECK(Config::parse(json_of(text)).status().code() == invalid);
}

TEST_CASE("config: unknown keys are listed, known ones without effect are not") {
  const auto unknown_in = [](const Json& json) {
    std::vector<std::string> unknown;
    REQUIRE(Config::parse(json, &unknown).ok());
    return unknown;
  };
  for (const Json& json : {deepseek_v3(), v2_lite(), kimi_k2(), moonlight(), qwen3_30b(), mixtral(), small()})
    CHECK(unknown_in(json).empty());
  const Json json = patched(
      small(), R"({"index_topk": 2048, "use_cache": false, "foo": {"bar": 1}, "aux_loss_alpha": null})");
  CHECK(unknown_in(json) == std::vector<std::string>{"index_topk", "foo"});
  // Sizes that no layer needs, as all are dense or all are MoE, are known all the same.
  CHECK(unknown_in(patched(small(), R"({"n_routed_experts": null})")).empty());
  CHECK(unknown_in(patched(small(), R"({"first_k_dense_replace": 0})")).empty());
}

TEST_CASE("config: layer_config lays its keys over config.json for one layer") {
  const Config c = parsed(patched(small(), R"({"layer_config": {
    "1": {"num_attention_heads": 4, "moe_intermediate_size": 40},
    "2": {"n_routed_experts": 6, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 3},
    "3": {"first_k_dense_replace": 4, "intermediate_size": 100},
    "4": {"num_key_value_heads": 7}}})"));
  const Config plain = parsed(small());
  CHECK(same_layer(c.layers[0], plain.layers[0]));
  LayerConfig expected = plain.layers[1];
  expected.num_attention_heads = 4;
  expected.moe_intermediate_size = 40;
  CHECK(same_layer(c.layers[1], expected));
  expected = plain.layers[2];
  expected.n_routed_experts = 6;
  expected.num_experts_per_tok = expected.n_group = expected.topk_group = 1;
  expected.n_shared_experts = 3;
  CHECK(same_layer(c.layers[2], expected));
  CHECK_FALSE(c.layers[3].moe);
  CHECK(c.layers[3].intermediate_size == 100);
  CHECK(same_layer(c.layers[4], plain.layers[4]));  // MLA has no key heads of its own
  check_round_trip(c);
}

TEST_CASE("config: effective holds what only overridden layers read") {
  // Layer 3 alone is dense, by its override, and takes its width from config.json.
  const Config one = parsed(patched(
      small(), R"({"first_k_dense_replace": 0, "layer_config": {"3": {"first_k_dense_replace": 9}}})"));
  CHECK(one.layers[3].intermediate_size == 24);
  check_round_trip(one);
  // Every layer has an override.
  const Config all =
      parsed(patched(small(), R"({"num_nextn_predict_layers": 0, "num_hidden_layers": 2, "moe_layer_freq": 2,
    "layer_config": {"0": {"first_k_dense_replace": 0}, "1": {"num_attention_heads": 3}}})"));
  CHECK(all.layers[0].moe);
  CHECK_FALSE(all.layers[1].moe);
  check_round_trip(all);
}

TEST_CASE("config: without its MTP layer a model is the same but for that layer") {
  const Config c = parsed(small());
  REQUIRE(c.layers.size() == 5);
  const Config main = c.without_mtp();
  CHECK(main.layers.size() == 4);
  CHECK(main.num_nextn_predict_layers == 0);
  check_round_trip(main);
  // Also when layer_config speaks of that layer.
  check_round_trip(
      parsed(patched(small(), R"({"layer_config": {"4": {"num_attention_heads": 4}}})")).without_mtp());
}

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
    for (const auto& [name, shape] : files)
      CHECK_MESSAGE(name.find(".experts.") != std::string::npos, name << " is in no table");
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

TEST_CASE("config: hostile sizes cost neither time nor memory") {
  // A model of today has under 100,000 tensors; a table is listed before anything is compared with the file.
  const auto stays_small = [](const Json& json) {
    const auto c = Config::parse(json);
    if (c.ok()) CHECK(tensor_table(*c).size() <= 500000);
  };
  // The largest number in every place.
  const Json base = small();
  for (const auto& [key, value] : *base.object()) {
    if (!value.integer()) continue;
    for (const char* huge : {"0", "-1", "9223372036854775807", "16777216", "1048576"}) {
      const std::string patch = "{\"" + key + "\": " + huge + "}";
      CAPTURE(patch);
      stays_small(patched(base, patch));
    }
  }
  // Divisors: a layer is reached that would divide by what was refused.
  stays_small(patched(base, R"({"moe_layer_freq": 0, "first_k_dense_replace": 0})"));
  stays_small(patched(base, R"({"num_hidden_layers": 10000, "n_routed_experts": 65536})"));
  stays_small(patched(base, R"({"num_hidden_layers": 16, "n_routed_experts": 65536})"));
  // Many layers, each with its own configuration.
  Json many = patched(base, R"({"num_hidden_layers": 1000})");
  Json overrides{Json::Object()};
  const Json layer =
      json_of(R"({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 8,
    "moe_intermediate_size": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2})");
  for (int i = 0; i < 1000; ++i) overrides.object()->emplace_back(std::to_string(i), layer);
  many.set("layer_config", overrides);
  stays_small(many);
  // More keys than any file has; each is looked for among all, for each layer.
  Json crowded = base;
  for (int i = 0; i < 1000; ++i) crowded.object()->emplace_back(lite::str("key", i), 1);
  const Status status = Config::parse(crowded).status();
  CHECK(status.message().find("keys, expected at most 1000") != std::string::npos);
  std::string layers = "0";
  for (int i = 1; i <= 1000; ++i) layers += lite::str(",", i);
  CHECK(Config::parse(patched(qwen3_30b(), "{\"mlp_only_layers\": [" + layers + "]}"))
            .status()
            .message()
            .find("\"mlp_only_layers\"") != std::string::npos);
  CHECK(!Config::parse(patched(qwen3_30b(), R"({"decoder_sparse_step": 0})")).ok());
  CHECK(!Config::parse(patched(qwen3_30b(), R"({"num_attention_heads": 0})")).ok());
}
