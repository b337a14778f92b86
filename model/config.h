// What a checkpoint's config.json means: one Config, and one LayerConfig per layer.
//
// Names are config.json's own. Every key read is required or has its architecture's own default (config.cpp names
// the source of each); a value we do not know of a key we read is refused. Sources of the meaning:
// arXiv:2405.04434 (V2), arXiv:2412.19437 (V3), arXiv:2309.00071 (YaRN).
#pragma once

#include <string>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

// Kimi-K2 and Moonlight are V3 by their mathematics. MoeTransformer is a single layer without vocabulary or positions.
enum class Architecture { DeepseekV2, DeepseekV3, Qwen3Moe, Mixtral, MoeTransformer };
const char* architecture_name(Architecture architecture);  // "deepseek_v2", ...
// What the head computes for a position: logits of the next token, of a label, or of being an answer's start and end.
enum class Task { CausalLm, SequenceClassification, TokenClassification, QuestionAnswering };
enum class ScoringFunc { Softmax, Sigmoid };
enum class TopkMethod { Greedy, GroupLimitedGreedy, NoauxTc };
enum class ScaleFormat { F32, Ue8m0 };  // of activation scales, from quantization_config.scale_fmt

// YaRN, when config.json has rope_scaling; factor 1 means plain RoPE.
struct RopeScaling {
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32, beta_slow = 1, mscale = 1, mscale_all_dim = 0;
};

// One layer's effective configuration: config.json with that layer's `layer_config` entry laid over it.
struct LayerConfig {
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0, head_dim = 0;  // grouped-query attention; MLA has neither
  bool moe = false;
  int64_t intermediate_size = 0;  // of a dense layer
  int64_t moe_intermediate_size = 0, n_routed_experts = 0, num_experts_per_tok = 0, n_shared_experts = 0;
  int64_t n_group = 1, topk_group = 1;
};

struct Config {
  Architecture architecture = Architecture::DeepseekV3;
  Task task = Task::CausalLm;
  std::string model_type;
  int64_t vocab_size = 0, hidden_size = 0, num_hidden_layers = 0, num_nextn_predict_layers = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  // Of q_a_layernorm and kv_a_layernorm: the released models' own code leaves it at 1e-6 whatever rms_norm_eps says.
  double mla_norm_eps = 1e-6;
  bool tie_word_embeddings = false, attention_bias = false;

  // Multi-head latent attention.
  int64_t q_lora_rank = 0;  // 0: plain q_proj
  int64_t kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;

  int64_t sliding_window = 0;  // grouped-query attention sees this many positions; 0: all

  double rope_theta = 10000;
  bool rope_interleave = true;
  bool has_rope_scaling = false;
  RopeScaling rope_scaling;

  ScoringFunc scoring_func = ScoringFunc::Sigmoid;
  TopkMethod topk_method = TopkMethod::NoauxTc;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;
  ScaleFormat scale_fmt = ScaleFormat::F32;

  std::vector<int64_t> bos_token_id, eos_token_id;  // none, one or several
  int64_t pad_token_id = -1;                        // -1: none
  std::vector<std::string> labels;                  // of a classification head, from id2label
  std::vector<LayerConfig> layers;                  // num_hidden_layers + num_nextn_predict_layers (0 or 1)

  bool is_mla() const {
    return architecture == Architecture::DeepseekV2 || architecture == Architecture::DeepseekV3;
  }
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t latent_dim() const { return kv_lora_rank + qk_rope_head_dim; }
  int64_t cached_values(const LayerConfig& layer) const;  // per token: MLA's latent, keys and values, or none
  int64_t rotary_dim(const LayerConfig& layer) const;     // values of a head that are rotated
  double softmax_scale(const LayerConfig& layer) const;   // head size^-0.5; MLA: times YaRN's mscale^2
  std::vector<float> rope_inv_freq(int64_t dim) const;    // [dim / 2], computed in double, rounded once
  double rope_cos_sin_scale() const;  // YaRN's factor on cosine and sine; 1 for every released MLA model
  int64_t output_size() const;        // values the head gives for a position

  // From config.json, or from `effective`. `unknown`, when given, receives the keys that are neither read nor known
  // to have no effect on what the model computes.
  static Result<Config> parse(const Json& json, std::vector<std::string>* unknown = nullptr);

  Json
      effective;  // every value above under config.json's names, defaults included; parse(effective) is this Config

  // The same model without its multi-token-prediction layer, for a checkpoint that has dropped it.
  Config without_mtp() const;
};

}  // namespace dsv3
