#include "text/tokenizer.h"

#include <algorithm>
#include <map>

#include "text/definition.h"
#include "text/json_fields.h"
#include "text/utf8.h"

namespace dsv3 {

using lite::Json;

namespace {

// A stretch of the text between added tokens.
struct Part {
  std::string_view text;
  TextSpans trusted;
  bool first;        // nothing is before it
  size_t begin = 0;  // in the text that was given
  std::span<const TextSpan> source =
      {};  // of each byte, if it is not the byte at the same distance from `begin`

  // Where its bytes from..to-1 come from.
  TextSpan place(size_t from, size_t to) const {
    if (source.empty() || from == to) return {begin + from, begin + to};
    return {source[from].begin, source[to - 1].end};
  }
};

Part part_of(const Part& whole, size_t begin, size_t end) {
  Part out{whole.text.substr(begin, end - begin), {}, whole.first && begin == 0};
  if (whole.source.empty())
    out.begin = whole.begin + begin;
  else
    out.source = whole.source.subspan(begin, end - begin);
  auto s = std::upper_bound(whole.trusted.begin(), whole.trusted.end(), begin,
                            [](size_t at, const TextSpan& span) { return at < span.end; });
  for (; s != whole.trusted.end() && s->begin < end; ++s)
    out.trusted.push_back({std::max(s->begin, begin) - begin, std::min(s->end, end) - begin});
  return out;
}

// The text of a part for what rewrites it.
MarkedText marked(const Part& part, bool with_source) {
  MarkedText out{std::string(part.text), part.trusted};
  if (with_source)
    for (size_t i = 0; i < part.text.size(); ++i) out.source.push_back(part.place(i, i + 1));
  return out;
}

// What an encoding gives: ids, and where they come from if that is wanted.
struct Encoded {
  std::vector<int32_t>* ids;
  std::vector<TextSpan>* places;  // or null

  void add(int32_t id, const TextSpan& place) const {
    ids->push_back(id);
    if (places) places->push_back(place);
  }
};

// The spans without empty ones, touching ones as one.
Result<TextSpans> merged(std::span<const TextSpan> spans, size_t size) {
  TextSpans out;
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
  // what is left, normalized, those that it looks for in normalized text, normalized like it.
  AddedTokenSet exact, normalized;
  std::map<std::string, int32_t, std::less<>> added_id;
  int32_t bos = -1;
  bool adds_bos = false;
  std::vector<int32_t> eos;

  explicit Impl(TokenizerDefinition d) : definition(std::move(d)), bos(definition.beginning) {
    std::vector<AddedToken> as_given;
    std::map<std::string, AddedToken> by_normal_text;
    for (const AddedToken& token : definition.added) {
      added_id.emplace(token.text, token.id);
      if (!token.normalized) {
        as_given.push_back(token);
        continue;
      }
      AddedToken normal = token;
      normal.text = definition.normalizer.apply({token.text, {}}).text;
      if (!normal.text.empty()) by_normal_text.emplace(normal.text, normal);
    }
    exact = AddedTokenSet(std::move(as_given));
    std::vector<AddedToken> normal;
    for (auto& [text, token] : by_normal_text) normal.push_back(std::move(token));
    normalized = AddedTokenSet(std::move(normal));
  }

  int32_t find(std::string_view token) const {
    const auto added = added_id.find(token);
    return added != added_id.end() ? added->second : definition.vocabulary.find(token);
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
    LITE_ASSIGN(const int32_t named_bos, named_token(config, "bos_token"));
    if (named_bos >= 0) bos = named_bos;
    LITE_ASSIGN(const int32_t end, named_token(config, "eos_token"));
    if (end >= 0) eos.push_back(end);
    // transformers' LlamaTokenizer(Fast), the class of the DeepSeek and Mixtral models, adds it unless told
    // otherwise (add_bos_token=True in its constructor); others do what the post-processor says.
    const std::string* name = field(config, "tokenizer_class").string();
    const bool llama = name && (*name == "LlamaTokenizer" || *name == "LlamaTokenizerFast");
    const bool by_default = definition.beginning >= 0 || (bos >= 0 && llama);
    LITE_ASSIGN(adds_bos, bool_field(config, "add_bos_token", by_default));
    if (adds_bos && bos < 0) return lite::corrupt("add_bos_token without a bos_token");
    if (adds_bos && definition.beginning >= 0 && definition.beginning != bos)
      return lite::corrupt("bos_token is id ", bos, ", but tokenizer.json puts id ", definition.beginning,
                           " before every text");
    LITE_ASSIGN(const bool adds_eos, bool_field(config, "add_eos_token", false));
    if (adds_eos) return lite::unsupported("add_eos_token is not supported");
    return {};
  }

  // A piece of part.text; `tokens` is room for it.
  Status encode_piece(const Part& part, std::string_view piece, std::vector<Bpe::Token>* tokens,
                      const Encoded& out) const {
    size_t at = size_t(piece.data() - part.text.data());
    if (definition.whole_pieces) {
      if (const int32_t id = definition.vocabulary.find(piece); id >= 0) {
        out.add(id, part.place(at, at + piece.size()));
        return {};
      }
    }
    LITE_TRY(definition.bpe.encode(piece, tokens));
    for (const Bpe::Token& token : *tokens) {
      out.add(token.id, part.place(at, at + token.n_bytes));
      at += token.n_bytes;
    }
    return {};
  }

  // Text without added tokens, normalized.
  Status encode_plain(Part part, const MatchTime& time, const Encoded& out) const {
    MarkedText rewritten;
    if (definition.pre_tokenizer.rewrites()) {
      rewritten = definition.pre_tokenizer.rewrite(marked(part, out.places), part.first);
      part.text = rewritten.text;
      part.source = rewritten.source;
    }
    std::vector<Bpe::Token> tokens;
    for (std::string_view text = part.text; !text.empty();) {
      const size_t valid = utf8_valid_prefix(text);
      LITE_ASSIGN(const std::vector<std::string_view> pieces,
                  definition.pre_tokenizer.pieces(text.substr(0, valid), time));
      for (const std::string_view piece : pieces) LITE_TRY(encode_piece(part, piece, &tokens, out));
      text.remove_prefix(valid);
      if (text.empty()) break;
      LITE_TRY(encode_piece(part, text.substr(0, 1), &tokens, out));  // a byte that is not UTF-8
      text.remove_prefix(1);
    }
    return {};
  }

  // Cuts `whole` by the added tokens of `set`; what is between them goes on to `encode_rest`.
  template <class Rest>
  static Status cut(const AddedTokenSet& set, const Part& whole, const Encoded& out, Rest encode_rest) {
    for (size_t at = 0;;) {
      const AddedTokenSet::Match match = set.find(whole.text, whole.trusted, at);
      if (!match.token) return encode_rest(part_of(whole, at, whole.text.size()));
      if (match.begin > at) LITE_TRY(encode_rest(part_of(whole, at, match.begin)));
      out.add(match.token->id, whole.place(match.begin, match.end));
      at = match.end;
    }
  }

  Status encode_normal(const Part& part, const MatchTime& time, const Encoded& out) const {
    return cut(normalized, part, out, [&](const Part& rest) { return encode_plain(rest, time, out); });
  }

  Status encode(const Part& whole, const Encoded& out) const {
    if (whole.text.size() > INT32_MAX)
      return lite::invalid_argument("encode text: ", whole.text.size(), " bytes, at most 2^31-1");
    const MatchTime time(whole.text.size());
    return cut(exact, whole, out, [&](const Part& rest) {
      if (definition.normalizer.does_nothing()) return encode_normal(rest, time, out);
      const MarkedText normal = definition.normalizer.apply(marked(rest, out.places));
      return encode_normal({normal.text, normal.trusted, rest.first, rest.begin, normal.source}, time, out);
    });
  }
};

Tokenizer::Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::open(const Files& files) {
  auto tokenizer = read(files);
  switch (tokenizer.status().code()) {
    case lite::Code::Ok: return tokenizer;
    case lite::Code::Unsupported: return tokenizer.status().with_advice("try a newer version");
    default: return tokenizer.status().with_advice("get the tokenizer's files again");
  }
}

Result<Tokenizer> Tokenizer::read(const Files& files) {
  Json config;
  if (const std::string_view* text = files("tokenizer_config.json")) {
    LITE_ASSIGN(config, Json::parse(*text, "tokenizer_config.json"));
  }
  const auto read = [&]() -> Result<TokenizerDefinition> {
    if (const std::string_view* text = files("tokenizer.json")) {
      LITE_ASSIGN(const Json json, Json::parse(*text, "tokenizer.json"));
      Result<TokenizerDefinition> definition = read_tokenizer_json(json);
      return definition.ok() ? std::move(definition) : definition.status().in("tokenizer.json");
    }
    if (const std::string_view* text = files("tiktoken.model")) {
      Result<TokenizerDefinition> definition = read_tiktoken(*text, config);
      return definition.ok() ? std::move(definition) : definition.status().in("tokenizer");
    }
    return lite::not_found("tokenizer: neither tokenizer.json nor tiktoken.model is there");
  };
  LITE_ASSIGN(TokenizerDefinition definition, read());
  Tokenizer out;
  out.impl_ = std::make_unique<Impl>(std::move(definition));
  LITE_TRY(out.impl_->read_config(config).in("tokenizer_config.json"));
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

Status Tokenizer::encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>* ids,
                         std::vector<TextSpan>* places) const {
  ids->clear();
  if (places) places->clear();
  if (options.bos && impl_->bos < 0)
    return lite::invalid_argument(
        "encode text: asked for a beginning-of-sentence token, the tokenizer has none");
  const TextSpan everything{0, text.size()};
  LITE_TRY(encode_spans(text, {&everything, options.parse_added ? 1u : 0u}, ids, places));
  if (!options.bos) return {};
  ids->insert(ids->begin(), impl_->bos);
  if (places) places->insert(places->begin(), TextSpan{});
  return {};
}

Status Tokenizer::encode_spans(std::string_view text, std::span<const TextSpan> trusted,
                               std::vector<int32_t>* ids, std::vector<TextSpan>* places) const {
  ids->clear();
  if (places) places->clear();
  LITE_ASSIGN(const TextSpans spans, merged(trusted, text.size()));
  const Status status = impl_->encode({text, spans, true}, {ids, places});
  if (!status.ok()) {
    ids->clear();
    if (places) places->clear();
  }
  return status;
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  std::string text;
  std::string_view first;  // token
  for (const int32_t id : ids) {
    if (id < 0 || id >= size())
      return lite::invalid_argument("decode: id ", id, " is not in 0..", size() - 1);
    if (options.skip_special && is_special(id)) continue;
    if (text.empty()) first = impl_->definition.vocabulary.text(id);
    text += bytes(id);
  }
  if (!options.continues) impl_->definition.decoder.strip_beginning(first, &text);
  return text;
}

}  // namespace dsv3
