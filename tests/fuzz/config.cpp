// model/config and model/tensors: config.json. What it takes has an effective configuration that means the same.
#include "model/config.h"

#include <algorithm>
#include <tuple>

#include "model/tensors.h"
#include "tests/fuzz/fuzz.h"

namespace {

bool same(const dsv3::LayerConfig& a, const dsv3::LayerConfig& b) {
  const auto fields = [](const dsv3::LayerConfig& l) {
    return std::tie(l.num_attention_heads, l.num_key_value_heads, l.head_dim, l.moe, l.intermediate_size,
                    l.moe_intermediate_size, l.n_routed_experts, l.num_experts_per_tok, l.n_shared_experts,
                    l.n_group, l.topk_group);
  };
  return fields(a) == fields(b);
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto json = lite::Json::parse(fuzz::text_of(data, size), "input");
  if (!json.ok()) return 0;
  std::vector<std::string> unknown;
  const auto config = dsv3::Config::parse(*json, &unknown);
  fuzz::check(config.status());
  if (!config.ok()) return 0;

  const auto again = dsv3::Config::parse(config->effective);
  fuzz::require(again.ok(), "an effective configuration is a configuration");
  fuzz::require(std::equal(config->layers.begin(), config->layers.end(), again->layers.begin(),
                           again->layers.end(), same),
                "an effective configuration gives the same layers");
  fuzz::require(config->layers.size() == size_t(config->num_hidden_layers + config->num_nextn_predict_layers),
                "every layer has its configuration");
  fuzz::require(config->output_size() >= 0, "a head has a size");

  int64_t tensors = 0;
  for (const dsv3::LayerConfig& l : config->layers) {
    tensors += 20 + 4 * l.n_routed_experts;
    const bool rotates = config->architecture != dsv3::Architecture::MoeTransformer;
    fuzz::require(config->cached_values(l) >= 0, "cached values are counted");
    fuzz::require(!rotates || config->rotary_dim(l) % 2 == 0, "values are rotated in pairs");
    if (config->rotary_dim(l) <= 4096) (void)config->rope_inv_freq(config->rotary_dim(l));
  }
  if (tensors > 2000) return 0;  // large tables only take time
  for (const dsv3::TensorInfo& t : dsv3::tensor_table(*config))
    for (const int64_t n : t.shape) fuzz::require(n > 0, "no dimension is zero");
  (void)dsv3::tensor_table(config->without_mtp());
  return 0;
}
