// Text to token ids and back, as the checkpoint's own tokenizer does it.
//
// BPE over bytes or characters read from tokenizer.json, or tiktoken ranks (tiktoken.model with Kimi's
// pattern). Text is bytes; it need not be valid UTF-8 to be encoded: bytes that are not are encoded one by
// one. decode() gives the same bytes back where the tokenizer has no normalizer that changes them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/status.h"
#include "text/span.h"

namespace dsv3 {

using lite::Result;
using lite::Status;

struct EncodeOptions {
  bool parse_added =
      false;         // cut out the added tokens ("<|User|>") before anything else; else they are plain text
  bool bos = false;  // put the beginning-of-sentence token in front
};

struct DecodeOptions {
  bool skip_special = false;  // leave special tokens out
  bool continues = false;     // the ids go on from others: keep the space that a text's first token loses
};

class Tokenizer {
 public:
  // Gives the bytes of a file of the checkpoint, or null: "tokenizer.json", "tokenizer_config.json",
  // "tiktoken.model".
  using Files = std::function<const std::string_view*(std::string_view name)>;

  // NotFound when there is no tokenizer among the files; Unsupported, by name, for anything a tokenizer.json
  // asks for that is not implemented.
  static Result<Tokenizer> open(const Files& files);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // One more than the largest id; ids below it that name no token exist in some vocabularies.
  int32_t size() const;
  bool is_token(int32_t id) const;
  int32_t bos() const;    // -1: none
  bool adds_bos() const;  // the checkpoint's own rule (add_bos_token, post_processor) for plain text
  // Ids named as end of sentence by the tokenizer's files; generation_config may name more.
  const std::vector<int32_t>& eos() const;
  bool is_special(int32_t id) const;         // an added token that visible text leaves out
  std::string_view bytes(int32_t id) const;  // empty for an id that names no token
  // Id of an added token by its text, or else of the token with these bytes. NotFound.
  Result<int32_t> find(std::string_view token) const;

  // Replaces *ids; empty on failure. Thread-safe. Time is linear in the text up to a logarithm, whatever the
  // text. Bytes for which the vocabulary has no token are InvalidArgument; a released vocabulary has all that
  // UTF-8 can have.
  // *places, if wanted: for each id the bytes of `text` that it comes from. What a normalizer composes comes from all
  // that it composes, what it puts in front from the first character; the beginning-of-sentence token is 0..0. An id
  // may be part of a character.
  Status encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>* ids,
                std::vector<TextSpan>* places = nullptr) const;
  // The same for a text of which only some spans are trusted: an added token is recognised where a span holds
  // all of it, and nowhere else, so that no user can write "<|User|>". (The model's token for what it does not
  // know, which controls nothing, is recognised in any text, as the reference does it.) Spans ascend and do not
  // overlap (InvalidArgument); touching ones are one. Text is merged across their borders like any other.
  Status encode_spans(std::string_view text, std::span<const TextSpan> trusted, std::vector<int32_t>* ids,
                      std::vector<TextSpan>* places = nullptr) const;
  // The tokens' bytes one after the other. An id below size() that names no token gives nothing, one outside
  // 0..size()-1 InvalidArgument.
  Result<std::string> decode(std::span<const int32_t> ids, const DecodeOptions& options) const;

 private:
  Tokenizer();
  static Result<Tokenizer> read(const Files& files);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// How many leading bytes of `bytes` can be shown now: everything but an incomplete UTF-8 sequence at the end
// that more bytes may complete. Bytes that no sequence can hold are not waited for.
size_t utf8_complete_prefix(std::string_view bytes);

}  // namespace dsv3
