// config.json of DeepSeek-V2 and V3, Kimi-K2 and Moonlight. Defaults are those of DeepseekV2Config and
// DeepseekV3Config of the released models' own code.
#include "model/config_keys.h"

namespace dsv3 {

using lite::invalid_argument;

namespace {

const std::set<std::string_view> kPerLayer = {
    "num_attention_heads", "intermediate_size",   "moe_intermediate_size",
    "n_routed_experts",    "num_experts_per_tok", "n_group",
    "topk_group",          "n_shared_experts",    "first_k_dense_replace"};
const std::set<std::string_view> kIgnored = {"num_key_value_heads", "head_dim"};  // MLA has no key heads

void check_routing(Keys& k, const Config& c, const LayerConfig& l, int64_t layer) {
  const auto refuse = [&](const auto&... text) {
    k.fail(invalid_argument(k.where(), ": layer ", layer, ": ", text...));
  };
  if (l.num_experts_per_tok > l.n_routed_experts)
    refuse("num_experts_per_tok ", l.num_experts_per_tok, " is more than n_routed_experts ",
           l.n_routed_experts);
  if (c.topk_method == TopkMethod::Greedy || l.n_group == 1) return;
  if (l.n_routed_experts % l.n_group)
    return refuse("n_routed_experts ", l.n_routed_experts, " is not a multiple of n_group ", l.n_group);
  const int64_t per_group = l.n_routed_experts / l.n_group;
  if (l.topk_group > l.n_group) refuse("topk_group ", l.topk_group, " is more than n_group ", l.n_group);
  if (l.topk_group * per_group < l.num_experts_per_tok)
    refuse("topk_group ", l.topk_group, " groups of ", per_group,
           " experts hold fewer than num_experts_per_tok ", l.num_experts_per_tok);
  if (c.topk_method == TopkMethod::NoauxTc && per_group < 2)
    refuse("noaux_tc scores a group by its two best experts, but a group has ", per_group);
}

LayerConfig parse_layer(Keys& k, const Config& c, int64_t layer) {
  const bool v3 = c.architecture == Architecture::DeepseekV3;
  LayerConfig l;
  l.num_attention_heads = k.size("num_attention_heads");
  // A layer is MoE iff there are experts, it is not among the first dense ones, and its turn has come.
  const int64_t dense = k.size("first_k_dense_replace", v3 ? 3 : 0);
  const int64_t frequency = k.size("moe_layer_freq", 1, 1);
  l.n_routed_experts = k.size("n_routed_experts", 0);
  l.moe = l.n_routed_experts > 0 && layer >= dense && layer % frequency == 0;
  if (!l.moe) {
    l.n_routed_experts = 0;
    l.intermediate_size = k.size("intermediate_size");
    return l;
  }
  l.moe_intermediate_size = k.size("moe_intermediate_size");
  l.num_experts_per_tok = k.size("num_experts_per_tok");
  l.n_shared_experts = k.size("n_shared_experts", 0);
  const bool groups = c.topk_method != TopkMethod::Greedy;
  l.n_group = groups ? k.size("n_group") : k.size("n_group", 1, 1);
  l.topk_group = groups ? k.size("topk_group") : k.size("topk_group", 1, 1);
  if (k.status().ok()) check_routing(k, c, l, layer);
  return l;
}

}  // namespace

Status parse_deepseek(Keys& k, const Json& json, Config* c) {
  const bool v3 = c->architecture == Architecture::DeepseekV3;
  parse_common(k, 1e-6, c);
  const double mla_eps = 1e-6;
  c->mla_norm_eps = k.number("mla_norm_eps", &mla_eps, 0, 1);
  // transformers' own class knows no such key: a file without it has no such layer.
  c->num_nextn_predict_layers = k.size("num_nextn_predict_layers", 0);
  if (c->num_nextn_predict_layers > 1)
    k.fail(lite::unsupported(k.where(), ": key \"num_nextn_predict_layers\": got ",
                             c->num_nextn_predict_layers, ", expected 0 or 1"));

  c->q_lora_rank = k.size("q_lora_rank", 0);  // null in released files, 0 in DeepSeek's own: plain q_proj
  c->kv_lora_rank = k.size("kv_lora_rank");
  c->qk_nope_head_dim = k.size("qk_nope_head_dim");
  c->qk_rope_head_dim = k.size("qk_rope_head_dim");
  if (c->qk_rope_head_dim % 2)
    k.fail(invalid_argument(k.where(), ": key \"qk_rope_head_dim\": got ", c->qk_rope_head_dim,
                            ", expected an even number"));
  c->v_head_dim = k.size("v_head_dim");
  c->rope_interleave = k.boolean("rope_interleave", true);
  LITE_TRY(k.status());
  LITE_TRY(parse_rope(k, 10000, c));
  LITE_TRY(parse_quantization(k, c));

  c->scoring_func = k.choice("scoring_func", v3 ? "sigmoid" : "softmax", {"softmax", "sigmoid"})
                        ? ScoringFunc::Sigmoid
                        : ScoringFunc::Softmax;
  const TopkMethod methods[] = {TopkMethod::Greedy, TopkMethod::GroupLimitedGreedy, TopkMethod::NoauxTc};
  c->topk_method = methods[k.choice("topk_method", v3 ? "noaux_tc" : "greedy",
                                    {"greedy", "group_limited_greedy", "noaux_tc"})];
  c->norm_topk_prob = k.boolean("norm_topk_prob", v3);
  const double factor = v3 ? 2.5 : 1.0;
  c->routed_scaling_factor = k.number("routed_scaling_factor", &factor, 1e-6, 1e6);
  LITE_TRY(k.status());

  LITE_ASSIGN(
      const LayerKeys layers,
      LayerKeys::parse(k, json, c->num_hidden_layers + c->num_nextn_predict_layers, kPerLayer, kIgnored));
  return layers.each(k, [&](Keys& keys, int64_t i) { c->layers.push_back(parse_layer(keys, *c, i)); });
}

}  // namespace dsv3
