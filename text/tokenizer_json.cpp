// tokenizer.json: BPE over bytes or over characters. Its parts, and what is taken from each:
//   added_tokens          all of them
//   normalizer            normalizer.cpp
//   pre_tokenizer         pretokenizer.cpp
//   model                 vocab and merges; written as they are, or, where the pre-tokenizer ends with
//                         ByteLevel, in an alphabet of printable characters that stand for bytes
//   post_processor        the token that it puts before every text
//   decoder               decoder.cpp
//   truncation, padding   not read: they are settings of a batch call and have no say in what tokens a text has
// Whatever else could change what tokens a text has is refused by name.
#include <algorithm>
#include <array>
#include <optional>

#include "text/definition.h"
#include "text/json_fields.h"
#include "text/utf8.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;

namespace {

// GPT-2's alphabet: the bytes that are printable in Latin-1 stand for themselves, the other 68, in order, are
// U+0100 on.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    for (int b = 0, next = 0x100; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      byte_of_[size_t(printable ? b : next++)] = b;
    }
  }
  // The bytes that `text`, valid UTF-8, stands for; nothing if it has a character that stands for none.
  std::optional<std::string> bytes(std::string_view text) const {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const Decoded d = utf8_decode_valid(&text[at]);
      if (d.code_point >= byte_of_.size() || byte_of_[d.code_point] < 0) return std::nullopt;
      out += char(byte_of_[d.code_point]);
      at += d.length;
    }
    return out;
  }

 private:
  std::array<int, 0x100 + 68> byte_of_;
};

// The one token that a template puts before the text, "<s> $A"; -1 for none. Other templates are Unsupported.
Result<int32_t> read_template(const Json& json) {
  LITE_TRY(only_fields(json, {"type", "single", "pair", "special_tokens"}));
  LITE_ASSIGN(const Json::Array* single, list_field(json, "single"));
  if (single->empty() || single->size() > 2 ||
      field(field(single->back(), "Sequence"), "id").dump() != "\"A\"")
    return lite::unsupported("single: ", quoted(field(json, "single").dump()),
                             " is neither the text alone nor one token and the text");
  if (single->size() == 1) return -1;
  Result<std::string> name = string_field(field(single->front(), "SpecialToken"), "id");
  if (!name.ok()) return name.status().in("single: SpecialToken");
  const Json& ids = field(field(field(json, "special_tokens"), *name), "ids");
  if (!ids.array() || ids.array()->size() != 1 || !ids.array()->front().integer())
    return lite::corrupt("special_tokens: ", quoted(*name), ": ids: got ", quoted(ids.dump()),
                         ", expected a list of one id");
  const int64_t id = *ids.array()->front().integer();
  if (id < 0 || id > INT32_MAX) return lite::corrupt("special_tokens: id ", id, " is not in 0..2^31-1");
  return int32_t(id);
}

// ByteLevel adds nothing to the ids, TemplateProcessing a beginning.
Result<int32_t> read_post_processor(const Json& json) {
  LITE_ASSIGN(const std::string type, type_of(json));
  if (type == "null") return -1;
  if (type == "ByteLevel") {
    LITE_TRY(only_fields(json, {"type", "add_prefix_space", "trim_offsets", "use_regex"}).in(type));
    return -1;
  }
  if (type == "TemplateProcessing") {
    Result<int32_t> beginning = read_template(json);
    return beginning.ok() ? std::move(beginning) : beginning.status().in(type);
  }
  if (type != "Sequence")
    return lite::unsupported(type,
                             " is not supported; supported are Sequence, ByteLevel, TemplateProcessing");
  LITE_TRY(only_fields(json, {"type", "processors"}));
  LITE_ASSIGN(const Json::Array* steps, list_field(json, "processors"));
  int32_t beginning = -1;
  for (const Json& step : *steps) {
    const Json& step_type = field(step, "type");
    if (step_type.string() && *step_type.string() == "Sequence")
      return lite::unsupported("a Sequence inside a Sequence");
    LITE_ASSIGN(const int32_t id, read_post_processor(step));
    if (id >= 0 && beginning >= 0) return lite::unsupported("two tokens before every text");
    beginning = std::max(beginning, id);
  }
  return beginning;
}

// What a BPE model may ask for beyond vocabulary and merges.
struct ModelOptions {
  std::string unknown;  // empty: none
  bool fuse_unknown = false, byte_fallback = false, ignore_merges = false;
};

Result<ModelOptions> read_model_options(const Json& model) {
  LITE_TRY(
      only_fields(model, {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                          "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  const std::string* type = field(model, "type").string();
  if (!type || *type != "BPE")
    return lite::unsupported("type ", field(model, "type").dump(), ", only \"BPE\"");
  double dropout = 0;
  if (!field(model, "dropout").is_null() && (!field(model, "dropout").number(&dropout) || dropout != 0))
    return lite::unsupported("dropout ", field(model, "dropout").dump());
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json& value = field(model, key);
    if (!value.is_null() && !(value.string() && value.string()->empty()))
      return lite::unsupported(key, " ", value.dump());
  }
  ModelOptions out;
  if (!field(model, "unk_token").is_null()) {
    LITE_ASSIGN(out.unknown, string_field(model, "unk_token"));
  }
  LITE_ASSIGN(out.fuse_unknown, bool_field(model, "fuse_unk", false));
  LITE_ASSIGN(out.byte_fallback, bool_field(model, "byte_fallback", false));
  LITE_ASSIGN(out.ignore_merges, bool_field(model, "ignore_merges", false));
  return out;
}

Result<std::vector<AddedToken>> read_added(const Json& list) {
  std::vector<AddedToken> added;
  if (list.is_null()) return added;
  if (!list.array()) return lite::corrupt("got ", list.type_name(), ", expected a list");
  for (const Json& item : *list.array()) {
    LITE_ASSIGN(AddedToken token, read_added_token(item));
    const int64_t* id = field(item, "id").integer();
    if (!id)
      return lite::corrupt(quoted(token.text), ": id: got ", field(item, "id").type_name(),
                           ", expected an integer");
    if (*id < 0 || *id > INT32_MAX)
      return lite::corrupt(quoted(token.text), ": id ", *id, " is not in 0..2^31-1");
    token.id = int32_t(*id);
    added.push_back(std::move(token));
  }
  LITE_TRY(check_distinct(added));
  std::sort(added.begin(), added.end(), [](const auto& a, const auto& b) { return a.text < b.text; });
  return added;
}

// Fills a definition from the model's vocabulary and merges.
class ModelReader {
 public:
  explicit ModelReader(TokenizerDefinition* out) : byte_level_(out->pre_tokenizer.byte_level()), out_(*out) {}

  Status read_vocabulary(const Json::Object& vocab) {
    std::vector<bool> seen(out_.added.size());  // added tokens that are in the vocabulary
    for (const auto& [text, value] : vocab) {
      const int64_t* id = value.integer();
      if (!id) return lite::corrupt(quoted(text), ": got ", value.type_name(), ", expected an integer");
      if (Status s = add_token(*id, text); !s.ok()) return s.in(quoted(text));
      const auto added =
          std::lower_bound(out_.added.begin(), out_.added.end(), text,
                           [](const AddedToken& a, const std::string& t) { return a.text < t; });
      if (added == out_.added.end() || added->text != text) continue;
      if (added->id != *id)
        return lite::corrupt(quoted(text), ": id ", *id, ", as an added token ", added->id);
      seen[size_t(added - out_.added.begin())] = true;
    }
    for (size_t i = 0; i < out_.added.size(); ++i) {
      const AddedToken& token = out_.added[i];
      if (!seen[i])
        if (Status s = add_unspoken(token.id, token.text); !s.ok())
          return s.in("added token " + quoted(token.text));
      if (token.special) out_.vocabulary.set_special(token.id);
    }
    return {};
  }

  // The symbols that merging begins with.
  Status read_symbols(const Json::Object& vocab, const ModelOptions& options) {
    if (byte_level_ && options.byte_fallback) return lite::unsupported("byte_fallback with ByteLevel");
    for (int b = 0; b < 256; ++b) {
      constexpr const char* kDigits = "0123456789ABCDEF";
      const std::string name = {'<', '0', 'x', kDigits[b / 16], kDigits[b % 16], '>'};
      if (byte_level_)
        out_.bpe.set_byte(uint8_t(b), out_.vocabulary.find(std::string(1, char(b))));
      else if (options.byte_fallback)
        out_.bpe.set_byte(uint8_t(b), out_.vocabulary.find(name));
    }
    if (!options.unknown.empty()) {
      const int32_t unknown = find(options.unknown);
      if (unknown < 0)
        return lite::corrupt("unk_token: ", quoted(options.unknown), " is not in the vocabulary");
      out_.bpe.set_unknown(unknown, options.fuse_unknown);
    }
    if (byte_level_) return {};
    bool any = false;
    for (const auto& [text, value] : vocab) {
      const Decoded d = utf8_decode(text);
      if (d.length == 0 || d.length != text.size()) continue;
      out_.bpe.set_character(d.code_point, int32_t(*value.integer()));
      any = true;
    }
    return any ? Status() : lite::corrupt("vocab: no token is a single character");
  }

  // A merge is "left right" or, since tokenizers 0.20, ["left", "right"].
  Status read_merge(const Json& merge) {
    std::string left, right;
    if (const std::string* text = merge.string()) {
      const size_t space = text->find(' ');
      if (space == std::string::npos) return lite::corrupt("no space in ", quoted(*text));
      left = text->substr(0, space);
      right = text->substr(space + 1);
    } else {
      const Json::Array* pair = merge.array();
      if (!pair || pair->size() != 2 || !(*pair)[0].string() || !(*pair)[1].string())
        return lite::corrupt("got ", merge.type_name(), ", expected a string or a pair of strings");
      left = *(*pair)[0].string();
      right = *(*pair)[1].string();
    }
    const int32_t left_id = find(left), right_id = find(right), merged_id = find(left + right);
    for (const auto& [text, id] : {std::pair(&left, left_id), {&right, right_id}})
      if (id < 0) return lite::corrupt(quoted(*text), " is not in the vocabulary");
    if (merged_id < 0) return lite::corrupt(quoted(left + right), " is not in the vocabulary");
    return out_.bpe.add_merge(left_id, right_id, merged_id);
  }

 private:
  // In an alphabet for bytes, tokens outside it are there as written; only added tokens are, and no text
  // becomes one by merging.
  Status add_token(int64_t id, const std::string& text) {
    if (!byte_level_) {
      LITE_TRY(out_.vocabulary.add(id, text, true));
      return out_.vocabulary.set_bytes(int32_t(id), out_.decoder.bytes(text));
    }
    const std::optional<std::string> bytes = alphabet_.bytes(text);
    return out_.vocabulary.add(id, bytes ? *bytes : text, bytes.has_value());
  }

  Status add_unspoken(int32_t id, const std::string& text) {
    LITE_TRY(out_.vocabulary.add(id, text, false));
    return byte_level_ ? Status() : out_.vocabulary.set_bytes(id, out_.decoder.bytes(text));
  }

  int32_t find(const std::string& text) const {
    if (!byte_level_) return out_.vocabulary.find(text);
    const std::optional<std::string> bytes = alphabet_.bytes(text);
    return bytes ? out_.vocabulary.find(*bytes) : -1;
  }

  const bool byte_level_;
  const ByteAlphabet alphabet_;
  TokenizerDefinition& out_;
};

// `result`, or its error with the name of the part that it is about.
template <class T>
Result<T> in_part(const char* part, Result<T> result) {
  return result.ok() ? std::move(result) : Result<T>(result.status().in(part));
}

}  // namespace

Result<TokenizerDefinition> read_tokenizer_json(const Json& json) {
  if (!field(json, "model").object())
    return lite::corrupt("got ", json.type_name(), json.object() ? " without an object \"model\"" : "",
                         ", expected the tokenizer's definition");
  LITE_TRY(only_fields(json, {"version", "truncation", "padding", "added_tokens", "normalizer",
                              "pre_tokenizer", "post_processor", "decoder", "model"}));
  LITE_ASSIGN(Normalizer normalizer, in_part("normalizer", Normalizer::read(field(json, "normalizer"))));
  LITE_ASSIGN(PreTokenizer pre_tokenizer,
              in_part("pre_tokenizer", PreTokenizer::read(field(json, "pre_tokenizer"))));
  LITE_ASSIGN(const int32_t beginning,
              in_part("post_processor", read_post_processor(field(json, "post_processor"))));
  LITE_ASSIGN(Decoder decoder, in_part("decoder", Decoder::read(field(json, "decoder"))));
  if (decoder.byte_level() != pre_tokenizer.byte_level())
    return lite::unsupported("ByteLevel as pre_tokenizer or as decoder without the other");
  LITE_ASSIGN(std::vector<AddedToken> added,
              in_part("added_tokens", read_added(field(json, "added_tokens"))));
  const Json& model = field(json, "model");
  LITE_ASSIGN(const ModelOptions options, in_part("model", read_model_options(model)));
  const Json::Object* vocab = field(model, "vocab").object();
  if (!vocab)
    return lite::corrupt("model: vocab: got ", field(model, "vocab").type_name(), ", expected an object");
  LITE_ASSIGN(const Json::Array* merges, in_part("model", list_field(model, "merges")));

  // The model's token for what it does not know controls nothing; the reference knows it in any text.
  for (AddedToken& token : added) token.anywhere = token.text == options.unknown;
  TokenizerDefinition out{.vocabulary = Vocabulary(vocab->size() + added.size()),
                          .bpe = Bpe(merges->size()),
                          .normalizer = std::move(normalizer),
                          .pre_tokenizer = std::move(pre_tokenizer),
                          .decoder = std::move(decoder),
                          .whole_pieces = options.ignore_merges,
                          .added = std::move(added),
                          .beginning = beginning};
  ModelReader reader(&out);
  LITE_TRY(reader.read_vocabulary(*vocab).in("model: vocab"));
  LITE_TRY(reader.read_symbols(*vocab, options).in("model"));
  for (size_t i = 0; i < merges->size(); ++i)
    if (Status s = reader.read_merge((*merges)[i]); !s.ok()) return s.in(lite::str("model: merges: ", i));
  if (beginning >= 0 && !out.vocabulary.contains(beginning))
    return lite::corrupt("post_processor: id ", beginning, " is no token");
  return out;
}

}  // namespace dsv3
