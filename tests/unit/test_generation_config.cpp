// generation_config.json: what the released files say, and what is refused.
#include <doctest/doctest.h>

#include "tests/unit/advice.h"
#include "text/generation_config.h"

using namespace dsv3;
using lite::Code;

namespace {

GenerationConfig read(const std::string& text) {
  auto config = read_generation_config(text);
  REQUIRE_MESSAGE(config.ok(), config.status().message());
  return std::move(*config);
}

void refused(const std::string& text, Code code, const std::string& part) {
  const auto config = read_generation_config(text);
  REQUIRE(!config.ok());
  CHECK(config.status().code() == code);
  CHECK_MESSAGE(config.status().message().starts_with("read generation_config.json: "),
                config.status().message());
  CHECK_MESSAGE(config.status().message().find(part) != std::string::npos, config.status().message());
  CHECK_MESSAGE(has_advice(config.status().message()), config.status().message());
}

}  // namespace

TEST_CASE("generation_config.json: end tokens and sampling") {
  const GenerationConfig v3 = read(R"({"_from_model_config": true, "bos_token_id": 0, "eos_token_id": 1,
    "do_sample": true, "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.46.3"})");
  CHECK(v3.end_ids == std::vector<int32_t>{1});
  CHECK(v3.sampling.temperature == 0.6);
  CHECK(v3.sampling.top_p == 0.95);
  CHECK(v3.sampling.top_k == 0);

  const GenerationConfig qwen = read(R"({"do_sample": true, "eos_token_id": [151645, 151643], "top_k": 20,
    "repetition_penalty": 1.05, "min_p": 0, "typical_p": 0.9})");
  CHECK(qwen.end_ids == std::vector<int32_t>{151645, 151643});
  CHECK(qwen.sampling.temperature == 1);
  CHECK(qwen.sampling.top_k == 20);
  CHECK(qwen.sampling.repetition_penalty == 1.05);
  CHECK(qwen.sampling.typical_p == 0.9);

  // Greedy: only the penalty counts. Null is absent, -1 is none, and so is a top_k below 0.
  const GenerationConfig greedy = read(R"({"eos_token_id": [-1, null], "temperature": 0.7, "top_p": null,
    "repetition_penalty": 1.1})");
  CHECK(greedy.end_ids.empty());
  CHECK(greedy.sampling.temperature == 0);
  CHECK(greedy.sampling.repetition_penalty == 1.1);
  CHECK(read(R"({"eos_token_id": null, "do_sample": true, "top_k": -1})").sampling.top_k == 0);
  CHECK(read("{}").sampling.temperature == 0);
}

TEST_CASE("generation_config.json: what is refused") {
  refused("", Code::Corrupt, "not valid JSON");
  refused("[]", Code::Corrupt, "got a list, expected an object");
  refused(R"({"eos_token_id": "x"})", Code::Corrupt, "eos_token_id: got a string, expected a token id");
  refused(R"({"eos_token_id": [1, 2.5]})", Code::Corrupt, "eos_token_id: got a number");
  refused(R"({"eos_token_id": 2147483648})", Code::Corrupt, "2147483648 is no token id");
  refused(R"({"do_sample": 1})", Code::Corrupt, "do_sample: got an integer");
  for (const char* key : {"temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "top_k"})
    for (const char* sample : {"true", "false"})  // also where it would not be used
      refused(lite::str("{\"do_sample\": ", sample, ", \"", key, "\": \"x\"}"), Code::Corrupt,
              lite::str(key, ": got a string"));
  refused(R"({"top_k": 1.5})", Code::Corrupt, "top_k: got a number, expected an integer");
  refused(R"({"do_sample": true, "top_p": 1.5})", Code::InvalidArgument, "top_p");
  refused(R"({"do_sample": true, "temperature": -1})", Code::InvalidArgument, "temperature");
  refused(R"({"repetition_penalty": 0})", Code::InvalidArgument, "repetition_penalty");
}
