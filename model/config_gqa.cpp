// config.json of Qwen3-MoE and Mixtral, which share grouped-query attention, and of the single MoE
// Transformer layer. Defaults are those of transformers' Qwen3MoeConfig and MixtralConfig.
#include <algorithm>
#include <set>

#include "ggml-lite/printable.h"
#include "model/config_keys.h"

namespace dsv3 {

using lite::invalid_argument;

namespace {

const std::set<std::string_view> kQwenPerLayer = {
    "num_attention_heads", "num_key_value_heads",   "head_dim",
    "intermediate_size",   "moe_intermediate_size", "num_experts",
    "num_experts_per_tok", "mlp_only_layers"};
const std::set<std::string_view> kMixtralPerLayer = {
    "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size",   "num_local_experts",   "num_experts_per_tok"};

// A list of layer indices; absent or null: none.
std::vector<int64_t> layer_list(Keys& k, const char* key) {
  const Json* v = k.get(key, true);
  std::vector<int64_t> out;
  if (v && v->array())
    for (const Json& item : *v->array())
      if (item.integer() && int64_t(out.size()) < kMostLayers) out.push_back(*item.integer());
  if (v && (!v->array() || v->array()->size() != out.size()))
    k.fail(key, *v, lite::str("a list of at most ", kMostLayers, " layer indices"));
  if (v) k.effective().set(key, *v);
  return out;
}

LayerConfig parse_layer(Keys& k, const Config& c, int64_t layer) {
  const bool qwen = c.architecture == Architecture::Qwen3Moe;
  LayerConfig l;
  l.num_attention_heads = k.size("num_attention_heads");
  l.num_key_value_heads = k.size("num_key_value_heads");
  // Not recorded when absent: it would stop following the number of heads of other layers.
  l.head_dim = k.get("head_dim", true) ? k.size("head_dim")
                                       : std::max<int64_t>(1, c.hidden_size / l.num_attention_heads);
  if (l.num_attention_heads % l.num_key_value_heads)
    k.fail(invalid_argument(k.where(), ": num_attention_heads ", l.num_attention_heads,
                            " is not a multiple of num_key_value_heads ", l.num_key_value_heads));
  if (l.head_dim % 2)
    k.fail(invalid_argument(k.where(), ": key \"head_dim\": got ", l.head_dim, ", expected an even number"));

  if (qwen) {
    const std::vector<int64_t> dense = layer_list(k, "mlp_only_layers");
    const int64_t step = k.size("decoder_sparse_step", 1, 1);
    k.get("num_experts", false);  // required; 0: every layer is dense
    l.n_routed_experts = k.size("num_experts", 0);
    l.moe = l.n_routed_experts > 0 && (layer + 1) % step == 0 &&
            std::find(dense.begin(), dense.end(), layer) == dense.end();
    if (!l.moe) {
      l.n_routed_experts = 0;
      l.intermediate_size = k.size("intermediate_size");
      return l;
    }
    l.moe_intermediate_size = k.size("moe_intermediate_size");
  } else {
    l.moe = true;
    l.n_routed_experts = k.size("num_local_experts");
    l.moe_intermediate_size = k.size("intermediate_size");
  }
  l.num_experts_per_tok = k.size("num_experts_per_tok");
  if (l.num_experts_per_tok > l.n_routed_experts)
    k.fail(invalid_argument(k.where(), ": layer ", layer, ": num_experts_per_tok ", l.num_experts_per_tok,
                            " is more than the ", l.n_routed_experts, " experts"));
  return l;
}

// id2label: {"0": "name", ...}; without it num_labels names of transformers' own form, two by default.
void parse_labels(Keys& k, Config* c) {
  const Json* names = k.object("id2label");
  if (!names) {
    const int64_t n = k.size("num_labels", 2, 1);
    constexpr int64_t kMostUnnamed = 1 << 16;
    if (n > kMostUnnamed)
      return k.fail(invalid_argument(k.where(), ": key \"num_labels\": got ", n, ", expected at most ",
                                     kMostUnnamed, " without an \"id2label\""));
    for (int64_t i = 0; i < n; ++i) c->labels.push_back(lite::str("LABEL_", i));
    return;
  }
  k.effective().set("id2label", *names);
  c->labels.resize(names->object()->size());
  for (const auto& [id, name] : *names->object()) {
    const bool decimal = !id.empty() && id.size() < 9 &&
                         id.find_first_not_of("0123456789") == std::string::npos &&
                         (id[0] != '0' || id == "0");
    const size_t index = decimal ? size_t(std::stoll(id)) : c->labels.size();
    if (index >= c->labels.size() || !name.string())
      return k.fail("id2label", *names, "names for the ids from 0 to one less than their number");
    // Names are printed to terminals.
    if (lite::has_controls(*name.string()))
      return k.fail("id2label", *names, "names without control characters");
    c->labels[index] = *name.string();
  }
  if (c->labels.empty()) k.fail("id2label", *names, "at least one label");
  if (std::set(c->labels.begin(), c->labels.end()).size() < c->labels.size())
    k.fail("id2label", *names, "another name for each id");
}

}  // namespace

Status parse_gqa(Keys& k, const Json& json, Config* c) {
  const bool qwen = c->architecture == Architecture::Qwen3Moe;
  parse_common(k, qwen ? 1e-6 : 1e-5, c);
  LITE_TRY(k.status());
  c->rope_interleave = false;
  LITE_TRY(parse_rope(k, qwen ? 10000 : 1000000, c));
  LITE_TRY(parse_quantization(k, c));
  // Qwen3-MoE's files carry a sliding_window that counts only with use_sliding_window.
  const bool windowed = k.boolean("use_sliding_window", !qwen);
  if (k.get("sliding_window", true) && windowed) c->sliding_window = k.size("sliding_window");
  c->scoring_func = ScoringFunc::Softmax;
  c->topk_method = TopkMethod::Greedy;
  c->norm_topk_prob = qwen ? k.boolean("norm_topk_prob", false) : true;
  if (c->task == Task::SequenceClassification || c->task == Task::TokenClassification)
    parse_labels(k, c);
  else
    k.get("id2label", true);
  LITE_TRY(k.status());

  LITE_ASSIGN(const LayerKeys layers,
              LayerKeys::parse(k, json, c->num_hidden_layers, qwen ? kQwenPerLayer : kMixtralPerLayer));
  return layers.each(k, [&](Keys& keys, int64_t i) { c->layers.push_back(parse_layer(keys, *c, i)); });
}

Status parse_moe_transformer(Keys& k, const Json&, Config* c) {
  LayerConfig l;
  l.moe = true;
  l.num_attention_heads = l.num_key_value_heads = k.size("num_heads");
  l.moe_intermediate_size = k.size("intermediate_size");
  l.n_routed_experts = k.size("num_experts");
  l.num_experts_per_tok = k.size("num_experts_per_tok");
  k.choice("activation", "gelu", {"gelu"});
  if (!k.boolean("norm_first", true)) k.fail("norm_first", Json(false), "true", true);
  LITE_TRY(k.status());
  if (c->hidden_size % l.num_attention_heads)
    return k.refuse(invalid_argument(k.where(), ": hidden_size ", c->hidden_size,
                                     " is not a multiple of num_heads ", l.num_attention_heads));
  if (l.num_experts_per_tok > l.n_routed_experts)
    return k.refuse(invalid_argument(k.where(), ": num_experts_per_tok ", l.num_experts_per_tok,
                                     " is more than num_experts ", l.n_routed_experts));
  l.head_dim = c->hidden_size / l.num_attention_heads;
  c->num_hidden_layers = 1;
  const double eps = 1e-5;  // of its LayerNorms: PyTorch's default
  c->rms_norm_eps = k.number("layer_norm_eps", &eps, 0, 1);
  c->layers = {l};
  return {};
}

}  // namespace dsv3
