// What the two tokenizer targets do with a tokenizer that opened: every text is encoded and decoded.
#pragma once

#include "tests/fuzz/fuzz.h"
#include "text/tokenizer.h"

namespace fuzz {

inline void use(const dsv3::Tokenizer& tokenizer) {
  static const std::string texts[] = {"", "Hello  world 123\n",
                                      "\xff\xc3(\xe4\xb8\xad\xe6\x96\x87 <|x|><\xef\xbd\x9cUser",
                                      std::string(100, 'a') + " \t\r\n's"};
  for (const std::string& text : texts)
    for (const bool parse_added : {false, true}) {
      std::vector<int32_t> ids;
      const lite::Status status = tokenizer.encode(text, {.parse_added = parse_added}, &ids);
      check(status);
      if (!status.ok()) continue;
      for (const int32_t id : ids) require(tokenizer.is_token(id), "every id names a token");
      // Normalizers and decoders change texts; without any it comes back as it was (the goldens pin the others).
      require(tokenizer.decode(ids, {}).ok(), "what was encoded is decoded");
    }
  if (tokenizer.bos() >= 0) require(tokenizer.is_token(tokenizer.bos()), "bos is a token");
  for (const int32_t id : tokenizer.eos()) require(tokenizer.is_token(id), "eos is a token");
}

// A tokenizer of the files given: up to two, by name.
inline void open(std::string_view name, std::string_view text, std::string_view config) {
  const auto tokenizer = dsv3::Tokenizer::open([&](std::string_view wanted) -> const std::string_view* {
    if (wanted == name) return &text;
    return wanted == "tokenizer_config.json" && !config.empty() ? &config : nullptr;
  });
  check(tokenizer.status());
  if (tokenizer.ok()) use(*tokenizer);
}

}  // namespace fuzz
