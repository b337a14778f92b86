#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/config_keys.h"

namespace dsv3 {

using lite::invalid_argument;
using lite::unsupported;

namespace {

// Over all layers: bounds the tensor table of a hostile file. Kimi-K2 has 23,040.
constexpr int64_t kLargestExpertTotal = 1 << 17;

// Keys of released config.json files that do not change what the model computes at inference.
const std::set<std::string_view> kNoEffect = {"_name_or_path",
                                              "attention_dropout",
                                              "auto_map",
                                              "aux_loss_alpha",
                                              "chunk_size_feed_forward",
                                              "classifier_dropout",
                                              "dtype",
                                              "ep_size",
                                              "head_dim",
                                              "hidden_dropout",
                                              "initializer_range",
                                              "label2id",
                                              "max_window_layers",
                                              "num_key_value_heads",
                                              "num_labels",
                                              "output_attentions",
                                              "output_hidden_states",
                                              "output_router_logits",
                                              "pretraining_tp",
                                              "problem_type",
                                              "qk_head_dim",
                                              "return_dict",
                                              "router_aux_loss_coef",
                                              "router_jitter_noise",
                                              "seq_aux",
                                              "torch_dtype",
                                              "transformers_version",
                                              "use_cache"};

// rope_scaling: nothing, {"type": "default"}, or YaRN. Newer files say rope_type for type.
// rope_parameters, of transformers 5, is the same with rope_theta inside.
Status parse_rope_scaling(const Json& object, const std::string& where, const double* theta, Config* c,
                          Json* effective) {
  Keys k(object, where);
  if (theta) c->rope_theta = k.number("rope_theta", theta, 1.001, 1e12);
  const bool both = k.get("rope_type", true) && k.get("type", true);
  const char* kind = k.get("rope_type", true) ? "rope_type" : "type";
  const int type = k.choice(kind, nullptr, {"yarn", "default"});
  if (both && k.choice("type", nullptr, {"yarn", "default"}) != type)
    k.fail(invalid_argument(where, ": \"type\" and \"rope_type\" differ"));
  if (type == 0) {
    const RopeScaling defaults;
    RopeScaling& r = c->rope_scaling;
    c->has_rope_scaling = true;
    r.factor = k.number("factor", nullptr, 1, 1e6);
    r.original_max_position_embeddings = k.size("original_max_position_embeddings");
    // Defaults of DeepSeek's own YaRN code; an absent mscale pair leaves the softmax scale alone.
    r.beta_fast = k.number("beta_fast", &defaults.beta_fast, 1e-6, 1e6);
    r.beta_slow = k.number("beta_slow", &defaults.beta_slow, 1e-6, 1e6);
    r.mscale = k.number("mscale", &defaults.mscale, 0, 1e3);
    r.mscale_all_dim = k.number("mscale_all_dim", &defaults.mscale_all_dim, 0, 1e3);
  }
  k.refuse_unread();
  *effective = k.effective();
  return k.status();
}

}  // namespace

Status parse_rope(Keys& k, double default_theta, Config* c) {
  const Json* parameters = k.object("rope_parameters");
  const Json* scaling = k.object("rope_scaling");
  if (parameters && scaling)
    return k.refuse(invalid_argument(
        k.where(), ": both \"rope_scaling\" and \"rope_parameters\" are given, expected one"));
  if (!parameters) c->rope_theta = k.number("rope_theta", &default_theta, 1.001, 1e12);
  const Json* rope = parameters ? parameters : scaling;
  if (rope) {
    Json effective;
    const std::string where = k.where() + (parameters ? ": rope_parameters" : ": rope_scaling");
    LITE_TRY(parse_rope_scaling(*rope, where, parameters ? &default_theta : nullptr, c, &effective));
    k.effective().set(parameters ? "rope_parameters" : "rope_scaling", effective);
  }
  return {};
}

// FP8 with 128x128 blocks is the one scheme there is; which tensors use it, the tensors themselves say.
Status parse_quantization(Keys& config, Config* c) {
  const Json* object = config.object("quantization_config");
  if (!object) return {};
  Keys k(*object, config.where() + ": quantization_config", nullptr,
         "try the model's FP8 checkpoint with 128x128 blocks, or a BF16 one");
  k.choice("quant_method", nullptr, {"fp8"});
  k.choice("fmt", "e4m3", {"e4m3"});
  k.choice("activation_scheme", "dynamic", {"dynamic"});
  c->scale_fmt =
      k.choice("scale_fmt", "float", {"float", "ue8m0"}) == 1 ? ScaleFormat::Ue8m0 : ScaleFormat::F32;
  k.get("modules_to_not_convert", true);
  const Json* block = k.get("weight_block_size", false);
  if (block && block->dump() != "[128,128]") k.fail("weight_block_size", *block, "[128, 128]", true);
  k.refuse_unread();
  Json effective = k.effective();
  effective.set("weight_block_size", Json::Array{128, 128});
  config.effective().set("quantization_config", effective);
  return k.status();
}

Result<LayerKeys> LayerKeys::parse(Keys& k, const Json& json, int64_t layers,
                                   const std::set<std::string_view>& sizes,
                                   const std::set<std::string_view>& ignored) {
  LayerKeys result(json, sizes);
  result.overrides_.resize(size_t(layers));
  const Json* overrides = k.object("layer_config");
  if (!overrides) return result;
  for (const auto& [key, value] : *overrides->object()) {
    const std::string where = k.where() + ": layer_config \"" + key + "\"";
    const bool decimal =
        !key.empty() && key.size() < 8 && key.find_first_not_of("0123456789") == std::string::npos;
    const int64_t layer = decimal ? std::stoll(key) : -1;
    if (layer < 0 || layer >= layers || std::to_string(layer) != key)
      return k.refuse(invalid_argument(where, ": expected a layer index from 0 to ", layers - 1));
    if (!value.object())
      return k.refuse(invalid_argument(where, ": got ", value.type_name(), ", expected an object"));
    for (const auto& [name, unused] : *value.object())
      if (!sizes.contains(name) && !ignored.contains(name))
        return k.refuse(unsupported(where, ": key \"", name, "\" cannot differ between layers"));
    result.overrides_[size_t(layer)] = &value;
  }
  k.effective().set("layer_config", *overrides);
  return result;
}

void parse_common(Keys& k, double default_eps, Config* c) {
  c->vocab_size = k.size("vocab_size");
  c->num_hidden_layers = k.count("num_hidden_layers", kMostLayers);
  c->max_position_embeddings = k.size("max_position_embeddings");
  c->rms_norm_eps = k.number("rms_norm_eps", &default_eps, 0, 1);
  c->tie_word_embeddings = k.boolean("tie_word_embeddings", false);
  c->attention_bias = k.boolean("attention_bias", false);
  k.choice("hidden_act", "silu", {"silu"});
  c->bos_token_id = k.ids("bos_token_id");
  c->eos_token_id = k.ids("eos_token_id");
  const std::vector<int64_t> pad = k.ids("pad_token_id");
  if (!pad.empty()) c->pad_token_id = pad[0];
}

namespace {

struct Family {
  const char* model_type;
  Architecture architecture;
  const char* class_name;  // before "ForCausalLM"; null: the file names no class
  bool heads;              // has classification and question-answering heads
  Status (*parse)(Keys&, const Json&, Config*);
};

const Family kFamilies[] = {
    {"deepseek_v2", Architecture::DeepseekV2, "DeepseekV2", false, parse_deepseek},
    {"deepseek_v3", Architecture::DeepseekV3, "DeepseekV3", false, parse_deepseek},
    {"kimi_k2", Architecture::DeepseekV3, "DeepseekV3", false, parse_deepseek},
    {"qwen3_moe", Architecture::Qwen3Moe, "Qwen3Moe", true, parse_gqa},
    {"mixtral", Architecture::Mixtral, "Mixtral", false, parse_gqa},
    {"moe_transformer", Architecture::MoeTransformer, nullptr, false, parse_moe_transformer},
};

// "architectures" says which head the checkpoint has.
void parse_task(Keys& k, const Family& family, Config* c) {
  const Json* given = k.get("architectures", true);
  if (!given || !family.class_name) return;
  std::string expected;
  const struct {
    const char* suffix;
    Task task;
  } tasks[] = {{"ForCausalLM", Task::CausalLm},
               {"ForSequenceClassification", Task::SequenceClassification},
               {"ForTokenClassification", Task::TokenClassification},
               {"ForQuestionAnswering", Task::QuestionAnswering}};
  for (const auto& [suffix, task] : tasks) {
    if (task != Task::CausalLm && !family.heads) break;
    const std::string class_list = lite::str("[\"", family.class_name, suffix, "\"]");
    expected += (expected.empty() ? "" : ", ") + class_list;
    if (given->dump() != class_list) continue;
    c->task = task;
    k.effective().set("architectures", *given);
    return;
  }
  k.fail("architectures", *given, "one of " + expected, true);
}

}  // namespace

Result<Config> Config::parse(const Json& json, std::vector<std::string>* unknown) {
  const std::string where = "read config.json";
  if (!json.object())
    return invalid_argument(where, ": got ", json.type_name(), ", expected an object; get the file again");
  Keys k(json, where);
  std::vector<const char*> types;
  for (const Family& family : kFamilies) types.push_back(family.model_type);
  const Family& family = kFamilies[k.choice("model_type", nullptr, types)];
  LITE_TRY(k.status());
  Config c;
  c.model_type = family.model_type;
  c.architecture = family.architecture;
  parse_task(k, family, &c);
  c.hidden_size = k.size("hidden_size");
  LITE_TRY(k.status());
  LITE_TRY(family.parse(k, json, &c));
  // A single layer's file has no released form: what is not known to have no effect may change what it computes.
  if (c.architecture == Architecture::MoeTransformer)
    for (const std::string& key : k.unread())
      if (!kNoEffect.contains(key) || key == "head_dim" || key == "num_key_value_heads")
        k.fail(lite::unsupported(where, ": key \"", key, "\": a single layer has none of this name"));
  LITE_TRY(k.status());

  if (c.layers.empty()) return lite::internal_error(where, ": no layers");
  int64_t experts = 0;
  for (const LayerConfig& l : c.layers) experts += l.n_routed_experts;
  if (experts > kLargestExpertTotal)
    return k.refuse(invalid_argument(
        where, ": got ", experts, " experts in all layers together, expected at most ", kLargestExpertTotal));
  if (unknown)
    for (const std::string& key : k.unread())
      if (!kNoEffect.contains(key)) unknown->push_back(key);
  c.effective = k.effective();
  return c;
}

Config Config::without_mtp() const {
  Config c = *this;
  c.num_nextn_predict_layers = 0;
  c.layers.resize(num_hidden_layers);
  c.effective.set("num_nextn_predict_layers", 0);
  if (const Json* overrides = effective.find("layer_config")) {
    Json::Object kept;
    for (const auto& [layer, keys] : *overrides->object())
      if (layer != std::to_string(num_hidden_layers)) kept.emplace_back(layer, keys);
    c.effective.set("layer_config", std::move(kept));
  }
  return c;
}

namespace {
// YaRN's attention magnitude (arXiv:2309.00071, section 3.4, with DeepSeek's factor m).
double magnitude(double factor, double m) {
  return factor <= 1 ? 1 : 0.1 * m * std::log(factor) + 1;
}
}  // namespace

int64_t Config::cached_values(const LayerConfig& layer) const {
  if (architecture == Architecture::MoeTransformer) return 0;
  return is_mla() ? latent_dim() : 2 * layer.num_key_value_heads * layer.head_dim;
}

int64_t Config::rotary_dim(const LayerConfig& layer) const {
  return is_mla() ? qk_rope_head_dim : layer.head_dim;
}

int64_t Config::output_size() const {
  switch (task) {
    case Task::CausalLm: return vocab_size;
    case Task::SequenceClassification:
    case Task::TokenClassification: return int64_t(labels.size());
    case Task::QuestionAnswering: return 2;
  }
  return 0;
}

double Config::softmax_scale(const LayerConfig& layer) const {
  const double scale = 1 / std::sqrt(double(is_mla() ? qk_head_dim() : layer.head_dim));
  if (!is_mla() || !has_rope_scaling || rope_scaling.mscale_all_dim == 0) return scale;
  const double m = magnitude(rope_scaling.factor, rope_scaling.mscale_all_dim);
  return scale * m * m;
}

double Config::rope_cos_sin_scale() const {
  if (!has_rope_scaling) return 1;
  const RopeScaling& r = rope_scaling;
  if (r.mscale != 0 && r.mscale_all_dim != 0)
    return magnitude(r.factor, r.mscale) / magnitude(r.factor, r.mscale_all_dim);
  return magnitude(r.factor, 1);
}

std::vector<float> Config::rope_inv_freq(int64_t dim) const {
  std::vector<float> out(dim / 2);
  double low = 0, high = 0;
  if (has_rope_scaling) {
    // The dimension whose wave makes `rotations` turns over the original context.
    const auto dimension = [&](double rotations) {
      return double(dim) *
             std::log(double(rope_scaling.original_max_position_embeddings) /
                      (rotations * 2 * std::numbers::pi)) /
             (2 * std::log(rope_theta));
    };
    low = std::max(std::floor(dimension(rope_scaling.beta_fast)), 0.0);
    high =
        std::min(std::ceil(dimension(rope_scaling.beta_slow)), double(dim - 1));  // dim - 1, not dim / 2 - 1
    if (low == high) high += 0.001;
  }
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double base = std::pow(rope_theta, -2.0 * double(i) / double(dim));
    const double interpolated =
        has_rope_scaling ? std::clamp((double(i) - low) / (high - low), 0.0, 1.0) : 0.0;
    out[i] = float(base / rope_scaling.factor * interpolated + base * (1 - interpolated));
  }
  return out;
}

const char* architecture_name(Architecture architecture) {
  switch (architecture) {
    case Architecture::DeepseekV2: return "deepseek_v2";
    case Architecture::DeepseekV3: return "deepseek_v3";
    case Architecture::Qwen3Moe: return "qwen3_moe";
    case Architecture::Mixtral: return "mixtral";
    case Architecture::MoeTransformer: return "moe_transformer";
  }
  return "?";
}

}  // namespace dsv3
