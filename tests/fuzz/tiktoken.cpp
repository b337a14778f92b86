// text/tiktoken: tiktoken.model, and after a zero byte tokenizer_config.json.
#include "tests/fuzz/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view config = fuzz::text_of(data, size);
  const std::string_view ranks = fuzz::take_up_to('\0', &config);
  fuzz::open("tiktoken.model", ranks, config);
  return 0;
}
