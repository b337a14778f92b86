// ggml-lite/json: any bytes. What it takes, it writes and reads back the same.
#include "ggml-lite/json.h"

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto json = lite::Json::parse(fuzz::text_of(data, size), "input");
  fuzz::check(json.status());
  if (!json.ok()) return 0;
  const std::string text = json->dump();
  const auto again = lite::Json::parse(text, "dump");
  fuzz::require(again.ok(), "what is written can be read");
  fuzz::require(again->dump() == text, "what is written reads back the same");
  return 0;
}
