// What a checkpoint's tokenizer files say, in whichever of the two formats they are.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/json.h"
#include "ggml-lite/status.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/vocabulary.h"

namespace dsv3 {

struct TokenizerDefinition {
  Vocabulary vocabulary;
  Bpe bpe;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Decoder decoder;
  bool whole_pieces = false;      // a piece that is a token is that token, whatever the merges
  std::vector<AddedToken> added;  // in the vocabulary too
  int32_t beginning = -1;         // the token that the post-processor puts before every text; -1: none
};

// tokenizer.json of Hugging Face tokenizers.
lite::Result<TokenizerDefinition> read_tokenizer_json(const lite::Json& json);

// tiktoken.model with the added tokens of tokenizer_config.json: Kimi-K2, Moonlight.
lite::Result<TokenizerDefinition> read_tiktoken(std::string_view ranks, const lite::Json& config);

// An added token as both formats write it: {"content", "special", ...}.
lite::Result<AddedToken> read_added_token(const lite::Json& json);
// Corrupt if two have the same text.
lite::Status check_distinct(const std::vector<AddedToken>& added);

}  // namespace dsv3
