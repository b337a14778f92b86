// Text to ids and back: the golden rows of the reference libraries, pieces, merging against a slow second
// implementation, bytes that are no text, and files made to break things.
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "ggml-lite/json.h"
#include "text/added_tokens.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"

using namespace dsv3;
using lite::Code;
using lite::Json;

namespace {

using Ids = std::vector<int32_t>;
using Pieces = std::vector<std::string>;
using FileMap = std::map<std::string, std::string>;

// U+2581 and U+FF5C as DeepSeek's markers have them.
const std::string kBegin = "<｜begin▁of▁sentence｜>", kEnd = "<｜end▁of▁sentence｜>";

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE_MESSAGE(in.good(), path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string golden(const std::string& name, const std::string& file) {
  return slurp(std::string(DSV3_SOURCE_DIR) + "/tests/golden/tokenizers/" + name + "/" + file);
}

FileMap golden_files(const std::string& name) {
  if (name != "kimi-k2") return {{"tokenizer.json", golden(name, "tokenizer.json")}};
  return {{"tiktoken.model", golden(name, "tiktoken.model")},
          {"tokenizer_config.json", golden(name, "tokenizer_config.json")}};
}

Result<Tokenizer> open_files(const FileMap& files) {
  std::map<std::string, std::string_view, std::less<>> views;
  for (const auto& [name, text] : files) views[name] = text;
  return Tokenizer::open([&](std::string_view name) -> const std::string_view* {
    const auto found = views.find(name);
    return found == views.end() ? nullptr : &found->second;
  });
}

Tokenizer must_open(const FileMap& files) {
  Result<Tokenizer> tokenizer = open_files(files);
  REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.status().message());
  return std::move(*tokenizer);
}

Json must_parse(const std::string& text) {
  Result<Json> json = Json::parse(text, "a test's file");
  REQUIRE_MESSAGE(json.ok(), json.status().message());
  return std::move(*json);
}

Ids encode(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  Ids ids;
  const Status status = tokenizer.encode(text, options, &ids);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return ids;
}

std::string decode(const Tokenizer& tokenizer, const Ids& ids, bool skip_special = false) {
  const Result<std::string> text = tokenizer.decode(ids, skip_special);
  REQUIRE_MESSAGE(text.ok(), text.status().message());
  return *text;
}

Ids ids_of(const Json& list) {
  Ids ids;
  for (const Json& id : *list.array()) ids.push_back(int32_t(*id.integer()));
  return ids;
}

void refused(const FileMap& files, Code code, const std::string& message) {
  const Result<Tokenizer> tokenizer = open_files(files);
  CAPTURE(message);
  CHECK(tokenizer.status().code() == code);
  CHECK_MESSAGE(tokenizer.status().message().find(message) != std::string::npos,
                tokenizer.status().message());
}

// ---- a small tokenizer.json to change

std::string utf8(uint32_t c) {
  if (c < 0x80) return {char(c)};
  if (c < 0x800) return {char(0xC0 | c >> 6), char(0x80 | (c & 63))};
  if (c < 0x10000) return {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
  return {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 63)), char(0x80 | (c >> 6 & 63)),
          char(0x80 | (c & 63))};
}

// GPT-2's printable stand-in of each byte.
std::vector<std::string> byte_letters() {
  std::vector<std::string> out;
  uint32_t next = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    out.push_back(utf8(itself ? b : next++));
  }
  return out;
}

Json added(int64_t id, const std::string& text, bool special, bool normalized = false) {
  return Json::Object{{"id", id},        {"content", text}, {"special", special},  {"normalized", normalized},
                      {"lstrip", false}, {"rstrip", false}, {"single_word", false}};
}

// 256 bytes with their values as ids, a few merges, two added tokens; pieces are runs of letters and what is
// between.
Json small_json() {
  Json::Object vocab;
  const std::vector<std::string> letter = byte_letters();
  for (int64_t b = 0; b < 256; ++b) vocab.emplace_back(letter[size_t(b)], b);
  vocab.emplace_back("ab", int64_t(256));
  vocab.emplace_back("bc", int64_t(257));
  vocab.emplace_back("abc", int64_t(258));
  vocab.emplace_back("aa", int64_t(259));
  const Json split = Json::Object{{"type", "Split"},
                                  {"pattern", Json::Object{{"Regex", "\\p{L}+"}}},
                                  {"behavior", "Isolated"},
                                  {"invert", false}};
  const Json byte_level =
      Json::Object{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return Json::Object{
      {"version", "1.0"},
      {"truncation", Json::Object{{"max_length", 5}}},
      {"padding", Json::Object{{"length", 5}}},
      {"added_tokens", Json::Array{added(260, "<s>", true), added(261, "<t>", false)}},
      {"normalizer", Json()},
      {"pre_tokenizer",
       Json::Object{{"type", "Sequence"}, {"pretokenizers", Json::Array{split, byte_level}}}},
      {"post_processor", Json::Object{{"type", "ByteLevel"}}},
      {"decoder", Json::Object{{"type", "ByteLevel"}}},
      {"model", Json::Object{{"type", "BPE"},
                             {"vocab", std::move(vocab)},
                             {"merges", Json::Array{"b c", Json::Array{"a", "b"}, "a bc", "a a"}}}}};
}

FileMap file(const Json& json) {
  return {{"tokenizer.json", json.dump()}};
}

Json* member(Json* object, std::string_view key) {
  for (auto& [k, v] : *object->object())
    if (k == key) return &v;
  return nullptr;
}

// ---- the slow second implementation: parts are strings, every round looks at all pairs

using Ranks = std::map<std::pair<std::string, std::string>, size_t>;

Pieces slow_merge(const std::string& piece,
                  const std::function<int64_t(const std::string&, const std::string&)>& rank) {
  Pieces parts;
  for (char c : piece) parts.emplace_back(1, c);
  for (;;) {
    int64_t best = -1;
    size_t at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const int64_t r = rank(parts[i], parts[i + 1]);
      if (r >= 0 && (best < 0 || r < best)) {
        best = r;
        at = i;
      }
    }
    if (best < 0) return parts;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + std::ptrdiff_t(at) + 1);
  }
}

// Text of the kinds that tokenizers tell apart, from the golden rows and at random.
class RandomText {
 public:
  RandomText(uint32_t seed, const std::string& name) : random_(seed) {
    std::istringstream rows(golden(name, "cases.jsonl"));
    for (std::string row; std::getline(rows, row);) texts_.push_back(*must_parse(row).find("text")->string());
  }
  size_t below(size_t n) { return random_() % n; }
  std::string next() {
    std::string out;
    const size_t parts = 1 + below(5);
    for (size_t i = 0; i < parts; ++i) {
      const size_t n = below(30);
      switch (below(4)) {
        case 0: out += texts_[below(texts_.size())]; break;
        case 1:
          for (size_t k = 0; k < n; ++k) out += "etaoin srhl\n 12"[below(15)];
          break;
        case 2:
          for (size_t k = 0; k < n; ++k) {
            const uint32_t c = uint32_t(below(8) ? below(0x3000) : below(0x110000));
            if (c < 0xD800 || c > 0xDFFF) out += utf8(c);
          }
          break;
        default: out += std::string(n * below(12), "a 1\n"[below(4)]);
      }
    }
    return out;
  }
  std::string bytes() {
    std::string out = next();
    for (size_t i = 0; i < out.size(); ++i)
      if (below(6) == 0) out[i] = char(below(256));
    return out;
  }

 private:
  std::mt19937 random_;
  Pieces texts_;
};

Pieces pieces_of(const PreTokenizer& pre_tokenizer, std::string_view text) {
  Pieces out;
  const auto pieces = pre_tokenizer.pieces(text);
  REQUIRE(pieces.ok());
  for (const std::string_view piece : *pieces) out.emplace_back(piece);
  return out;
}

PreTokenizer golden_pre_tokenizer(const std::string& name) {
  const Json json = must_parse(golden(name, "tokenizer.json"));
  Result<PreTokenizer> out = PreTokenizer::read(*json.find("pre_tokenizer"));
  REQUIRE_MESSAGE(out.ok(), out.status().message());
  return std::move(*out);
}

}  // namespace

// ---- against the reference libraries

TEST_CASE("golden rows of Hugging Face tokenizers and tiktoken") {
  for (const std::string name : {"deepseek-v3", "deepseek-v2", "kimi-k2"}) {
    CAPTURE(name);
    const Tokenizer tokenizer = must_open(golden_files(name));
    std::istringstream rows(golden(name, "cases.jsonl"));
    size_t n = 0;
    for (std::string line; std::getline(rows, line); ++n) {
      CAPTURE(n);
      const Json row = must_parse(line);
      const std::string& text = *row.find("text")->string();
      const Ids ids = encode(tokenizer, text, {.parse_added = true});
      CHECK(ids == ids_of(*row.find("ids")));
      CHECK(encode(tokenizer, text) == ids_of(*row.find("plain")));
      CHECK(decode(tokenizer, ids) == *row.find("decoded")->string());
      if (row.find("visible")) CHECK(decode(tokenizer, ids, true) == *row.find("visible")->string());
      CHECK_FALSE(row.find("with_special"));  // none of these adds tokens by itself
    }
    CHECK(n == 260);
  }
}

TEST_CASE("pieces of DeepSeek-V3: each step cuts the pieces of the one before") {
  const PreTokenizer p = golden_pre_tokenizer("deepseek-v3");
  const std::vector<std::pair<std::string, Pieces>> expected = {
      {"", {}},
      {"in 2024", {"in", " ", "202", "4"}},
      {"DeepSeek-V3 2024年12月26日发布, 671B参数!",
       {"DeepSeek", "-V", "3", " ", "202", "4", "年", "12", "月", "26", "日发布", ",", " ", "671", "B",
        "参数", "!"}},
      {"def f(x):\n    return x**2 + 3.14159\n\n",
       {"def", " f", "(x", "):\n", "   ", " return", " x", "**", "2", " +", " ", "3", ".", "141", "59",
        "\n\n"}},
      {"  leading and   multiple   spaces  \n\n\n\ttab",
       {" ", " leading", " and", "  ", " multiple", "  ", " spaces", "  \n\n\n", "\ttab"}},
      {"1234567890 3.14 1,000", {"123", "456", "789", "0", " ", "3", ".", "14", " ", "1", ",", "000"}},
      {"café naïve 日本語テスト한국어 😀👍🏽",
       {"café", " naïve", " ", "日本語テスト", "한국어", " 😀👍🏽"}},
      {"I'm can't WE'LL they've", {"I", "'m", " can", "'t", " WE", "'LL", " they", "'ve"}},
      {"\r\nWindows\r\nlines", {"\r\n", "Windows", "\r\n", "lines"}},
      {"中文，标点。混合English", {"中文", "，", "标点", "。", "混合", "English"}},
      {"x  \n 7   8", {"x", "  \n", " ", "7", "   ", "8"}}};
  for (const auto& [text, pieces] : expected) CHECK(pieces_of(p, text) == pieces);
}

TEST_CASE("pieces of DeepSeek-V2: one digit, one line end at a time, $ at the end of a piece") {
  const PreTokenizer p = golden_pre_tokenizer("deepseek-v2");
  const std::vector<std::pair<std::string, Pieces>> expected = {
      {"in 2024", {"in", " ", "2", "0", "2", "4"}},
      {"café naïve 日本語テスト한국어 😀👍🏽",
       {"caf", "é", " na", "ï", "ve", " ", "日本語テスト한국어", " 😀👍🏽"}},
      {"  leading and   multiple   spaces  \n\n\n\ttab",
       {" ", " leading", " and", "  ", " multiple", "  ", " spaces", "  ", "\n", "\n", "\n", "\ttab"}},
      {"I'm can't WE'LL", {"I", "'", "m", " can", "'", "t", " WE", "'", "LL"}},
      {"x  \n 7   8", {"x", "  ", "\n", " ", "7", "   ", "8"}},
      {"\U0001FA77love  \U00031350x", {"\U0001FA77", "love", "  \U00031350", "x"}}};
  for (const auto& [text, pieces] : expected) CHECK(pieces_of(p, text) == pieces);
}

// ---- merging

TEST_CASE("merging equals the slow merging of strings") {
  const uint32_t seed = 11;
  INFO("seed ", seed);
  for (const std::string name : {"deepseek-v3", "deepseek-v2"}) {
    CAPTURE(name);
    const Tokenizer tokenizer = must_open(golden_files(name));
    const PreTokenizer pre_tokenizer = golden_pre_tokenizer(name);
    const Json json = must_parse(golden(name, "tokenizer.json"));
    const std::vector<std::string> letter = byte_letters();
    const auto letters = [&](const std::string& bytes) {
      std::string out;
      for (char c : bytes) out += letter[uint8_t(c)];
      return out;
    };
    Ranks ranks;
    for (const Json& merge : *json.find("model")->find("merges")->array())
      ranks.emplace(std::pair(*(*merge.array())[0].string(), *(*merge.array())[1].string()), ranks.size());
    std::map<std::string, int32_t> vocab;
    for (const auto& [text, id] : *json.find("model")->find("vocab")->object())
      vocab[text] = int32_t(*id.integer());

    RandomText random(seed, name);
    for (int round = 0; round < 300; ++round) {
      const std::string text = random.next();
      Ids expected;
      for (const std::string& piece : pieces_of(pre_tokenizer, text))
        for (const std::string& part : slow_merge(piece, [&](const std::string&a, const std::string&b) {
               const auto found = ranks.find({letters(a), letters(b)});
               return found == ranks.end() ? -1 : int64_t(found->second);
             }))
          expected.push_back(vocab.at(letters(part)));
      CAPTURE(text);
      REQUIRE(encode(tokenizer, text) == expected);
    }
  }
}

TEST_CASE("merging of tiktoken ranks equals the slow merging by the rank of the whole") {
  const uint32_t seed = 12;
  INFO("seed ", seed);
  const Tokenizer tokenizer = must_open(golden_files("kimi-k2"));
  std::map<std::string, int32_t> ranks;
  for (int32_t id = 0; id < 3000; ++id) ranks.emplace(tokenizer.bytes(id), id);
  REQUIRE(ranks.size() == 3000);
  RandomText random(seed, "kimi-k2");
  for (int round = 0; round < 300; ++round) {
    // One piece: letters only, so what Kimi's pattern does is not asked.
    std::string piece;
    for (size_t n = 1 + random.below(200); n > 0; --n) piece += "etaoinshrdlu"[random.below(12)];
    Ids expected;
    if (ranks.count(piece)) {
      expected.push_back(ranks[piece]);
    } else {
      for (const std::string& part : slow_merge(piece, [&](const std::string&a, const std::string&b) {
             const auto found = ranks.find(a + b);
             return found == ranks.end() ? -1 : int64_t(found->second);
           }))
        expected.push_back(ranks.at(part));
    }
    CAPTURE(piece);
    REQUIRE(encode(tokenizer, piece) == expected);
  }
}

TEST_CASE("lowest rank first, leftmost among equals, in short pieces and long ones") {
  const Tokenizer t = must_open(file(small_json()));
  CHECK(encode(t, "abc") == Ids{258});  // b c, then a bc
  CHECK(encode(t, "aaa") == Ids{259, 'a'});
  CHECK(encode(t, "ab") == Ids{256});
  CHECK(encode(t, "aab") == Ids{'a', 256});
  for (const size_t n : {63, 64, 65, 66, 1000, 1001}) {
    CAPTURE(n);
    Ids expected(n / 2, 259);
    if (n % 2) expected.push_back('a');
    CHECK(encode(t, std::string(n, 'a')) == expected);
    std::string text;
    for (size_t i = 0; i < n; ++i) text += "abc";
    CHECK(encode(t, text) == Ids(n, 258));
  }
}

TEST_CASE("a piece that is a token is that token only where the file says so") {
  Json json = small_json();
  Json* model = member(&json, "model");
  member(model, "vocab")->object()->emplace_back("cab", int64_t(270));  // no merge makes it
  CHECK(encode(must_open(file(json)), "cab") == Ids{'c', 256});
  model->set("ignore_merges", true);
  CHECK(encode(must_open(file(json)), "cab") == Ids{270});
  CHECK(encode(must_open(file(json)), "cabc") == Ids{'c', 258});
}

// ---- bytes

TEST_CASE("any bytes come back, and none becomes an added token unless asked") {
  const uint32_t seed = 13;
  INFO("seed ", seed);
  for (const std::string name : {"deepseek-v3", "deepseek-v2", "kimi-k2"}) {
    CAPTURE(name);
    const Tokenizer tokenizer = must_open(golden_files(name));
    RandomText random(seed, name);
    for (int round = 0; round < 500; ++round) {
      const std::string text = random.bytes();
      const Ids plain = encode(tokenizer, text);
      REQUIRE(decode(tokenizer, plain) == text);
      REQUIRE(decode(tokenizer, encode(tokenizer, text, {.parse_added = true})) == text);
      for (const int32_t id : plain) REQUIRE_FALSE(tokenizer.is_special(id));
    }
    for (int b = 0; b < 256; ++b) {
      const std::string one(1, char(b));
      REQUIRE(decode(tokenizer, encode(tokenizer, one)) == one);
    }
  }
}

TEST_CASE("bytes that are not UTF-8 are encoded one by one and part what is around them") {
  const Tokenizer t = must_open(file(small_json()));
  CHECK(encode(t,
               "ab\xFF"
               "c") == Ids{256, 0xFF, 'c'});
  CHECK(encode(t,
               "a\xC3"
               "b") == Ids{'a', 0xC3, 'b'});                  // an unfinished sequence in the middle
  CHECK(encode(t, "\xE4\xB8") == Ids{0xE4, 0xB8});            // and at the end
  CHECK(encode(t, "\xC0\xAF") == Ids{0xC0, 0xAF});            // overlong
  CHECK(encode(t, "\xED\xA0\x80") == Ids{0xED, 0xA0, 0x80});  // a surrogate
  CHECK(encode(t, "\xF4\x90\x80\x80") == Ids{0xF4, 0x90, 0x80, 0x80});
  CHECK(encode(t, std::string_view("a\0b", 3)) == Ids{'a', 0, 'b'});
}

TEST_CASE("a vocabulary without some byte refuses text with it, and only that") {
  Json json = small_json();
  Json::Object* vocab = member(member(&json, "model"), "vocab")->object();
  std::erase_if(*vocab, [](const auto& m) { return *m.second.integer() == 0xFF; });
  const Tokenizer t = must_open(file(json));
  CHECK(encode(t, "abc") == Ids{258});
  Ids ids = {1, 2, 3};
  const Status status = t.encode("abc\xFF", {}, &ids);
  CHECK(status.code() == Code::InvalidArgument);
  CHECK(status.message().find("byte 255") != std::string::npos);
  CHECK(ids.empty());
}

TEST_CASE("what can be shown of a growing text: everything but a sequence that more bytes may complete") {
  // By definition: a tail waits if some bytes make it a valid sequence. All valid sequences:
  std::set<std::string> unfinished;
  for (uint32_t c = 0x80; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string whole = utf8(c);
    REQUIRE(utf8_complete_prefix(whole) == whole.size());
    for (size_t n = 1; n < whole.size(); ++n) unfinished.insert(whole.substr(0, n));
  }
  for (const std::string& tail : unfinished) {
    REQUIRE(utf8_complete_prefix(tail) == 0);
    REQUIRE(utf8_complete_prefix("é!" + tail) == 3);
    REQUIRE(utf8_complete_prefix("\xFF" + tail) == 1);
    REQUIRE(utf8_complete_prefix("\xE4" + tail) == 1);  // never completed itself: shown
  }
  // Everything else of one, two or three bytes is not waited for, unless its end is.
  for (uint32_t bytes = 0; bytes < 1u << 24; bytes += bytes < 1u << 16 ? 1 : 251) {
    const std::string three = {char(bytes >> 16), char(bytes >> 8), char(bytes)};
    size_t expected = 3;
    for (size_t n = 1; n <= 3; ++n)
      if (unfinished.count(three.substr(3 - n))) expected = 3 - n;
    CAPTURE(bytes);
    REQUIRE(utf8_complete_prefix(three) == expected);
  }
  CHECK(utf8_complete_prefix("") == 0);
  CHECK(utf8_complete_prefix("\x80\x80\x80\x80") == 4);
  CHECK(utf8_complete_prefix("\xF0\x9F\x98\x80") == 4);
}

// ---- added tokens

TEST_CASE("added tokens are cut out leftmost first, longest at one place, and only when asked") {
  const AddedTokenSet set(
      {{1, "<a>", true, false}, {2, "<a>b", true, false}, {3, "a>bc", true, false}, {4, "é", true, false}});
  const auto found = [&](std::string_view text, size_t from = 0) {
    const TextSpan all{0, text.size()};
    const AddedTokenSet::Match m = set.find(text, {&all, 1}, from);
    return std::pair(m.token ? m.token->id : -1, m.begin);
  };
  CHECK(found("x<a>y") == std::pair(1, size_t(1)));
  CHECK(found("x<a>bc") == std::pair(2, size_t(1)));
  CHECK(found("xa>bc") == std::pair(3, size_t(1)));
  CHECK(found("x<a>bc", 2) == std::pair(3, size_t(2)));
  CHECK(found("<a<a>") == std::pair(1, size_t(2)));
  CHECK(found("<a") == std::pair(-1, size_t(0)));
  CHECK(found("\xC3<a>") == std::pair(1, size_t(1)));
  CHECK(found("éx") == std::pair(4, size_t(0)));
  CHECK(found("") == std::pair(-1, size_t(0)));
  CHECK(set.id("<a>b") == 2);
  CHECK(set.id("<a") == -1);
  CHECK(AddedTokenSet().find("<a>", {}, 0).token == nullptr);

  const Tokenizer t = must_open(file(small_json()));
  CHECK(encode(t, "a<s>b<t><s>", {.parse_added = true}) == Ids{'a', 260, 'b', 261, 260});
  CHECK(encode(t, "a<s>b") == Ids{'a', '<', 's', '>', 'b'});
  CHECK(decode(t, {'a', 260, 261, 'b'}) == "a<s><t>b");
  CHECK(decode(t, {'a', 260, 261, 'b'}, true) == "a<t>b");
}

TEST_CASE("added tokens are recognised in trusted spans only, and wholly inside one") {
  const Tokenizer t = must_open(file(small_json()));
  const auto encoded = [&](std::string_view text, std::vector<TextSpan> trusted) {
    Ids ids;
    const Status status = t.encode_spans(text, trusted, &ids);
    REQUIRE_MESSAGE(status.ok(), status.message());
    return ids;
  };
  const Ids plain = {'<', 's', '>'};
  CHECK(encoded("<s>", {}) == plain);
  CHECK(encoded("<s>", {{0, 3}}) == Ids{260});
  CHECK(encoded("<s>", {{0, 2}}) == plain);
  CHECK(encoded("<s>", {{1, 3}}) == plain);
  CHECK(encoded("<s>", {{0, 1}, {2, 3}}) == plain);
  CHECK(encoded("<s>", {{0, 1}, {1, 1}, {1, 3}}) == Ids{260});  // touching spans are one
  CHECK(encoded("<s><s><t>", {{0, 3}, {6, 9}}) == Ids{260, '<', 's', '>', 261});
  CHECK(encoded("<s><s>", {{3, 6}}) == Ids{'<', 's', '>', 260});
  CHECK(encoded("abc", {{0, 1}}) == Ids{258});  // a border parts no text
  Ids ids = {1};
  for (const std::vector<TextSpan>& wrong :
       {std::vector<TextSpan>{{0, 4}}, {{2, 1}}, {{0, 2}, {1, 3}}, {{2, 3}, {0, 1}}, {{4, 4}}}) {
    const Status status = t.encode_spans("<s>", wrong, &ids);
    CHECK(status.code() == Code::InvalidArgument);
    CHECK(status.message().find("trusted span") != std::string::npos);
    CHECK(ids.empty());
  }
}

TEST_CASE("tokens to be found in normalized text are found after the others") {
  Json json = small_json();
  json.set("added_tokens", Json::Array{added(260, "xy", true, true), added(261, "yz", false, false)});
  const Tokenizer t = must_open(file(json));
  CHECK(encode(t, "xyz", {.parse_added = true}) == Ids{'x', 261});  // as Hugging Face tokenizers does
  CHECK(encode(t, "xyyz", {.parse_added = true}) == Ids{260, 261});
}

// ---- what the tokenizer knows of its tokens

TEST_CASE("ids, gaps, names") {
  Json json = small_json();
  member(member(&json, "model"), "vocab")->object()->emplace_back("zz", int64_t(300));
  const Tokenizer t = must_open(file(json));
  CHECK(t.size() == 301);
  CHECK(t.is_token(300));
  CHECK_FALSE(t.is_token(299));
  CHECK_FALSE(t.is_token(-1));
  CHECK_FALSE(t.is_token(301));
  CHECK(t.bytes(299).empty());
  CHECK(t.bytes(-1).empty());
  CHECK(t.bytes(INT32_MAX).empty());
  CHECK(t.bytes(' ') == " ");
  CHECK(t.bytes(260) == "<s>");
  CHECK(t.is_special(260));
  CHECK_FALSE(t.is_special(261));
  CHECK_FALSE(t.is_special(1000));
  CHECK(*t.find("<t>") == 261);
  CHECK(*t.find("abc") == 258);
  CHECK(*t.find(" ") == ' ');
  CHECK(t.find("<u>").status().code() == Code::NotFound);
  CHECK(decode(t, {299, 'a'}) == "a");
  for (const int32_t id : {-1, 301, INT32_MAX})
    CHECK(t.decode(Ids{id}, false).status().code() == Code::InvalidArgument);
  CHECK(t.bos() == -1);
  CHECK_FALSE(t.adds_bos());
  CHECK(t.eos().empty());
  Ids ids;
  CHECK(t.encode("a", {.bos = true}, &ids).code() == Code::InvalidArgument);
}

TEST_CASE("beginning and end of sentence come from tokenizer_config.json") {
  const auto with = [](const std::string& config) {
    FileMap files = file(small_json());
    files["tokenizer_config.json"] = config;
    return files;
  };
  const Tokenizer t =
      must_open(with(R"({"bos_token": "<s>", "eos_token": {"content": "<t>"}, "add_bos_token": true})"));
  CHECK(t.bos() == 260);
  CHECK(t.eos() == Ids{261});
  CHECK(t.adds_bos());
  CHECK(encode(t, "<s>", {.parse_added = true, .bos = true}) == Ids{260, 260});
  CHECK(encode(t, "", {.bos = true}) == Ids{260});

  const std::string llama = R"({"bos_token": "<s>", "tokenizer_class": "LlamaTokenizerFast")";
  CHECK(must_open(with(llama + "}")).adds_bos());  // the class's own default
  CHECK_FALSE(must_open(with(llama + R"(, "add_bos_token": false})")).adds_bos());
  CHECK_FALSE(
      must_open(with(R"({"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"})")).adds_bos());
  CHECK_FALSE(must_open(with(R"({"bos_token": null, "tokenizer_class": "LlamaTokenizer"})")).adds_bos());

  refused(with(R"({"bos_token": "<x>"})"), Code::Corrupt, "bos_token: \"<x>\" is not a token");
  refused(with(R"({"eos_token": 5})"), Code::Corrupt, "eos_token: got an integer");
  refused(with(R"({"add_bos_token": true})"), Code::Corrupt, "add_bos_token without a bos_token");
  refused(with(R"({"add_bos_token": 1})"), Code::Corrupt, "add_bos_token: got an integer");
  refused(with(R"({"add_eos_token": true})"), Code::Unsupported, "add_eos_token");
  refused(with("{"), Code::Corrupt, "tokenizer_config.json");
}

TEST_CASE("Kimi: the ids behind the ranks") {
  const Tokenizer t = must_open(golden_files("kimi-k2"));
  CHECK(t.size() == 3018);  // up to the last one named
  CHECK(t.bos() == 3000);
  CHECK(t.eos() == Ids{3001});
  CHECK_FALSE(t.adds_bos());
  CHECK(*t.find("<|im_middle|>") == 3017);
  CHECK(t.bytes(3005) == "<|reserved_token_3005|>");
  CHECK(t.is_special(3005));
  CHECK(encode(t, "<|reserved_token_3005|>", {.parse_added = true}) == Ids{3005});
  FileMap files = golden_files("kimi-k2");
  files.erase("tokenizer_config.json");
  CHECK(must_open(files).size() == 3000);
}

// ---- files made to break things

TEST_CASE("tokenizer.json: parts that are not implemented are refused by name") {
  const auto with = [](const char* part, const std::string& value) {
    Json json = small_json();
    json.set(part, must_parse(value));
    return file(json);
  };
  refused(with("normalizer", R"({"type": "NFC"})"), Code::Unsupported, "tokenizer.json: normalizer: NFC");
  refused(with("normalizer", R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x"}]})"),
          Code::Unsupported, "Prepend");
  refused(with("normalizer", R"({"type": "Sequence"})"), Code::Corrupt, "normalizers: got null");
  refused(with("normalizer", R"({})"), Code::Corrupt, "type: got null");
  CHECK(open_files(with("normalizer", R"({"type": "Sequence", "normalizers": []})")).ok());
  refused(with("decoder", R"({"type": "Metaspace"})"), Code::Unsupported, "decoder: Metaspace");
  refused(with("decoder", "null"), Code::Unsupported, "decoder: null");
  refused(with("post_processor", R"({"type": "TemplateProcessing"})"), Code::Unsupported,
          "post_processor: TemplateProcessing");
  CHECK(open_files(with("post_processor", "null")).ok());

  refused(with("pre_tokenizer", "null"), Code::Unsupported, "pre_tokenizer: null");
  refused(with("pre_tokenizer", R"({"type": "Metaspace"})"), Code::Unsupported, "pre_tokenizer: Metaspace");
  refused(with("pre_tokenizer", R"({"type": "Sequence", "pretokenizers": []})"), Code::Unsupported,
          "ByteLevel");
  refused(with("pre_tokenizer", R"({"type": "Sequence", "pretokenizers": 5})"), Code::Corrupt,
          "pretokenizers: got an integer");
  refused(with("pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]})"),
          Code::Unsupported, "step 0: Whitespace");
  refused(with("pre_tokenizer", R"({"type": "ByteLevel", "add_prefix_space": true})"), Code::Unsupported,
          "add_prefix_space");
  refused(with("pre_tokenizer", R"({"type": "ByteLevel"})"), Code::Unsupported, "add_prefix_space");
  const std::string byte_level = R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";
  refused(with("pre_tokenizer",
               R"({"type": "Sequence", "pretokenizers": [)" + byte_level + R"(, {"type": "Digits"}]})"),
          Code::Unsupported, "Digits after ByteLevel");
  CHECK(open_files(with("pre_tokenizer", byte_level)).ok());
  const auto split_with = [&](const std::string& rest) {
    return with("pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "Split", )" + rest +
                                     "}, " + byte_level + "]}");
  };
  refused(split_with(R"("pattern": {"Regex": "a"}, "behavior": "Removed")"), Code::Unsupported,
          "behavior \"Removed\"");
  refused(split_with(R"("pattern": {"Regex": "a"})"), Code::Unsupported, "behavior null");
  refused(split_with(R"("pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": true)"),
          Code::Unsupported, "invert");
  refused(split_with(R"("pattern": {"Glob": "a"}, "behavior": "Isolated")"), Code::Corrupt,
          "neither a Regex nor a String");
  refused(split_with(R"-("pattern": {"Regex": "a(?C1)b"}, "behavior": "Isolated")-"), Code::Unsupported,
          "step 0: Split: pattern: \"(?C\" at byte 1");
  refused(split_with(R"("pattern": {"Regex": "(a"}, "behavior": "Isolated")"), Code::Unsupported,
          "missing closing parenthesis");
  CHECK(open_files(split_with(R"("pattern": {"String": "a.b"}, "behavior": "Isolated")")).ok());
  std::string steps = byte_level;
  for (int i = 0; i < 16; ++i) steps = R"({"type": "Digits"}, )" + steps;
  refused(with("pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [)" + steps + "]}"),
          Code::Unsupported, "17 pre-tokenizers");
}

TEST_CASE("tokenizer.json: models that are not implemented, ids and merges that make no sense") {
  const auto with = [](const char* key, const std::string& value) {
    Json json = small_json();
    member(&json, "model")->set(key, must_parse(value));
    return file(json);
  };
  refused(with("type", "\"WordPiece\""), Code::Unsupported, "model: type \"WordPiece\"");
  refused(with("dropout", "0.1"), Code::Unsupported, "dropout 0.1");
  CHECK(open_files(with("dropout", "0")).ok());
  refused(with("unk_token", "\"<unk>\""), Code::Unsupported, "unk_token");
  refused(with("byte_fallback", "true"), Code::Unsupported, "byte_fallback");
  refused(with("byte_fallback", "\"yes\""), Code::Corrupt, "byte_fallback: got a string");
  refused(with("continuing_subword_prefix", "\"##\""), Code::Unsupported, "continuing_subword_prefix \"##\"");
  refused(with("end_of_word_suffix", "\"</w>\""), Code::Unsupported, "end_of_word_suffix");
  CHECK(open_files(with("end_of_word_suffix", "\"\"")).ok());
  refused(with("vocab", "[]"), Code::Corrupt, "vocab: got a list");
  refused(with("merges", "{}"), Code::Corrupt, "merges: got an object");

  refused(with("merges", R"(["a b", "ab"])"), Code::Corrupt, "merges: 1: no space in \"ab\"");
  refused(with("merges", R"([["a"]])"), Code::Corrupt, "merges: 0: got a list");
  refused(with("merges", R"([["a", 1]])"), Code::Corrupt, "merges: 0: got a list");
  refused(with("merges", R"([7])"), Code::Corrupt, "merges: 0: got an integer");
  refused(with("merges", R"(["a q7"])"), Code::Corrupt, "\"q7\" is not in the vocabulary");
  refused(with("merges", R"(["a z"])"), Code::Corrupt, "\"az\" is not in the vocabulary");
  refused(with("merges", R"(["a 中"])"), Code::Corrupt, "\"中\" is not in the vocabulary");
  refused(with("merges", R"(["a b", "b c", "a b"])"), Code::Corrupt, "merges: 2: the same pair as merge 0");

  const auto with_token = [](const std::string& text, const Json& id) {
    Json json = small_json();
    member(member(&json, "model"), "vocab")->object()->emplace_back(text, id);
    return file(json);
  };
  refused(with_token("zz", -1), Code::Corrupt, "vocab: \"zz\": id -1 is not in 0..2^31-1");
  refused(with_token("zz", int64_t(1) << 31), Code::Corrupt, "is not in 0..2^31-1");
  refused(with_token("zz", int64_t(1) << 30), Code::Corrupt, "far beyond");
  refused(with_token("zz", 256), Code::Corrupt, "id 256 names two tokens");
  refused(with_token("zz", 260), Code::Corrupt, "added token \"<s>\": id 260 names two tokens");
  refused(with_token("zz", 1.5), Code::Corrupt, "\"zz\": got a number");
  refused(with_token("zz", "1"), Code::Corrupt, "\"zz\": got a string");
  refused(with_token("<s>", 270), Code::Corrupt, "\"<s>\": id 270, as an added token 260");
  CHECK(must_open(with_token("<s>", 260)).size() == 262);
  refused(with_token("ab", 300), Code::Corrupt, "appears twice");

  const auto with_added = [](const std::string& list) {
    Json json = small_json();
    json.set("added_tokens", must_parse(list));
    return file(json);
  };
  CHECK(open_files(with_added("null")).ok());
  refused(with_added("{}"), Code::Corrupt, "added_tokens: got an object");
  refused(with_added(R"([{"id": 300}])"), Code::Corrupt, "content: got null");
  refused(with_added(R"([{"id": 300, "content": ""}])"), Code::Corrupt, "without text");
  refused(with_added(R"([{"content": "<x>"}])"), Code::Corrupt, "id: got null");
  refused(with_added(R"([{"id": -5, "content": "<x>"}])"), Code::Corrupt, "id -5");
  refused(with_added(R"([{"id": 4294967296, "content": "<x>"}])"), Code::Corrupt, "id 4294967296");
  refused(with_added(R"([{"id": 1073741824, "content": "<x>"}])"), Code::Corrupt, "far beyond");
  refused(with_added(R"([{"id": 300, "content": "<x>"}, {"id": 300, "content": "<y>"}])"), Code::Corrupt,
          "id 300 names two tokens");
  refused(with_added(R"([{"id": 300, "content": "<x>"}, {"id": 301, "content": "<x>"}])"), Code::Corrupt,
          "\"<x>\" appears twice");
  for (const std::string flag : {"lstrip", "rstrip", "single_word"})
    refused(with_added(R"([{"id": 300, "content": "<x>", ")" + flag + R"(": true}])"), Code::Unsupported,
            "with " + flag);
  refused(with_added(R"([{"id": 300, "content": "<x>", "special": 1}])"), Code::Corrupt,
          "special: got an integer");
  refused(with_added(R"([{"id": 300, "content": ")" + std::string(1001, 'x') + "\"}]"), Code::Unsupported,
          "1001 bytes");

  refused({{"tokenizer.json", "[]"}}, Code::Unsupported, "decoder: null");
  refused({{"tokenizer.json", ""}}, Code::Corrupt, "tokenizer.json");
  refused({}, Code::NotFound, "neither tokenizer.json nor tiktoken.model");
}

TEST_CASE("a tokenizer.json cut short anywhere is refused") {
  const std::string text = small_json().dump();
  for (size_t n = 0; n < text.size(); n += 37)
    REQUIRE(open_files({{"tokenizer.json", text.substr(0, n)}}).status().code() == Code::Corrupt);
}

TEST_CASE("tiktoken.model: lines and ids that make no sense") {
  // "a", "b", "ab"
  const std::string good = "YQ== 0\nYg== 1\nYWI= 2\n";
  const auto with = [&](const std::string& ranks, const std::string& config = "{}") {
    return FileMap{{"tiktoken.model", ranks}, {"tokenizer_config.json", config}};
  };
  CHECK(encode(must_open(with(good)), "abba") == Ids{2, 1, 0});
  CHECK(encode(must_open(with("YQ== 0\nYg== 1\nYWI= 2")), "ab") == Ids{2});
  CHECK(encode(must_open(with("YWI= 2\nYg== 1\nYQ== 0\n")), "aba") == Ids{2, 0});
  const Tokenizer gap =
      must_open(with("YQ== 0\nYg== 1\nYw== 2\nYWJj 3\n"));  // "abc", which no two tokens make
  CHECK(encode(gap, "abca") == Ids{0, 1, 2, 0});
  CHECK(encode(gap, "abc") == Ids{3});
  refused(with(""), Code::Corrupt, "tiktoken.model: is empty");
  refused(with("\n"), Code::Corrupt, "line 1: no base64");
  refused(with(good + "\n"), Code::Corrupt, "line 4: no base64");
  refused(with("Y*== 0\n"), Code::Corrupt, "line 1: no base64");
  refused(with("YQ= 0\n"), Code::Corrupt, "line 1: no base64");
  refused(with("==== 0\n"), Code::Corrupt, "line 1: no base64");
  refused(with("Y=Q= 0\n"), Code::Corrupt, "line 1: no base64");
  refused(with("YQ==\n"), Code::Corrupt, "line 1: no rank");
  refused(with("YQ== \n"), Code::Corrupt, "line 1: no rank");
  refused(with("YQ== x\n"), Code::Corrupt, "line 1: no rank");
  refused(with("YQ== 0 0\n"), Code::Corrupt, "line 1: no rank");
  refused(with("YQ== -1\n"), Code::Corrupt, "line 1: no rank");
  refused(with("YQ== 99999999999999999999\n"), Code::Corrupt, "line 1: no rank");
  refused(with("YQ== 1\n"), Code::Corrupt, "rank 1 in a file of 1 tokens");
  refused(with("YQ== 1073741824\n"), Code::Corrupt, "rank 1073741824");
  refused(with("YQ== 0\nYg== 0\n"), Code::Corrupt, "line 2: rank 0 appears twice");
  refused(with("YQ== 0\nYQ== 1\n"), Code::Corrupt, "ids 0 and 1 name the same token");
  refused(with("YWI= 0\n"), Code::Corrupt, "rank 0 has a byte that is no token");

  const auto with_added = [&](const std::string& decoder) {
    return with(good, "{\"added_tokens_decoder\": " + decoder + "}");
  };
  CHECK(must_open(with_added(R"({"5": {"content": "<x>", "special": false}})")).size() == 6);
  refused(with_added("[]"), Code::Corrupt, "added_tokens_decoder: got a list");
  refused(with_added(R"({"2": {"content": "<x>"}})"), Code::Corrupt, "id 2 is not one of");
  refused(with_added(R"({"261": {"content": "<x>"}})"), Code::Corrupt, "id 261 is not one of");
  refused(with_added(R"({"x": {"content": "<x>"}})"), Code::Corrupt, "\"x\" is not an id");
  refused(with_added(R"({"-3": {"content": "<x>"}})"), Code::Corrupt, "\"-3\" is not an id");
  refused(with_added(R"({"3": {}})"), Code::Corrupt, "content");
  refused(with_added(R"({"3": {"content": "<x>"}, "03": {"content": "<y>"}})"), Code::Corrupt,
          "id 3 appears twice");
  refused(with_added(R"({"3": {"content": "<x>"}, "4": {"content": "<x>"}})"), Code::Corrupt,
          "\"<x>\" appears twice");
  refused(with_added(R"({"3": {"content": "<x>", "lstrip": true}})"), Code::Unsupported, "lstrip");
  refused(with(good, R"({"tokenizer_class": "QWenTokenizer"})"), Code::Unsupported, "\"QWenTokenizer\"");
}

// Merging that looks at all pairs each time would not come back from these.
TEST_CASE("long texts of one kind") {
  for (const std::string name : {"deepseek-v3", "deepseek-v2", "kimi-k2"}) {
    CAPTURE(name);
    const Tokenizer tokenizer = must_open(golden_files(name));
    for (const std::string unit :
         {"a", "A", " ", "\n", "ab", "7", "😀", "中文", "\xFF", "<｜", "'s", "é\u0301", " \n"}) {
      std::string text;
      while (text.size() < 400000) text += unit;
      REQUIRE(decode(tokenizer, encode(tokenizer, text + "1", {.parse_added = true})) == text + "1");
    }
  }
}
