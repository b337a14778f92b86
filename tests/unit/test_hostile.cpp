// Files that ask for much: opening one takes time and memory in proportion to its size, whatever its words say.
#include <doctest/doctest.h>
#include <ctime>

#include "model/model.h"
#include "tests/unit/pack_sample.h"
#include "tests/unit/temp_dir.h"
#include "text/tokenizer.h"

using namespace pack_test;

namespace {

double processor_seconds() {
  return double(std::clock()) / CLOCKS_PER_SEC;
}

Json small_config() {
  const auto json = Json::parse(R"({"model_type": "deepseek_v3", "vocab_size": 8, "hidden_size": 4,
    "intermediate_size": 4, "moe_intermediate_size": 4, "num_hidden_layers": 2, "num_attention_heads": 1,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0,
    "q_lora_rank": null, "kv_lora_rank": 4, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2, "v_head_dim": 2,
    "max_position_embeddings": 64})",
                                "config");
  REQUIRE_MESSAGE(json.ok(), json.status().message());
  return *json;
}

std::string vocabulary_text(const std::vector<std::string>& tokens) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) text += str(i ? ",\"" : "\"", tokens[i], "\":", i);
  return text;
}

dsv3::Result<dsv3::Tokenizer> open_tokenizer(const std::string& vocab, const std::string& merges,
                                             const std::string& added) {
  const std::string text =
      str(R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":false},)"
          R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)",
          vocab, R"(},"merges":[)", merges, R"(]},"added_tokens":[)", added, "]}");
  const std::string_view view = text;
  return dsv3::Tokenizer::open(
      [&](std::string_view name) { return name == "tokenizer.json" ? &view : nullptr; });
}

}  // namespace

TEST_CASE("hostile: a model with a section of unknown name") {
  TempDir dir;
  std::mt19937_64 random(2);
  Content content;
  content.json.set("config", small_config());
  content.sections.push_back({"run_me.py", "import os"});
  content.add({entry("model.embed_tokens.weight", DType::F32, {8, 4})}, random);
  REQUIRE(content.write(dir / "m").ok());
  const Status status = dsv3::Model::open(dir / "m").status();
  CHECK(status.code() == Code::Unsupported);
  CHECK_MESSAGE(status.message().find("section \"run_me.py\"") != std::string::npos, status.message());
}

TEST_CASE("hostile: a packed file's configuration asks for more than the file has") {
  TempDir dir;
  std::mt19937_64 random(1);
  const auto open_with = [&](const char* key, int64_t value) {
    Json config = small_config();
    config.set(key, value);
    Content content;
    content.json.set("config", config);
    content.add({entry("model.embed_tokens.weight", DType::F32, {8, 4})}, random);
    REQUIRE(content.write(dir / "m").ok());
    const double begin = processor_seconds();
    const Status status = dsv3::Model::open(dir / "m").status();
    CHECK(processor_seconds() - begin < 2);
    return status;
  };
  CHECK(open_with("num_hidden_layers", 1000)
            .message()
            .find("it holds 1 tensors, but its configuration asks for at") != std::string::npos);
  CHECK(open_with("n_routed_experts", 50000).message().find("asks for at least 200002") != std::string::npos);
  for (const int64_t value : {int64_t(1'000'000'000), INT64_MAX, int64_t(0), int64_t(-1)})
    for (const char* key : {"num_hidden_layers", "n_routed_experts", "vocab_size", "qk_rope_head_dim"}) {
      CAPTURE(key);
      CAPTURE(value);
      CHECK(!open_with(key, value).ok());
    }
}

TEST_CASE("hostile: a packed file whose tensors are not its configuration's") {
  TempDir dir;
  const Json config = small_config();
  const auto parsed = dsv3::Config::parse(config);
  REQUIRE(parsed.ok());
  const auto open_with = [&](const std::string& name, auto&& change) {
    std::mt19937_64 random(1);
    Content content;
    content.json.set("config", config);
    for (const dsv3::TensorInfo& info : dsv3::tensor_table(*parsed)) {
      PackEntry e = entry(info.name, DType::BF16, info.shape);
      if (info.name == name) change(&e);
      content.add({e}, random);
    }
    REQUIRE(content.write(dir / "m").ok());
    return dsv3::Model::open(dir / "m").status();
  };
  const std::string norm = "model.norm.weight", begin = "open " + (dir / "m") + ": tensor \"" + norm + "\"";
  CHECK(open_with("", [](PackEntry*) {}).ok());
  struct {
    std::function<void(PackEntry*)> change;
    std::string expected;
  } const cases[] = {
      {[](PackEntry* e) { e->name = "model.norm"; }, " is missing; convert the checkpoint again"},
      {[](PackEntry* e) {
         e->shape = {3, 2};
       },
       ": got shape [3, 2], expected [4]; convert again"},
      {[](PackEntry* e) { e->dtype = DType::I32; }, ": got type I32, expected a float type; convert again"},
  };
  for (const auto& c : cases) {
    const Status status = open_with(norm, c.change);
    CHECK(status.code() == Code::Corrupt);
    CHECK(status.message() == begin + c.expected);
  }
}

TEST_CASE("a table of 92,000 tensors opens in under 100 ms: nothing in it is quadratic") {
  TempDir dir;
  Json config = small_config();
  config.set("num_hidden_layers", 60);
  config.set("n_routed_experts", 512);
  const auto parsed = dsv3::Config::parse(config);
  REQUIRE_MESSAGE(parsed.ok(), parsed.status().message());
  std::mt19937_64 random(1);
  std::vector<PackEntry> tensors;
  for (const dsv3::TensorInfo& info : dsv3::tensor_table(*parsed))
    tensors.push_back(entry(info.name, DType::BF16, info.shape));
  CHECK(tensors.size() > 92'000);
  Content content;
  content.json.set("config", config);
  for (size_t i = 0; i < tensors.size(); i += 100)
    content.add({tensors.begin() + long(i), tensors.begin() + long(std::min(i + 100, tensors.size()))},
                random);
  REQUIRE(content.write(dir / "m").ok());
  // The best of some, as other programs run beside this one.
  double file = 1e9, model = 1e9;
  for (int i = 0; i < 5; ++i) {
    double begin = processor_seconds();
    REQUIRE(PackFile::open(dir / "m").ok());
    file = std::min(file, processor_seconds() - begin);
    begin = processor_seconds();
    REQUIRE(dsv3::Model::open(dir / "m").ok());
    model = std::min(model, processor_seconds() - begin);
  }
  CAPTURE(file);
  CAPTURE(model);
  CHECK(file < 0.1);
  CHECK(model < 0.2);
}

TEST_CASE("hostile: tokenizers with very many merges and added tokens") {
  std::vector<std::string> tokens;
  std::string merges, added;
  for (char c = 'a'; c <= 'z'; ++c) tokens.push_back({c});
  for (size_t i = 0; tokens.size() < 50'000; ++i)  // every token with every letter behind it
    for (char c = 'a'; c <= 'z'; ++c) {
      merges += str(merges.empty() ? "[\"" : ",[\"", tokens[i], "\",\"", c, "\"]");
      tokens.push_back(tokens[i] + c);
    }
  const std::string vocab = vocabulary_text(tokens), prefix(990, '<');
  for (int i = 0; i < 2000; ++i)
    added += str(i ? "," : "", "{\"id\":", 50'100 + i, ",\"content\":\"", prefix, i, "\"}");
  const double begin = processor_seconds();
  const auto tokenizer = open_tokenizer(vocab, merges, added);
  REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.status().message());
  CHECK(processor_seconds() - begin < 60);

  std::vector<int32_t> ids;
  const double encoding = processor_seconds();
  CHECK(tokenizer->encode(std::string(200'000, 'a'), {.parse_added = true}, &ids).ok());
  CHECK(tokenizer->encode(std::string(10'000, '<'), {.parse_added = true}, &ids).code() ==
        Code::InvalidArgument);
  CHECK(processor_seconds() - encoding < 60);
  const std::string twice = str(",[\"a\",\"a\"]");
  CHECK(open_tokenizer(vocab, merges + twice, "").status().message().find("the same pair as merge 0") !=
        std::string::npos);
}
