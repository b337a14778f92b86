// What config.json means.
#include <cmath>
#include <numbers>

#include "tests/unit/config_samples.h"

using namespace config_test;
using lite::Code;

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
  const std::vector<Refused> cases = {
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
  all_refused(small(), cases);
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
