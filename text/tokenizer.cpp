#include "text/tokenizer.h"

#include <algorithm>

#include "text/definition.h"
#include "text/json_fields.h"
#include "text/utf8.h"

namespace dsv3 {

using lite::Json;

namespace {

using Spans = std::vector<TextSpan>;

// The spans within bytes begin..end-1 of the text, counted from there.
Spans part_of(const Spans& spans, size_t begin, size_t end) {
  Spans out;
  auto s = std::upper_bound(spans.begin(), spans.end(), begin,
                            [](size_t at, const TextSpan& span) { return at < span.end; });
  for (; s != spans.end() && s->begin < end; ++s)
    out.push_back({std::max(s->begin, begin) - begin, std::min(s->end, end) - begin});
  return out;
}

// The spans without empty ones, touching ones as one.
Result<Spans> merged(std::span<const TextSpan> spans, size_t size) {
  Spans out;
  for (size_t i = 0; i < spans.size(); ++i) {
    const TextSpan& s = spans[i];
    if (s.begin > s.end || s.end > size || (i > 0 && s.begin < spans[i - 1].end))
      return lite::invalid_argument("encode text: trusted span ", i, " is bytes ", s.begin, "..", s.end,
                                    " of ", size, "; spans must ascend and not overlap");
    if (s.begin == s.end) continue;
    if (!out.empty() && out.back().end == s.begin)
      out.back().end = s.end;
    else
      out.push_back(s);
  }
  return out;
}

}  // namespace

struct Tokenizer::Impl {
  TokenizerDefinition definition;
  // Hugging Face tokenizers first cuts out the added tokens that it looks for in the text as given, then, in
  // what is left, those that it looks for in normalized text.
  AddedTokenSet exact, normalized;
  int32_t bos = -1;
  bool adds_bos = false;
  std::vector<int32_t> eos;

  explicit Impl(TokenizerDefinition d) : definition(std::move(d)) {
    std::vector<AddedToken> tokens[2];
    for (const AddedToken& token : definition.added) tokens[token.normalized].push_back(token);
    exact = AddedTokenSet(std::move(tokens[0]));
    normalized = AddedTokenSet(std::move(tokens[1]));
  }

  int32_t find(std::string_view token) const {
    if (const int32_t id = exact.id(token); id >= 0) return id;
    if (const int32_t id = normalized.id(token); id >= 0) return id;
    return definition.vocabulary.find(token);
  }

  // The id of "bos_token" or "eos_token": a string, or an object with "content"; -1 if there is none.
  Result<int32_t> named_token(const Json& config, const char* key) const {
    const Json& value = field(config, key);
    if (value.is_null()) return -1;
    const std::string* text = value.object() ? field(value, "content").string() : value.string();
    if (!text)
      return lite::corrupt(key, ": got ", value.type_name(),
                           ", expected a string or an object with \"content\"");
    const int32_t id = find(*text);
    if (id < 0) return lite::corrupt(key, ": ", quoted(*text), " is not a token");
    return id;
  }

  Status read_config(const Json& config) {
    LITE_ASSIGN(bos, named_token(config, "bos_token"));
    LITE_ASSIGN(const int32_t end, named_token(config, "eos_token"));
    if (end >= 0) eos.push_back(end);
    // transformers' LlamaTokenizer(Fast), the class of the DeepSeek models, adds it unless told otherwise
    // (add_bos_token=True in its constructor); the other classes do not.
    const std::string* name = field(config, "tokenizer_class").string();
    const bool by_default = bos >= 0 && name && (*name == "LlamaTokenizer" || *name == "LlamaTokenizerFast");
    LITE_ASSIGN(adds_bos, bool_field(config, "add_bos_token", by_default));
    if (adds_bos && bos < 0) return lite::corrupt("add_bos_token without a bos_token");
    LITE_ASSIGN(const bool adds_eos, bool_field(config, "add_eos_token", false));
    if (adds_eos) return lite::unsupported("add_eos_token is not supported");
    return {};
  }

  Status encode_piece(std::string_view piece, std::vector<int32_t>* ids) const {
    if (definition.whole_pieces) {
      if (const int32_t id = definition.vocabulary.find(piece); id >= 0) {
        ids->push_back(id);
        return {};
      }
    }
    return definition.bpe.encode(piece, ids);
  }

  Status encode_plain(std::string_view text, std::vector<int32_t>* ids) const {
    while (!text.empty()) {
      const size_t valid = utf8_valid_prefix(text);
      LITE_ASSIGN(const std::vector<std::string_view> pieces,
                  definition.pre_tokenizer.pieces(text.substr(0, valid)));
      for (const std::string_view piece : pieces) LITE_TRY(encode_piece(piece, ids));
      text.remove_prefix(valid);
      if (text.empty()) break;
      LITE_TRY(encode_piece(text.substr(0, 1), ids));  // a byte that is not UTF-8
      text.remove_prefix(1);
    }
    return {};
  }

  // Cuts `text` by the added tokens of `set`; what is between them goes on to `encode_rest`.
  template <class Rest>
  static Status cut(const AddedTokenSet& set, std::string_view text, const Spans& trusted,
                    std::vector<int32_t>* ids, Rest encode_rest) {
    const auto rest = [&](size_t begin, size_t end) {
      return encode_rest(text.substr(begin, end - begin), part_of(trusted, begin, end));
    };
    for (size_t at = 0;;) {
      const AddedTokenSet::Match match = set.find(text, trusted, at);
      if (!match.token) return rest(at, text.size());
      LITE_TRY(rest(at, match.begin));
      ids->push_back(match.token->id);
      at = match.begin + match.token->text.size();
    }
  }

  Status encode(std::string_view text, const Spans& trusted, std::vector<int32_t>* ids) const {
    if (text.size() > INT32_MAX)
      return lite::invalid_argument("encode text: ", text.size(), " bytes, at most 2^31-1");
    return cut(exact, text, trusted, ids, [&](std::string_view rest, const Spans& in_rest) {
      return cut(normalized, rest, in_rest, ids,
                 [&](std::string_view plain, const Spans&) { return encode_plain(plain, ids); });
    });
  }
};

Tokenizer::Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::open(const Files& files) {
  Json config;
  if (const std::string_view* text = files("tokenizer_config.json")) {
    LITE_ASSIGN(config, Json::parse(*text, "tokenizer_config.json"));
  }
  const auto read = [&]() -> Result<TokenizerDefinition> {
    if (const std::string_view* text = files("tokenizer.json")) {
      LITE_ASSIGN(const Json json, Json::parse(*text, "tokenizer.json"));
      Result<TokenizerDefinition> definition = read_tokenizer_json(json);
      return definition.ok() ? std::move(definition)
                             : definition.status().in("open tokenizer: tokenizer.json");
    }
    if (const std::string_view* text = files("tiktoken.model")) {
      Result<TokenizerDefinition> definition = read_tiktoken(*text, config);
      return definition.ok() ? std::move(definition) : definition.status().in("open tokenizer");
    }
    return lite::not_found("open tokenizer: neither tokenizer.json nor tiktoken.model is there");
  };
  LITE_ASSIGN(TokenizerDefinition definition, read());
  Tokenizer out;
  out.impl_ = std::make_unique<Impl>(std::move(definition));
  LITE_TRY(out.impl_->read_config(config).in("open tokenizer: tokenizer_config.json"));
  return out;
}

int32_t Tokenizer::size() const {
  return impl_->definition.vocabulary.size();
}
bool Tokenizer::is_token(int32_t id) const {
  return impl_->definition.vocabulary.contains(id);
}
int32_t Tokenizer::bos() const {
  return impl_->bos;
}
bool Tokenizer::adds_bos() const {
  return impl_->adds_bos;
}
const std::vector<int32_t>& Tokenizer::eos() const {
  return impl_->eos;
}
bool Tokenizer::is_special(int32_t id) const {
  return impl_->definition.vocabulary.is_special(id);
}
std::string_view Tokenizer::bytes(int32_t id) const {
  return impl_->definition.vocabulary.bytes(id);
}

Result<int32_t> Tokenizer::find(std::string_view token) const {
  const int32_t id = impl_->find(token);
  if (id < 0) return lite::not_found("find token: ", quoted(token), " is not in the vocabulary");
  return id;
}

Status Tokenizer::encode(std::string_view text, const EncodeOptions& options,
                         std::vector<int32_t>* ids) const {
  ids->clear();
  if (options.bos && impl_->bos < 0)
    return lite::invalid_argument(
        "encode text: asked for a beginning-of-sentence token, the tokenizer has none");
  const TextSpan everything{0, text.size()};
  LITE_TRY(encode_spans(text, {&everything, options.parse_added ? 1u : 0u}, ids));
  if (options.bos) ids->insert(ids->begin(), impl_->bos);
  return {};
}

Status Tokenizer::encode_spans(std::string_view text, std::span<const TextSpan> trusted,
                               std::vector<int32_t>* ids) const {
  ids->clear();
  LITE_ASSIGN(const Spans spans, merged(trusted, text.size()));
  const Status status = impl_->encode(text, spans, ids);
  if (!status.ok()) ids->clear();
  return status;
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  for (const int32_t id : ids) {
    if (id < 0 || id >= size())
      return lite::invalid_argument("decode: id ", id, " is not in 0..", size() - 1);
    if (!(skip_special && is_special(id))) text += bytes(id);
  }
  return text;
}

}  // namespace dsv3
