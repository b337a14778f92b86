// Tokenizer files that are wrong, and those that ask for what is not implemented: one row a rule.
#include <doctest/doctest.h>

#include "tests/unit/tokenizer_support.h"

using namespace tokenizer_test;

TEST_CASE("tokenizer.json: parts that are not implemented are refused by name") {
  const auto with = [](const char* part, const std::string& value) {
    Json json = small_json();
    json.set(part, must_parse(value));
    return file(json);
  };
  refused(with("normalizer", R"({"type": "NFKC"})"), Code::Unsupported, "tokenizer.json: normalizer: NFKC");
  refused(with("normalizer", R"({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]})"),
          Code::Unsupported, "Lowercase");
  refused(with("normalizer", R"({"type": "NFC", "stop": 1})"), Code::Unsupported, "NFC: field \"stop\"");
  refused(with("normalizer", R"({"type": "Prepend"})"), Code::Corrupt, "prepend: got null");
  refused(with("normalizer", R"({"type": "Prepend", "prepend": ")" + std::string(65, 'x') + "\"}"),
          Code::Unsupported, "prepend: 65 bytes");
  const auto replace = [](const std::string& pattern, const std::string& content) {
    return R"({"type": "Replace", "pattern": )" + pattern + R"(, "content": )" + content + "}";
  };
  CHECK(open_files(with("normalizer", replace(R"({"String": "x"})", "\"\""))).ok());
  refused(with("normalizer", replace(R"({"Regex": "x"})", "\"\"")), Code::Unsupported, "a Regex");
  refused(with("normalizer", replace(R"({"String": ""})", "\"\"")), Code::Unsupported, "an empty string");
  refused(with("normalizer", replace("\"x\"", "\"\"")), Code::Corrupt, "pattern: String: got null");
  refused(with("normalizer", replace(R"({"String": "x"})", "5")), Code::Corrupt, "content: got an integer");
  const std::string ninefold = replace(R"({"String": "x"})", "\"xxxxxxxxx\"");
  CHECK(open_files(with("normalizer", ninefold)).ok());
  refused(with("normalizer", R"({"type": "Sequence", "normalizers": [)" + ninefold + ", " + ninefold + "]}"),
          Code::Unsupported, "more than 64 times as long");
  std::string nested = R"({"type": "NFC"})";
  for (int i = 0; i < 5; ++i) nested = R"({"type": "Sequence", "normalizers": [)" + nested + "]}";
  refused(with("normalizer", nested), Code::Unsupported, "deep");
  std::string many = R"({"type": "NFC"})";
  for (int i = 0; i < 16; ++i) many += R"(, {"type": "NFC"})";
  refused(with("normalizer", R"({"type": "Sequence", "normalizers": [)" + many + "]}"), Code::Unsupported,
          "more than 16 normalizers");
  refused(with("normalizer", R"({"type": "Sequence"})"), Code::Corrupt, "normalizers: got null");
  refused(with("normalizer", R"({})"), Code::Corrupt, "type: got null");
  CHECK(open_files(with("normalizer", R"({"type": "Sequence", "normalizers": []})")).ok());
  refused(with("decoder", R"({"type": "CTC"})"), Code::Unsupported, "decoder: CTC");
  refused(with("decoder", R"({"type": "ByteLevel", "lossy": true})"), Code::Unsupported, "field \"lossy\"");
  refused(with("decoder", R"({"type": "Fuse"})"), Code::Unsupported, "without the other");
  refused(with("decoder", R"({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]})"),
          Code::Unsupported, "together with other steps");
  refused(with("decoder", "null"), Code::Unsupported, "decoder: null");
  refused(with("post_processor", R"({"type": "BertProcessing"})"), Code::Unsupported,
          "post_processor: BertProcessing");
  refused(with("post_processor", R"({"type": "Sequence", "processors": [{"type": "Sequence"}]})"),
          Code::Unsupported, "a Sequence inside a Sequence");
  refused(with("post_processor", R"({"type": "TemplateProcessing"})"), Code::Corrupt, "single: got null");
  const std::string text = R"({"Sequence": {"id": "A", "type_id": 0}})",
                    mark = R"({"SpecialToken": {"id": "<s>", "type_id": 0}})";
  const auto with_template = [&](const std::string& single, const std::string& ids) {
    return with("post_processor", R"({"type": "TemplateProcessing", "single": [)" + single +
                                      R"(], "special_tokens": {"<s>": {"id": "<s>", "ids": )" + ids + "}}}");
  };
  CHECK(open_files(with_template(mark + ", " + text, "[260]")).ok());
  CHECK(open_files(with_template(text, "[260]")).ok());
  for (const std::string& single :
       {std::string(), text + ", " + mark, mark, mark + ", " + mark + ", " + text})
    refused(with_template(single, "[260]"), Code::Unsupported, "TemplateProcessing: single: ");
  refused(with_template(text + ", " + text, "[260]"), Code::Corrupt, "single: SpecialToken: id: got null");
  for (const std::string ids : {"[]", "[1, 2]", "5", "[\"<s>\"]"})
    refused(with_template(mark + ", " + text, ids), Code::Corrupt, "expected a list of one id");
  refused(with_template(mark + ", " + text, "[-1]"), Code::Corrupt, "id -1");
  refused(with_template(mark + ", " + text, "[5000]"), Code::Corrupt, "id 5000 is no token");
  CHECK(open_files(with("post_processor", "null")).ok());

  refused(with("pre_tokenizer", "null"), Code::Unsupported, "without the other");
  refused(with("pre_tokenizer", R"({"type": "BertPreTokenizer"})"), Code::Unsupported,
          "pre_tokenizer: BertPreTokenizer");
  refused(with("pre_tokenizer", R"({"type": "Sequence", "pretokenizers": []})"), Code::Unsupported,
          "without the other");
  for (const auto& [rest, code, part] : std::vector<std::tuple<std::string, Code, std::string>>{
           {"", Code::Corrupt, "replacement: got null"},
           {R"(, "replacement": "")", Code::Corrupt, "replacement: \"\" is not one"},
           {R"(, "replacement": "ab")", Code::Corrupt, "replacement: \"ab\" is not one"},
           {R"(, "replacement": "_", "prepend_scheme": "last")", Code::Unsupported,
            "prepend_scheme \"last\""},
           {R"(, "replacement": "_", "add_prefix_space": false, "prepend_scheme": "always")", Code::Corrupt,
            "add_prefix_space is false"},
           {R"(, "replacement": "_", "left": 1)", Code::Unsupported, "field \"left\""}})
    refused(with("pre_tokenizer", R"({"type": "Metaspace")" + rest + "}"), code, "Metaspace: " + part);
  refused(with("pre_tokenizer",
               R"({"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "Metaspace"}]})"),
          Code::Unsupported, "only the first step");
  refused(with("pre_tokenizer", R"({"type": "Digits", "base": 16})"), Code::Unsupported, "field \"base\"");
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
  refused(split_with(R"("pattern": {}, "behavior": "Isolated")"), Code::Corrupt,
          "neither a Regex nor a String");
  refused(split_with(R"("pattern": {"Glob": "a"}, "behavior": "Isolated")"), Code::Unsupported,
          "pattern: field \"Glob\"");
  refused(split_with(R"("pattern": {"Regex": "a"}, "behavior": "Isolated", "flags": "i")"), Code::Unsupported,
          "field \"flags\"");
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
  refused(with("unk_token", "\"<unk>\""), Code::Corrupt, "unk_token: \"<unk>\" is not in the vocabulary");
  refused(with("unk_token", "0"), Code::Corrupt, "unk_token: got an integer");
  refused(with("fuse_unk", "1"), Code::Corrupt, "fuse_unk: got an integer");
  refused(with("byte_fallback", "true"), Code::Unsupported, "byte_fallback with ByteLevel");
  refused(with("cache_capacity", "5"), Code::Unsupported, "model: field \"cache_capacity\"");
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
    refused(with_added(R"([{"id": 300, "content": "<x>", ")" + flag + R"(": 1}])"), Code::Corrupt,
            flag + ": got an integer");
  refused(with_added(R"([{"id": 300, "content": "<x>", "case": 1}])"), Code::Unsupported, "field \"case\"");
  refused(with_added(R"([{"id": 300, "content": "<x>", "special": 1}])"), Code::Corrupt,
          "special: got an integer");
  refused(with_added(R"([{"id": 300, "content": ")" + std::string(1001, 'x') + "\"}]"), Code::Unsupported,
          "1001 bytes");

  {
    Json json = small_json();
    json.set("tokenizer_type", "x");
    refused(file(json), Code::Unsupported, "tokenizer.json: field \"tokenizer_type\"");
  }
  refused({{"tokenizer.json", "[]"}}, Code::Corrupt, "got a list, expected the tokenizer's definition");
  refused({{"tokenizer.json", "{}"}}, Code::Corrupt, "got an object without an object \"model\"");
  refused({{"tokenizer.json", ""}}, Code::Corrupt, "tokenizer.json");
  refused({}, Code::NotFound, "neither tokenizer.json nor tiktoken.model");
}

TEST_CASE("tokenizer.json of characters: decoders and vocabularies that make no sense") {
  const auto with_decoders = [](const std::string& decoders) {
    Json json = small_characters_json();
    json.set("decoder", must_parse(R"({"type": "Sequence", "decoders": [)" + decoders + "]}"));
    return file(json);
  };
  const std::string fuse = R"({"type": "Fuse"})", fallback = R"({"type": "ByteFallback"})",
                    replace = R"({"type": "Replace", "pattern": {"String": "_"}, "content": " "})";
  const auto strip = [](const std::string& rest) { return R"({"type": "Strip", "content": )" + rest + "}"; };
  CHECK(open_files(with_decoders("")).ok());
  CHECK(open_files(with_decoders(replace + ", " + fallback + ", " + fuse)).ok());
  refused(with_decoders(replace + ", " + strip(R"(" ", "start": 1, "stop": 0)")), Code::Unsupported,
          "after Fuse");
  const std::string good = fuse + ", " + strip(R"(" ", "start": 1, "stop": 0)");
  CHECK(open_files(with_decoders(good)).ok());
  refused(with_decoders(good + ", " + strip(R"(" ", "start": 1, "stop": 0)")), Code::Unsupported,
          "step 2: Strip");
  refused(with_decoders(fuse + ", " + strip(R"(" ", "start": 1, "stop": 1)")), Code::Unsupported, "stop 1");
  refused(with_decoders(fuse + ", " + strip(R"(" ", "start": -1, "stop": 0)")), Code::Corrupt, "numbers");
  refused(with_decoders(fuse + ", " + strip(R"(" ", "start": 1)")), Code::Corrupt, "numbers");
  refused(with_decoders(fuse + ", " + strip(R"("ab", "start": 1, "stop": 0)")), Code::Corrupt,
          "is not one character");
  refused(with_decoders(fuse + ", " + replace), Code::Unsupported, "Replace after Fuse");
  refused(with_decoders(fallback + ", " + replace), Code::Unsupported, "Replace after ByteFallback");
  refused(with_decoders(R"({"type": "Metaspace", "replacement": "_"}, )" + fuse), Code::Unsupported,
          "together");
  std::string many = replace;
  for (int i = 0; i < 16; ++i) many += ", " + replace;
  refused(with_decoders(many), Code::Unsupported, "more than 16 Replaces");
  const std::string ninefold = R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaa"})";
  refused(with_decoders(ninefold + ", " + ninefold), Code::Unsupported, "more than 64 times as long");
  Json json = small_characters_json();
  json.set("decoder", must_parse(R"({"type": "ByteLevel"})"));
  refused(file(json), Code::Unsupported, "without the other");

  json = small_characters_json();
  member(&json, "model")->set("vocab", Json::Object{{"<unk>", 0}});
  refused(file(json), Code::Corrupt, "no token is a single character");
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
