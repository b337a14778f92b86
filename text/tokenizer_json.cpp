// tokenizer.json: byte-level BPE as DeepSeek writes it. Its parts, and what is taken from each:
//   normalizer                must do nothing
//   pre_tokenizer             pretokenizer.cpp
//   model                     vocab and merges, written in an alphabet of printable characters that stand for
//   bytes added_tokens              all of them decoder                   must be ByteLevel: tokens are bytes
//   post_processor            must add nothing
//   truncation, padding       not read: they are settings of a batch call and have no say in what tokens a
//   text has
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

Status check_normalizer(const Json& normalizer) {
  LITE_ASSIGN(const std::string type, type_of(normalizer));
  if (type == "null") return {};
  if (type != "Sequence") return lite::unsupported(type, " is not supported");
  const Json::Array* steps = field(normalizer, "normalizers").array();
  if (!steps)
    return lite::corrupt("normalizers: got ", field(normalizer, "normalizers").type_name(),
                         ", expected a list");
  for (const Json& step : *steps) LITE_TRY(check_normalizer(step));
  return {};
}

Status check_post_processor(const Json& post_processor) {
  LITE_ASSIGN(const std::string type, type_of(post_processor));
  if (type != "null" && type != "ByteLevel") return lite::unsupported(type, " is not supported");
  return {};
}

Status check_decoder(const Json& decoder) {
  LITE_ASSIGN(const std::string type, type_of(decoder));
  if (type != "ByteLevel") return lite::unsupported(type, " is not supported, only ByteLevel");
  return {};
}

// What a BPE model may ask for beyond vocabulary and merges; fuse_unk says nothing without an unk_token.
Status check_model(const Json& model) {
  const std::string* type = field(model, "type").string();
  if (!type || *type != "BPE")
    return lite::unsupported("type ", field(model, "type").dump(), ", only \"BPE\"");
  double dropout = 0;
  if (!field(model, "dropout").is_null() && (!field(model, "dropout").number(&dropout) || dropout != 0))
    return lite::unsupported("dropout ", field(model, "dropout").dump());
  if (!field(model, "unk_token").is_null())
    return lite::unsupported("unk_token ", field(model, "unk_token").dump());
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json& value = field(model, key);
    if (!value.is_null() && !(value.string() && value.string()->empty()))
      return lite::unsupported(key, " ", value.dump());
  }
  LITE_ASSIGN(const bool byte_fallback, bool_field(model, "byte_fallback", false));
  if (byte_fallback) return lite::unsupported("byte_fallback");
  return {};
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

// Tokens outside the alphabet are there as written; only added tokens are, and no text becomes one by
// merging.
Status read_vocabulary(const Json::Object& vocab, const ByteAlphabet& alphabet, TokenizerDefinition* out) {
  std::vector<bool> seen(out->added.size());  // added tokens that are in the vocabulary
  for (const auto& [text, value] : vocab) {
    const int64_t* id = value.integer();
    if (!id) return lite::corrupt(quoted(text), ": got ", value.type_name(), ", expected an integer");
    const std::optional<std::string> bytes = alphabet.bytes(text);
    if (Status s = out->vocabulary.add(*id, bytes ? *bytes : text, bytes.has_value()); !s.ok())
      return s.in(quoted(text));
    const auto added = std::lower_bound(out->added.begin(), out->added.end(), text,
                                        [](const AddedToken& a, const std::string& t) { return a.text < t; });
    if (added == out->added.end() || added->text != text) continue;
    if (added->id != *id) return lite::corrupt(quoted(text), ": id ", *id, ", as an added token ", added->id);
    seen[size_t(added - out->added.begin())] = true;
  }
  for (size_t i = 0; i < out->added.size(); ++i) {
    const AddedToken& token = out->added[i];
    if (!seen[i])
      LITE_TRY(out->vocabulary.add(token.id, token.text, false).in("added token " + quoted(token.text)));
    if (token.special) out->vocabulary.set_special(token.id);
  }
  for (int b = 0; b < 256; ++b) {
    const char byte = char(b);
    out->bpe.set_byte(uint8_t(b), out->vocabulary.find({&byte, 1}));
  }
  return {};
}

// A merge is "left right" or, since tokenizers 0.20, ["left", "right"].
Status read_merge(const Json& merge, const ByteAlphabet& alphabet, TokenizerDefinition* out) {
  std::string_view left, right;
  if (const std::string* text = merge.string()) {
    const size_t space = text->find(' ');
    if (space == std::string::npos) return lite::corrupt("no space in ", quoted(*text));
    left = std::string_view(*text).substr(0, space);
    right = std::string_view(*text).substr(space + 1);
  } else {
    const Json::Array* pair = merge.array();
    if (!pair || pair->size() != 2 || !(*pair)[0].string() || !(*pair)[1].string())
      return lite::corrupt("got ", merge.type_name(), ", expected a string or a pair of strings");
    left = *(*pair)[0].string();
    right = *(*pair)[1].string();
  }
  const auto find = [&](const std::string& text, int32_t* id) -> Status {
    const std::optional<std::string> bytes = alphabet.bytes(text);
    *id = bytes ? out->vocabulary.find(*bytes) : -1;
    return *id < 0 ? lite::corrupt(quoted(text), " is not in the vocabulary") : Status();
  };
  int32_t left_id = -1, right_id = -1, merged_id = -1;
  LITE_TRY(find(std::string(left), &left_id));
  LITE_TRY(find(std::string(right), &right_id));
  LITE_TRY(find(std::string(left) + std::string(right), &merged_id));
  return out->bpe.add_merge(left_id, right_id, merged_id);
}

}  // namespace

Result<TokenizerDefinition> read_tokenizer_json(const Json& json) {
  LITE_TRY(check_normalizer(field(json, "normalizer")).in("normalizer"));
  LITE_TRY(check_post_processor(field(json, "post_processor")).in("post_processor"));
  LITE_TRY(check_decoder(field(json, "decoder")).in("decoder"));
  const Json& model = field(json, "model");
  LITE_TRY(check_model(model).in("model"));
  const Json::Object* vocab = field(model, "vocab").object();
  if (!vocab)
    return lite::corrupt("model: vocab: got ", field(model, "vocab").type_name(), ", expected an object");
  const Json::Array* merges = field(model, "merges").array();
  if (!merges)
    return lite::corrupt("model: merges: got ", field(model, "merges").type_name(), ", expected a list");

  Result<PreTokenizer> pre_tokenizer = PreTokenizer::read(field(json, "pre_tokenizer"));
  if (!pre_tokenizer.ok()) return pre_tokenizer.status().in("pre_tokenizer");
  Result<std::vector<AddedToken>> added = read_added(field(json, "added_tokens"));
  if (!added.ok()) return added.status().in("added_tokens");
  LITE_ASSIGN(const bool ignore_merges, bool_field(model, "ignore_merges", false));

  TokenizerDefinition out{Vocabulary(vocab->size() + added->size()), Bpe(merges->size()),
                          std::move(*pre_tokenizer), ignore_merges, std::move(*added)};
  const ByteAlphabet alphabet;
  LITE_TRY(read_vocabulary(*vocab, alphabet, &out).in("model: vocab"));
  for (size_t i = 0; i < merges->size(); ++i)
    if (Status s = read_merge((*merges)[i], alphabet, &out); !s.ok())
      return s.in(lite::str("model: merges: ", i));
  return out;
}

}  // namespace dsv3
