// What config.json means for Qwen3-MoE, Mixtral and the lone layer.
#include <cmath>

#include "tests/unit/config_samples.h"

using namespace config_test;
using lite::Code;

TEST_CASE("config: grouped-query models and the lone layer: what cannot be is refused and named") {
  const Code invalid = Code::InvalidArgument, unsupported = Code::Unsupported;
  all_refused(
      qwen3_30b(),
      {{R"({"num_attention_heads": 0})", invalid, "\"num_attention_heads\": got 0"},
       {R"({"num_attention_heads": 0, "head_dim": null})", invalid, "\"num_attention_heads\": got 0"},
       {R"({"num_key_value_heads": 0})", invalid, "\"num_key_value_heads\": got 0"},
       {R"({"num_key_value_heads": -4})", invalid, "\"num_key_value_heads\": got -4"},
       {R"({"num_key_value_heads": 5})", invalid,
        "num_attention_heads 32 is not a multiple of num_key_value_heads 5"},
       {R"({"num_key_value_heads": 64})", invalid, "not a multiple"},
       {R"({"head_dim": 0})", invalid, "\"head_dim\": got 0"},
       {R"({"head_dim": 127})", invalid, "\"head_dim\": got 127, expected an even number"},
       {R"({"head_dim": null, "num_attention_heads": 60, "num_key_value_heads": 4, "hidden_size": 1980})",
        invalid, "expected an even number"},  // 1980 / 60 = 33
       {R"({"head_dim": null, "num_attention_heads": 4096})", invalid, "expected an even number"},
       {R"({"num_experts_per_tok": 129})", invalid, "num_experts_per_tok 129 is more than the 128 experts"},
       {R"({"num_experts_per_tok": 0})", invalid, "\"num_experts_per_tok\": got 0"},
       {R"({"num_experts": -1})", invalid, "\"num_experts\": got -1"},
       {R"({"decoder_sparse_step": 0})", invalid, "\"decoder_sparse_step\": got 0"},
       {R"({"decoder_sparse_step": -1})", invalid, "\"decoder_sparse_step\": got -1"},
       {R"({"mlp_only_layers": 3})", invalid, "\"mlp_only_layers\": got 3"},
       {R"({"mlp_only_layers": ["1"]})", invalid, "\"mlp_only_layers\""},
       {R"({"use_sliding_window": true, "sliding_window": 0})", invalid, "\"sliding_window\": got 0"},
       {R"({"use_sliding_window": true, "sliding_window": -5})", invalid, "\"sliding_window\": got -5"},
       {R"({"use_sliding_window": 1, "sliding_window": 5})", invalid, "\"use_sliding_window\""},
       {R"({"rope_scaling": {"type": "dynamic", "factor": 2}})", unsupported, "\"type\": got \"dynamic\""},
       {R"({"hidden_act": "gelu"})", unsupported, "\"hidden_act\""},
       {R"({"architectures": ["Qwen3MoeModel"]})", unsupported, "Qwen3MoeForTokenClassification"},
       {R"({"architectures": ["Qwen3MoeForSequenceClassification"], "id2label": {"0": "a", "2": "b"}})",
        invalid, "\"id2label\""},
       {R"({"architectures": ["Qwen3MoeForSequenceClassification"], "id2label": {"0": 7}})", invalid,
        "\"id2label\""},
       {R"({"architectures": ["Qwen3MoeForSequenceClassification"], "id2label": {"0": "a", "00": "b"}})",
        invalid, "\"id2label\""},
       {R"({"architectures": ["Qwen3MoeForSequenceClassification"], "id2label": {"0": "a", "1": "a"}})",
        invalid, "another name for each id"},
       {R"({"architectures": ["Qwen3MoeForSequenceClassification"], "id2label": {"0": "a\u001b[2J"}})",
        invalid, "control characters"},
       {R"({"architectures": ["Qwen3MoeForSequenceClassification"], "id2label": {}})", invalid,
        "\"id2label\""},
       {R"({"architectures": ["Qwen3MoeForTokenClassification"], "num_labels": 0})", invalid,
        "\"num_labels\": got 0"},
       {R"({"architectures": ["Qwen3MoeForTokenClassification"], "num_labels": 2000000})", invalid,
        "expected at most"},
       {R"({"layer_config": {"48": {}}})", invalid,
        "layer_config \"48\": expected a layer index from 0 to 47"},
       {R"({"layer_config": {"x": {}}})", invalid, "layer_config \"x\": expected a layer index"},
       {R"({"layer_config": {"1": {"vocab_size": 5}}})", unsupported, "\"vocab_size\" cannot differ"},
       {R"({"layer_config": {"1": {"n_routed_experts": 5}}})", unsupported,
        "\"n_routed_experts\" cannot differ"},
       {R"({"layer_config": {"1": {"num_local_experts": 5}}})", unsupported,
        "\"num_local_experts\" cannot differ"},
       {R"({"layer_config": {"1": {"first_k_dense_replace": 5}}})", unsupported, "cannot differ"},
       {R"({"layer_config": {"1": {"num_attention_heads": 0}}})", invalid,
        "layer_config \"1\": key \"num_attention_heads\": got 0"},
       {R"({"layer_config": {"1": {"num_attention_heads": 6}}})", invalid,
        "layer_config \"1\": num_attention_heads 6"},
       {R"({"layer_config": {"1": {"num_key_value_heads": 0}}})", invalid, "layer_config \"1\""},
       {R"({"layer_config": {"1": {"head_dim": 3}}})", invalid, "expected an even number"},
       {R"({"layer_config": {"1": {"num_experts": 4}}})", invalid, "is more than the 4 experts"},
       {R"({"layer_config": {"1": {"mlp_only_layers": 1}}})", invalid, "\"mlp_only_layers\": got 1"}});
  all_refused(
      mixtral(),
      {{R"({"num_attention_heads": 0})", invalid, "\"num_attention_heads\": got 0"},
       {R"({"num_key_value_heads": 0})", invalid, "\"num_key_value_heads\": got 0"},
       {R"({"num_key_value_heads": 3})", invalid, "not a multiple"},
       {R"({"head_dim": 1})", invalid, "expected an even number"},
       {R"({"num_local_experts": 0})", invalid, "\"num_local_experts\": got 0"},
       {R"({"num_local_experts": 1})", invalid, "num_experts_per_tok 2 is more than the 1 experts"},
       {R"({"sliding_window": 0})", invalid, "\"sliding_window\": got 0"},
       {R"({"sliding_window": -1})", invalid, "\"sliding_window\": got -1"},
       {R"({"sliding_window": "all"})", invalid, "\"sliding_window\": got \"all\""},
       {R"({"architectures": ["MixtralForSequenceClassification"]})", unsupported, "MixtralForCausalLM"},
       {R"({"layer_config": {"1": {"moe_intermediate_size": 5}}})", unsupported, "cannot differ"},
       {R"({"layer_config": {"1": {"mlp_only_layers": [1]}}})", unsupported, "cannot differ"},
       {R"({"layer_config": {"32": {}}})", invalid, "expected a layer index from 0 to 31"}});
  all_refused(
      json_of(R"({"model_type": "moe_transformer", "hidden_size": 48, "num_heads": 4, "intermediate_size": 80,
                          "num_experts": 8, "num_experts_per_tok": 2})"),
      {{R"({"num_heads": 0})", invalid, "\"num_heads\": got 0"},
       {R"({"num_heads": 5})", invalid, "hidden_size 48 is not a multiple of num_heads 5"},
       {R"({"num_experts": 0})", invalid, "\"num_experts\": got 0"},
       {R"({"num_experts_per_tok": 9})", invalid, "num_experts_per_tok 9 is more than num_experts 8"},
       {R"({"layer_norm_eps": 2})", invalid, "\"layer_norm_eps\": got 2"},
       {R"({"layer_config": {"0": {"num_experts": 4}}})", unsupported, "key \"layer_config\""},
       {R"({"head_dim": 16})", unsupported, "key \"head_dim\""},
       {R"({"num_key_value_heads": 2})", unsupported, "key \"num_key_value_heads\""},
       {R"({"intermediate_size": 0})", invalid, "\"intermediate_size\": got 0"},
       {R"({"activation": "relu"})", unsupported, "\"activation\": got \"relu\", expected one of \"gelu\""},
       {R"({"norm_first": false})", unsupported, "\"norm_first\": got false, expected true"},
       {R"({"hidden_size": 0})", invalid, "\"hidden_size\": got 0"},
       {R"({"num_experts": 1000000})", invalid, "experts in all layers together"}});
  // A divisor of 0 is refused before anything is divided by it.
  for (const char* patch :
       {R"({"moe_layer_freq": 0, "first_k_dense_replace": 0})", R"({"num_attention_heads": 0})",
        R"({"n_group": 0, "first_k_dense_replace": 0})"}) {
    CAPTURE(patch);
    CHECK(Config::parse(patched(small(), patch)).status().code() == invalid);
  }
}

TEST_CASE("config: layer_config of a grouped-query model") {
  const Config c = parsed(patched(qwen3_30b(), R"({"layer_config": {
    "1": {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32},
    "2": {"mlp_only_layers": [2], "intermediate_size": 100},
    "3": {"num_experts": 16, "num_experts_per_tok": 1, "moe_intermediate_size": 40}}})"));
  CHECK(c.cached_values(c.layers[0]) == 2 * 4 * 128);
  CHECK(c.cached_values(c.layers[1]) == 2 * 8 * 32);
  CHECK(c.rotary_dim(c.layers[1]) == 32);
  CHECK(c.softmax_scale(c.layers[1]) == doctest::Approx(1 / std::sqrt(32.0)));
  CHECK_FALSE(c.layers[2].moe);
  CHECK(c.layers[2].intermediate_size == 100);
  CHECK(c.layers[3].n_routed_experts == 16);
  CHECK(c.layers[3].num_experts_per_tok == 1);
  CHECK(c.layers[4].moe);
  check_round_trip(c);
  // Without a head_dim of its own a layer's follows from its own number of heads.
  const Config follows = parsed(
      patched(without(qwen3_30b(), "head_dim"), R"({"layer_config": {"1": {"num_attention_heads": 16}}})"));
  CHECK(follows.layers[0].head_dim == 64);
  CHECK(follows.layers[1].head_dim == 128);
  check_round_trip(follows);
  const Config mix = parsed(patched(
      mixtral(),
      R"({"sliding_window": 9, "layer_config": {"0": {"num_local_experts": 3, "intermediate_size": 7}}})"));
  CHECK(mix.layers[0].n_routed_experts == 3);
  CHECK(mix.layers[0].moe_intermediate_size == 7);
  CHECK(mix.sliding_window == 9);
  check_round_trip(mix);
}
