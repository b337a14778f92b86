// Configurations that tests change things of: the released models', a small one, and those of the checkpoints we have.
#pragma once

#include <doctest/doctest.h>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tensors.h"
#include "tests/unit/advice.h"

namespace config_test {

using namespace dsv3;
namespace fs = std::filesystem;

inline Json json_of(const std::string& text) {
  auto json = Json::parse(text, "test");
  REQUIRE_MESSAGE(json.ok(), json.status().message());
  return std::move(*json);
}

inline Json json_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE_MESSAGE(in.good(), path);
  return json_of({std::istreambuf_iterator<char>(in), {}});
}

// `base` with the members of `patch` in place of its own.
inline Json patched(Json base, const std::string& patch) {
  const Json members = json_of(patch);
  for (const auto& [key, value] : *members.object()) base.set(key, value);
  return base;
}

inline Json without(const Json& base, const std::string& key) {
  Json out{Json::Object()};
  for (const auto& [k, v] : *base.object())
    if (k != key) out.set(k, v);
  return out;
}

inline Config parsed(const Json& json) {
  auto config = Config::parse(json);
  REQUIRE_MESSAGE(config.ok(), config.status().message());
  return std::move(*config);
}

// Released models, from the table of hyper-parameters in the papers and config.json files.
inline Json deepseek_v3() {
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

inline Json v2_lite() {
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

inline Json kimi_k2() {
  return patched(deepseek_v3(), R"({"model_type": "kimi_k2", "vocab_size": 163840, "num_attention_heads": 64,
    "n_routed_experts": 384, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827, "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0, "rope_theta": 50000.0, "max_position_embeddings": 131072,
    "rope_scaling": {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 1.0,
                     "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}})");
}

inline Json moonlight() {
  return patched(
      without(without(deepseek_v3(), "rope_scaling"), "quantization_config"),
      R"({"vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264, "moe_intermediate_size": 1408,
    "num_hidden_layers": 27, "num_nextn_predict_layers": 0, "num_attention_heads": 16, "num_key_value_heads": 16,
    "n_shared_experts": 2, "n_routed_experts": 64, "num_experts_per_tok": 6, "routed_scaling_factor": 2.446, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": null, "rope_theta": 50000.0, "rms_norm_eps": 1e-05,
    "max_position_embeddings": 8192})");
}

inline Json qwen3_30b() {
  return json_of(
      R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936,
    "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "rope_theta": 1000000.0, "rope_scaling": null,
    "rms_norm_eps": 1e-06, "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": false,
    "use_sliding_window": false, "sliding_window": null, "max_window_layers": 48, "max_position_embeddings": 40960,
    "bos_token_id": 151643, "eos_token_id": 151645, "router_aux_loss_coef": 0.001, "output_router_logits": false})");
}

inline Json mixtral() {
  return json_of(
      R"({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1000000.0, "rms_norm_eps": 1e-05, "hidden_act": "silu",
    "tie_word_embeddings": false, "sliding_window": null, "max_position_embeddings": 32768, "bos_token_id": 1,
    "eos_token_id": 2, "router_aux_loss_coef": 0.02, "output_router_logits": false, "attention_dropout": 0.0})");
}

// A small model to change things of.
inline Json small() {
  return patched(deepseek_v3(),
                 R"({"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
    "num_hidden_layers": 4, "num_attention_heads": 2, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4, "v_head_dim": 5})");
}

inline bool same_layer(const LayerConfig& a, const LayerConfig& b) {
  return a.num_attention_heads == b.num_attention_heads && a.num_key_value_heads == b.num_key_value_heads &&
         a.head_dim == b.head_dim && a.moe == b.moe && a.intermediate_size == b.intermediate_size &&
         a.moe_intermediate_size == b.moe_intermediate_size && a.n_routed_experts == b.n_routed_experts &&
         a.num_experts_per_tok == b.num_experts_per_tok && a.n_shared_experts == b.n_shared_experts &&
         a.n_group == b.n_group && a.topk_group == b.topk_group;
}

// What `effective` promises: parsing it gives the same configuration, and knows all its keys.
inline void check_round_trip(const Config& c) {
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

inline const fs::path kRoot = DSV3_SOURCE_DIR;

// Folders of checkpoints that tests have: the golden cases and the demo model.
inline std::vector<fs::path> checkpoints() {
  std::vector<fs::path> out = {kRoot / "examples/demo-model"};
  for (const auto& entry : fs::directory_iterator(kRoot / "tests/golden/cases"))
    if (fs::exists(entry.path() / "model.safetensors") ||
        fs::exists(entry.path() / "model.safetensors.index.json"))
      out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  REQUIRE(out.size() > 5);
  return out;
}

// What has no configuration, because of a patch to one that has, and what the message must say.
struct Refused {
  const char* patch;
  lite::Code code;
  const char* message;
};

inline void all_refused(const Json& base, const std::vector<Refused>& cases) {
  for (const Refused& refused : cases) {
    const std::string patch = refused.patch;
    CAPTURE(patch);
    const auto c = Config::parse(patched(base, patch));
    CHECK(int(c.status().code()) == int(refused.code));
    CHECK_MESSAGE(c.status().message().find(refused.message) != std::string::npos, c.status().message());
    CHECK_MESSAGE(has_advice(c.status().message()), c.status().message());
  }
}

}  // namespace config_test
