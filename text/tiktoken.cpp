// tiktoken.model: one token a line, base64, with its rank, which is also its id. Two tokens merge if their
// bytes together are a token, lowest rank first; a piece that is a token is that token. The released models
// that come so, Kimi-K2 and Moonlight, keep the rest in Python code (tokenization_kimi.py,
// tokenization_moonshot.py), which this file follows.
#include <algorithm>
#include <charconv>
#include <optional>

#include "text/definition.h"
#include "text/json_fields.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

namespace {

// pat_str of TikTokenTokenizer.
constexpr const char* kKimiPattern =
    R"([\p{Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Standard alphabet, padded; nothing if it is not that.
std::optional<std::string> base64_decode(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  std::string out;
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    uint32_t value = 0;
    if (c >= 'A' && c <= 'Z')
      value = uint32_t(c - 'A');
    else if (c >= 'a' && c <= 'z')
      value = uint32_t(c - 'a' + 26);
    else if (c >= '0' && c <= '9')
      value = uint32_t(c - '0' + 52);
    else if (c == '+' || c == '/')
      value = c == '+' ? 62 : 63;
    else if (i < text.size() - padding)
      return std::nullopt;
    bits = bits << 6 | value;
    if (i % 4 == 3) {
      out += {char(bits >> 16), char(bits >> 8), char(bits)};
      bits = 0;
    }
  }
  out.resize(out.size() - padding);
  return out;
}

// Tokens by rank. Ranks must be 0..n-1: added tokens begin at n.
Result<std::vector<std::string>> read_ranks(std::string_view text) {
  if (text.empty()) return lite::corrupt("is empty");
  std::vector<std::string> tokens(size_t(std::count(text.begin(), text.end(), '\n')) + !text.ends_with('\n'));
  for (size_t line = 1; !text.empty(); ++line) {
    const std::string_view row = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(row.size() + 1, text.size()));
    const size_t space = std::min(row.find(' '), row.size());
    const std::optional<std::string> token = base64_decode(row.substr(0, space));
    if (!token) return lite::corrupt("line ", line, ": no base64 in front of a space");
    const std::string_view digits = row.substr(std::min(space + 1, row.size()));
    const char* const end = digits.data() + digits.size();
    size_t rank = 0;
    const auto [parsed, error] = std::from_chars(digits.data(), end, rank);
    if (error != std::errc() || parsed != end)
      return lite::corrupt("line ", line, ": no rank after the token");
    if (rank >= tokens.size())
      return lite::corrupt("line ", line, ": rank ", rank, " in a file of ", tokens.size(), " tokens");
    if (!tokens[rank].empty()) return lite::corrupt("line ", line, ": rank ", rank, " appears twice");
    tokens[rank] = *token;
  }
  return tokens;
}

// The ids behind the ranks are added tokens with the names that added_tokens_decoder gives; those it leaves
// out in between are "<|reserved_token_ID|>". The Python code reserves 256 ids (Moonlight's 258, two of them
// beyond its embedding), and the released files name the last: so the last one named ends the vocabulary
// here.
Result<std::vector<AddedToken>> read_added(const Json& decoder, size_t n_ranks) {
  std::vector<AddedToken> named;
  if (decoder.is_null()) return named;
  if (!decoder.object()) return lite::corrupt("got ", decoder.type_name(), ", expected an object");
  for (const auto& [key, value] : *decoder.object()) {
    int32_t id = 0;
    const auto [parsed, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || parsed != key.data() + key.size() || id < 0)
      return lite::corrupt(quoted(key), " is not an id");
    constexpr size_t kReserved = 258;
    if (size_t(id) < n_ranks || size_t(id) >= n_ranks + kReserved)
      return lite::corrupt("id ", id, " is not one of the ", kReserved, " after the ", n_ranks,
                           " tokens of tiktoken.model");
    LITE_ASSIGN(AddedToken token, read_added_token(value));
    if (token.lstrip || token.rstrip || token.single_word)
      return lite::unsupported(quoted(token.text), " with lstrip, rstrip or single_word: tiktoken has none");
    token.id = id;
    token.normalized = false;
    named.push_back(std::move(token));
  }
  std::sort(named.begin(), named.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  std::vector<AddedToken> added;
  for (AddedToken& token : named) {
    for (int32_t id = int32_t(n_ranks + added.size()); id < token.id; ++id)
      added.push_back({.id = id, .text = lite::str("<|reserved_token_", id, "|>"), .special = true});
    if (!added.empty() && added.back().id == token.id)
      return lite::corrupt("id ", token.id, " appears twice");
    added.push_back(std::move(token));
  }
  LITE_TRY(check_distinct(added));
  return added;
}

// A token forms by merging only from the two parts that are left when its own bytes are merged by all lower
// ranks; with more than two left it never does.
Status derive_merges(const std::vector<std::string>& tokens, Bpe* bpe) {
  std::vector<Bpe::Token> parts;
  for (size_t rank = 0; rank < tokens.size(); ++rank) {
    if (tokens[rank].size() == 1) continue;
    if (!bpe->encode(tokens[rank], &parts).ok())
      return lite::corrupt("rank ", rank, " has a byte that is no token");
    if (parts.size() == 2) LITE_TRY(bpe->add_merge(parts[0].id, parts[1].id, int32_t(rank)));
  }
  return {};
}

}  // namespace

Result<TokenizerDefinition> read_tiktoken(std::string_view ranks, const Json& config) {
  const Json& tokenizer_class = field(config, "tokenizer_class");
  if (!tokenizer_class.is_null() &&
      (!tokenizer_class.string() || *tokenizer_class.string() != "TikTokenTokenizer"))
    return lite::unsupported("tiktoken.model of tokenizer_class ", tokenizer_class.dump(),
                             ", only \"TikTokenTokenizer\", whose pattern is known");
  Result<std::vector<std::string>> tokens = read_ranks(ranks);
  if (!tokens.ok()) return tokens.status().in("tiktoken.model");
  Result<std::vector<AddedToken>> added = read_added(field(config, "added_tokens_decoder"), tokens->size());
  if (!added.ok()) return added.status().in("tokenizer_config.json: added_tokens_decoder");
  LITE_ASSIGN(PreTokenizer pre_tokenizer, PreTokenizer::split_by(kKimiPattern));

  TokenizerDefinition out{.vocabulary = Vocabulary(tokens->size() + added->size()),
                          .bpe = Bpe(tokens->size()),
                          .normalizer = {},
                          .pre_tokenizer = std::move(pre_tokenizer),
                          .decoder = {},
                          .whole_pieces = true,
                          .added = std::move(*added)};
  for (size_t rank = 0; rank < tokens->size(); ++rank) {
    const std::string& token = (*tokens)[rank];
    LITE_TRY(out.vocabulary.add(int64_t(rank), token, true).in("tiktoken.model"));
    if (token.size() == 1) out.bpe.set_byte(uint8_t(token[0]), int32_t(rank));
  }
  LITE_TRY(derive_merges(*tokens, &out.bpe).in("tiktoken.model"));
  for (const AddedToken& token : out.added) {
    LITE_TRY(
        out.vocabulary.add(token.id, token.text, false).in("tokenizer_config.json: " + quoted(token.text)));
    if (token.special) out.vocabulary.set_special(token.id);
  }
  return out;
}

}  // namespace dsv3
