// Text to ids and back: the golden rows of the reference libraries, pieces, merging against a slow second
// implementation, bytes that are no text.
#include <doctest/doctest.h>

#include <algorithm>
#include <ctime>
#include <functional>
#include <set>

#include "tests/unit/tokenizer_support.h"
#include "text/added_tokens.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"

using namespace tokenizer_test;

namespace {

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

Pieces pieces_of(const PreTokenizer& pre_tokenizer, std::string_view text) {
  Pieces out;
  const auto pieces = pre_tokenizer.pieces(text, MatchTime(text.size()));
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
  for (const std::string name : {"deepseek-v3", "deepseek-v2", "kimi-k2", "qwen3", "mixtral"}) {
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
      if (row.find("visible"))
        CHECK(decode(tokenizer, ids, {.skip_special = true}) == *row.find("visible")->string());
      REQUIRE(bool(row.find("with_special")) == tokenizer.adds_bos());
      if (tokenizer.adds_bos())
        CHECK(encode(tokenizer, text, {.parse_added = true, .bos = true}) ==
              ids_of(*row.find("with_special")));
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
  for (const std::string name : {"deepseek-v3", "deepseek-v2", "kimi-k2", "mixtral"}) {
    CAPTURE(name);
    const Tokenizer tokenizer = must_open(golden_files(name));
    RandomText random(seed, name);
    for (int round = 0; round < 500; ++round) {
      std::string text = random.bytes();
      if (name == "mixtral") {  // knows two texts as something else
        text = replace_all(text, "▁", " ");
        text = replace_all(text, "<unk>", " ");
      }
      const Ids plain = encode(tokenizer, text);
      REQUIRE(decode(tokenizer, plain) == text);
      if (name != "mixtral")  // where a space precedes what follows an added token
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
  const AddedTokenSet set({{.id = 1, .text = "<a>"},
                           {.id = 2, .text = "<a>b"},
                           {.id = 3, .text = "a>bc"},
                           {.id = 4, .text = "é"}});
  const auto found = [&](std::string_view text, size_t from = 0) {
    const AddedTokenSet::Match m = set.find(text, {{0, text.size()}}, from);
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
  CHECK(AddedTokenSet().find("<a>", {{0, 3}}, 0).token == nullptr);

  const Tokenizer t = must_open(file(small_json()));
  CHECK(encode(t, "a<s>b<t><s>", {.parse_added = true}) == Ids{'a', 260, 'b', 261, 260});
  CHECK(encode(t, "a<s>b") == Ids{'a', '<', 's', '>', 'b'});
  CHECK(decode(t, {'a', 260, 261, 'b'}) == "a<s><t>b");
  CHECK(decode(t, {'a', 260, 261, 'b'}, {.skip_special = true}) == "a<t>b");
}

TEST_CASE("added tokens are recognised in trusted spans only, and wholly inside one") {
  const Tokenizer t = must_open(file(small_json()));
  const auto encoded = [&](std::string_view text, const TextSpans& trusted) {
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
  for (const TextSpans& wrong : {TextSpans{{0, 4}}, {{2, 1}}, {{0, 2}, {1, 3}}, {{2, 3}, {0, 1}}, {{4, 4}}}) {
    const Status status = t.encode_spans("<s>", wrong, &ids);
    CHECK(status.code() == Code::InvalidArgument);
    CHECK(status.message().find("trusted span") != std::string::npos);
    CHECK(ids.empty());
  }
}

TEST_CASE("added tokens take white space along, or want to stand alone, where they say so") {
  const auto found = [](AddedToken token, std::string_view text) {
    token.id = 1;
    const AddedTokenSet::Match m = AddedTokenSet({token}).find(text, {{0, text.size()}}, 0);
    return m.token ? std::pair(m.begin, m.end) : std::pair(size_t(0), size_t(0));
  };
  using At = std::pair<size_t, size_t>;
  const AddedToken left{.text = "<m>", .lstrip = true}, right{.text = "<m>", .rstrip = true};
  CHECK(found(left, "a \t\u3000\n<m> b") == At(1, 10));
  CHECK(found(left, "  <m>") == At(0, 5));
  CHECK(found(right, "a <m> \u00A0\r\nb") == At(2, 10));
  CHECK(found(right, "<m>  ") == At(0, 5));
  CHECK(found(right, "<m>\u200B") == At(0, 3));  // no white space
  const AddedToken word{.text = "ab", .single_word = true};
  CHECK(found(word, "ab") == At(0, 2));
  CHECK(found(word, "x ab-") == At(2, 4));
  for (const char* text : {"xab", "abx", "1ab", "ab_", "abé", "\u0301ab", "ab\u200D", "ab中", "abⓐ"})
    CHECK_MESSAGE(found(word, text) == At(0, 0), text);
  CHECK(found(word, "abab ab") == At(5, 7));
  CHECK(found(word, "½ab²") == At(2, 4));  // numbers by value only are no part of a word

  // What one has taken, the next cannot.
  Json json = small_json();
  json.set("added_tokens",
           Json::Array{must_parse(R"({"id": 260, "content": "<s>", "lstrip": true, "rstrip": true})")});
  CHECK(encode(must_open(file(json)), "a <s>  <s> b", {.parse_added = true}) == Ids{'a', 260, 260, 'b'});
}

TEST_CASE("tokens to be found in normalized text are found after the others") {
  Json json = small_json();
  json.set("added_tokens", Json::Array{added(260, "xy", true, true), added(261, "yz", false, false)});
  const Tokenizer t = must_open(file(json));
  CHECK(encode(t, "xyz", {.parse_added = true}) == Ids{'x', 261});  // as Hugging Face tokenizers does
  CHECK(encode(t, "xyyz", {.parse_added = true}) == Ids{260, 261});
}

TEST_CASE("tokens to be found in normalized text are normalized like it") {
  Json json = small_characters_json();
  json.set("added_tokens", Json::Array{added(0, "<unk>", true), added(1, "x y", true, true)});
  std::erase_if(*member(member(&json, "model"), "vocab")->object(),
                [](const auto& m) { return m.first == "<s>"; });
  const Tokenizer t = must_open(file(json));
  CHECK(encode(t, "x y", {.parse_added = true}) == Ids{1});  // "_x_y" in "_x_y"
  CHECK(encode(t, "a x ya", {.parse_added = true}) == Ids{263, 1, 260});
  // In spans: the space before it belongs to what is looked for.
  const auto encoded = [&](std::string_view text, const TextSpans& trusted) {
    Ids ids;
    REQUIRE(t.encode_spans(text, trusted, &ids).ok());
    return ids;
  };
  CHECK(encoded("a x ya", {{1, 5}}) == Ids{263, 1, 260});
  CHECK(encoded("a x ya", {{2, 5}}).size() > 3);
  CHECK(encoded("x ya", {{0, 3}}) == Ids{1, 260});
}

// ---- characters instead of bytes

TEST_CASE("characters: spaces are letters, bytes stand for what has no token, unknowns are one") {
  Json json = small_characters_json();
  const Tokenizer t = must_open(file(json));
  const auto byte = [](int b) { return 3 + b; };
  CHECK(encode(t, "ab") == Ids{264});
  CHECK(encode(t, " ab") == Ids{259, 264});
  CHECK(encode(t, "aab") == Ids{263, 260, 261});  // "_a" before "aa"
  CHECK(encode(t, "é") == Ids{259, 262});
  CHECK(encode(t, "z") == Ids{259, byte('z')});
  CHECK(encode(t, "中") == Ids{259, byte(0xE4), byte(0xB8), byte(0xAD)});
  CHECK(encode(t, "a\xFF") == Ids{263, byte(0xFF)});
  CHECK(encode(t, "") == Ids{});
  CHECK(encode(t, "a<s>b", {.parse_added = true}) == Ids{263, 1, 259, 261});  // every stretch begins anew
  CHECK(encode(t, "<s>") == Ids{259, byte('<'), byte('s'), byte('>')});
  // The model's own unknown token is recognised in any text, as the reference does it; it controls nothing.
  CHECK(encode(t, "a<unk>") == Ids{263, 0});

  CHECK(decode(t, encode(t, "ab")) == "ab");
  CHECK(decode(t, encode(t, "  ab ")) == "  ab ");
  CHECK(decode(t, {264}, {.continues = true}) == " ab");
  CHECK(decode(t, {1, 264}) == "<s> ab");
  CHECK(decode(t, {1, 264}, {.skip_special = true}) == "ab");
  CHECK(decode(t, {byte(0xE4), byte(0xB8)}) == "\xE4\xB8");
  CHECK(t.bytes(259) == " ");
  CHECK(t.bytes(byte('\n')) == "\n");
  CHECK(*t.find("_ab") == 264);
  for (int b = 0; b < 256; ++b)
    if (b != '_') CHECK(decode(t, encode(t, std::string(2, char(b)))) == std::string(2, char(b)));

  member(&json, "model")->set("byte_fallback", false);
  CHECK(encode(must_open(file(json)), "azza zb") == Ids{263, 0, 260, 259, 0, 261});
  CHECK(encode(must_open(file(json)), "a\xFF\xFF") == Ids{263, 0, 0});  // encoded one by one
  member(&json, "model")->set("fuse_unk", false);
  CHECK(encode(must_open(file(json)), "azz中b") == Ids{263, 0, 0, 0, 261});
  member(&json, "model")->set("unk_token", Json());
  json.set("added_tokens", Json());
  Ids ids;
  const Status status = must_open(file(json)).encode("a中", {}, &ids);
  CHECK(status.code() == Code::InvalidArgument);
  CHECK(status.message().find("\"中\" has no token") != std::string::npos);
}

TEST_CASE("Metaspace writes spaces and begins texts as it is told") {
  Json json = small_characters_json();
  json.set("normalizer", Json());
  const auto with = [&](const std::string& rest) {
    json.set("pre_tokenizer", must_parse(R"({"type": "Metaspace", "replacement": "_")" + rest + "}"));
    return must_open(file(json));
  };
  const EncodeOptions parse{.parse_added = true};
  CHECK(encode(with(""), "ab ab") == Ids{264, 264});
  CHECK(encode(with(""), " ab") == Ids{264});  // one is there
  CHECK(encode(with(""), "a<s>a", parse) == Ids{263, 1, 263});
  CHECK(encode(with(R"(, "prepend_scheme": "first")"), "a<s>a", parse) == Ids{263, 1, 260});
  CHECK(encode(with(R"(, "prepend_scheme": "first")"), "<s>a", parse) == Ids{1, 260});
  CHECK(encode(with(R"(, "prepend_scheme": "never")"), "a a", parse) == Ids{260, 263});
  CHECK(encode(with(R"(, "add_prefix_space": false)"), "a a", parse) == Ids{260, 263});
  // "__" is a token; it forms where the pieces do not begin at each "_".
  CHECK(encode(with(R"(, "prepend_scheme": "never")"), "a  b") == Ids{260, 259, 259, 261});
  CHECK(encode(with(R"(, "prepend_scheme": "never", "split": false)"), "a  b") == Ids{260, 265, 261});

  json.set("decoder", must_parse(R"({"type": "Metaspace", "replacement": "_"})"));
  CHECK(decode(with(""), {265, 264, 264}) == " ab ab");
  CHECK(decode(with(""), {264, 264}) == "ab ab");
  CHECK(decode(with(""), {264, 264}, {.continues = true}) == " ab ab");
  json.set("decoder", must_parse(R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "never"})"));
  CHECK(decode(with(""), {264, 264}) == " ab ab");
}

TEST_CASE("a post-processor's token is the beginning of every text") {
  Json json = small_characters_json();
  const std::string plain = R"({"Sequence": {"id": "A", "type_id": 0}})",
                    begin = R"({"SpecialToken": {"id": "<s>", "type_id": 0}})",
                    tokens = R"("special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}})";
  const auto with = [&](const std::string& post_processor, const std::string& config = "{}") {
    json.set("post_processor", must_parse(post_processor));
    FileMap files = file(json);
    files["tokenizer_config.json"] = config;
    return files;
  };
  const std::string one =
      R"({"type": "TemplateProcessing", "single": [)" + begin + ", " + plain + "], " + tokens + "}";
  const Tokenizer t = must_open(with(one));
  CHECK(t.adds_bos());
  CHECK(t.bos() == 1);
  CHECK(encode(t, "a", {.bos = true}) == Ids{1, 263});
  CHECK(encode(t, "a") == Ids{263});
  const std::string byte_level = R"({"type": "ByteLevel", "trim_offsets": false})";
  CHECK(
      must_open(with(R"({"type": "Sequence", "processors": [)" + byte_level + ", " + one + "]}")).adds_bos());
  CHECK_FALSE(must_open(with(R"({"type": "TemplateProcessing", "single": [)" + plain + "], " + tokens + "}"))
                  .adds_bos());
  CHECK_FALSE(must_open(with(one, R"({"add_bos_token": false})")).adds_bos());
  CHECK(must_open(with(one, R"({"bos_token": "<s>"})")).adds_bos());
  refused(with(one, R"({"bos_token": "</s>"})"), Code::Corrupt,
          "bos_token is id 2, but tokenizer.json puts id 1");
}

// ---- normalization

TEST_CASE("Unicode's composed form, in text and in tokens' neighbourhood") {
  Json json = small_json();
  json.set("normalizer", must_parse(R"({"type": "NFC"})"));
  const Tokenizer t = must_open(file(json));
  const auto normal = [&](std::string_view text) { return decode(t, encode(t, text)); };
  CHECK(normal("e\u0301") == "é");
  CHECK(normal("x\u212By") == "xÅy");                         // a singleton
  CHECK(normal("\u1112\u1161\u11AB") == "한");                // jamo
  CHECK(normal("\uAC00\u11A8") == "각");                      // a syllable and a jamo
  CHECK(normal("a\u0323\u0307") == normal("a\u0307\u0323"));  // marks in their order
  CHECK(normal("\u0301a") == "\u0301a");
  CHECK(normal("か\u3099") == "が");
  CHECK(normal("\U0002F800") == "\u4E3D");
  CHECK(normal("\u0915\u093C") == "\u0915\u093C");  // composition exclusions
  CHECK(normal("e\xFF\u0301") == "e\xFF\u0301");    // a byte that is not UTF-8 parts them
  CHECK(normal("\xFF\u212B") == "\xFFÅ");
  CHECK(normal("a\u08D3\u0323\u0301") == "a\u08D3\u0323\u0301");  // Unicode 11: the reference knows it not
  CHECK(normal("a\u08D3\u0301\u0323") == "a\u08D3\u0323\u0301");
  CHECK(normal("ab 中文 ＜｜\U0001F600") == "ab 中文 ＜｜\U0001F600");
  Ids ids;
  REQUIRE(t.encode_spans("<s>e\u0301<s>", TextSpans{{0, 3}}, &ids).ok());
  CHECK(ids == Ids{260, 0xC3, 0xA9, '<', 's', '>'});
}

TEST_CASE("what a normalizer writes is trusted where all that it replaces is") {
  const auto read = [](const std::string& json) {
    Result<Normalizer> out = Normalizer::read(must_parse(json));
    REQUIRE_MESSAGE(out.ok(), out.status().message());
    return std::move(*out);
  };
  const auto apply = [](const Normalizer& normalizer, const std::string& text, const TextSpans& trusted) {
    const MarkedText out = normalizer.apply({text, trusted});
    std::string marked;  // trusted letters as they are, others in brackets
    for (size_t at = 0; at < out.text.size(); ++at) {
      const bool inside = std::any_of(out.trusted.begin(), out.trusted.end(),
                                      [&](const TextSpan& s) { return s.begin <= at && at < s.end; });
      marked += inside ? std::string(1, out.text[at]) : "[" + std::string(1, out.text[at]) + "]";
    }
    return marked;
  };
  const Normalizer replace = read(R"({"type": "Replace", "pattern": {"String": "xy"}, "content": "123"})");
  CHECK(apply(replace, "axyb", {{0, 4}}) == "a123b");
  CHECK(apply(replace, "axyb", {}) == "[a][1][2][3][b]");
  CHECK(apply(replace, "axyb", {{0, 2}}) == "a[1][2][3][b]");
  CHECK(apply(replace, "axyb", {{2, 4}}) == "[a][1][2][3]b");
  CHECK(apply(replace, "axyb", {{1, 3}}) == "[a]123[b]");
  CHECK(apply(replace, "xyxya", {{0, 2}, {4, 5}}) == "123[1][2][3]a");
  CHECK(apply(replace, "xyaaxy", {{1, 3}, {5, 6}}) == "[1][2][3]a[a][1][2][3]");
  const Normalizer prepend = read(R"({"type": "Prepend", "prepend": "_"})");
  CHECK(apply(prepend, "ab", {{0, 1}}) == "_a[b]");
  CHECK(apply(prepend, "ab", {{1, 2}}) == "[_][a]b");
  CHECK(apply(prepend, "", {}) == "");
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
    CHECK(t.decode(Ids{id}, {}).status().code() == Code::InvalidArgument);
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

// ---- long texts

// Processor seconds of one call, the least of a few.
template <class F>
double cost(F f) {
  double least = 1e9;
  for (int i = 0; i < 3; ++i) {
    const std::clock_t start = std::clock();
    f();
    least = std::min(least, double(std::clock() - start) / CLOCKS_PER_SEC);
  }
  return least;
}

// What looks at all pairs for each merge, or at the rest of a run from each of its characters, takes 64 times as long
// for 8 times the text.
TEST_CASE("time grows with the text, whatever it is made of") {
  const std::vector<std::string> units = {"a",
                                          "A",
                                          " ",
                                          "\n",
                                          "\t",
                                          "ab",
                                          "7",
                                          "😀",
                                          "中",
                                          "\xFF",
                                          "<｜",
                                          "'s",
                                          "é\u0301",
                                          " \n",
                                          "\u0301",
                                          "\u0301\u0323",
                                          "\u1100\u1161\u11A8",
                                          "aA",
                                          "!",
                                          "\u00A0",
                                          "<unk>"};
  for (const std::string name : {"deepseek-v3", "deepseek-v2", "kimi-k2", "qwen3", "mixtral"}) {
    CAPTURE(name);
    const Tokenizer tokenizer = must_open(golden_files(name));
    for (const std::string& unit : units) {
      CAPTURE(unit);
      const auto text = [&](size_t size) {
        std::string out;
        while (out.size() < size) out += unit;
        return out + "1";
      };
      const std::string small = text(1 << 14), large = text(1 << 17);
      const double few = cost([&] { encode(tokenizer, small, {.parse_added = true}); });
      const double many = cost([&] { encode(tokenizer, large, {.parse_added = true}); });
      CHECK(many < 30 * few + 0.03);
      const bool same = decode(tokenizer, encode(tokenizer, large)) == large;
      CHECK((same || name == "qwen3" || unit == "<unk>"));
    }
  }
}
