// What the tests of tokenizers share: golden files, opening them from memory, a small tokenizer.json to change.
#pragma once

#include <doctest/doctest.h>

#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-lite/json.h"
#include "tests/unit/advice.h"
#include "text/tokenizer.h"

namespace tokenizer_test {

using namespace dsv3;
using lite::Code;
using lite::Json;

using Ids = std::vector<int32_t>;
using Pieces = std::vector<std::string>;
using FileMap = std::map<std::string, std::string>;

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE_MESSAGE(in.good(), path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline std::string golden(const std::string& name, const std::string& file) {
  return slurp(std::string(DSV3_SOURCE_DIR) + "/tests/golden/tokenizers/" + name + "/" + file);
}

inline FileMap golden_files(const std::string& name) {
  if (name != "kimi-k2") return {{"tokenizer.json", golden(name, "tokenizer.json")}};
  return {{"tiktoken.model", golden(name, "tiktoken.model")},
          {"tokenizer_config.json", golden(name, "tokenizer_config.json")}};
}

inline Result<Tokenizer> open_files(const FileMap& files) {
  std::map<std::string, std::string_view, std::less<>> views;
  for (const auto& [name, text] : files) views[name] = text;
  return Tokenizer::open([&](std::string_view name) -> const std::string_view* {
    const auto found = views.find(name);
    return found == views.end() ? nullptr : &found->second;
  });
}

inline Tokenizer must_open(const FileMap& files) {
  Result<Tokenizer> tokenizer = open_files(files);
  REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.status().message());
  return std::move(*tokenizer);
}

inline Json must_parse(const std::string& text) {
  Result<Json> json = Json::parse(text, "a test's file");
  REQUIRE_MESSAGE(json.ok(), json.status().message());
  return std::move(*json);
}

inline Ids encode(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  Ids ids;
  const Status status = tokenizer.encode(text, options, &ids);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return ids;
}

inline std::string decode(const Tokenizer& tokenizer, const Ids& ids, DecodeOptions options = {}) {
  const Result<std::string> text = tokenizer.decode(ids, options);
  REQUIRE_MESSAGE(text.ok(), text.status().message());
  return *text;
}

inline Ids ids_of(const Json& list) {
  Ids ids;
  for (const Json& id : *list.array()) ids.push_back(int32_t(*id.integer()));
  return ids;
}

inline void refused(const FileMap& files, Code code, const std::string& message) {
  const Result<Tokenizer> tokenizer = open_files(files);
  CAPTURE(message);
  CHECK(tokenizer.status().code() == code);
  CHECK_MESSAGE(tokenizer.status().message().find(message) != std::string::npos,
                tokenizer.status().message());
  CHECK_MESSAGE(has_advice(tokenizer.status().message()), tokenizer.status().message());
}

// ---- a small tokenizer.json to change

inline std::string utf8(uint32_t c) {
  if (c < 0x80) return {char(c)};
  if (c < 0x800) return {char(0xC0 | c >> 6), char(0x80 | (c & 63))};
  if (c < 0x10000) return {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
  return {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 63)), char(0x80 | (c >> 6 & 63)),
          char(0x80 | (c & 63))};
}

// GPT-2's printable stand-in of each byte.
inline std::vector<std::string> byte_letters() {
  std::vector<std::string> out;
  uint32_t next = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    out.push_back(utf8(itself ? b : next++));
  }
  return out;
}

inline Json added(int64_t id, const std::string& text, bool special, bool normalized = false) {
  return Json::Object{{"id", id},        {"content", text}, {"special", special},  {"normalized", normalized},
                      {"lstrip", false}, {"rstrip", false}, {"single_word", false}};
}

// 256 bytes with their values as ids, a few merges, two added tokens; pieces are runs of letters and what is
// between.
inline Json small_json() {
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

inline FileMap file(const Json& json) {
  return {{"tokenizer.json", json.dump()}};
}

// Characters instead of bytes: "_" stands for a space, "<0xNN>" for a byte, and what has neither is "<unk>".
inline Json small_characters_json() {
  Json::Object vocab;
  const auto add = [&](const std::string& text) { vocab.emplace_back(text, int64_t(vocab.size())); };
  for (const char* text : {"<unk>", "<s>", "</s>"}) add(text);
  for (int b = 0; b < 256; ++b) {
    const char* digits = "0123456789ABCDEF";
    add(std::string("<0x") + digits[b / 16] + digits[b % 16] + ">");
  }
  for (const char* text : {"_", "a", "b", "é", "_a", "_ab", "__", "aa"}) add(text);  // 259..266
  const auto replace = [](const char* pattern, const char* content) {
    return Json(Json::Object{
        {"type", "Replace"}, {"pattern", Json::Object{{"String", pattern}}}, {"content", content}});
  };
  return Json::Object{
      {"added_tokens", Json::Array{added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)}},
      {"normalizer",
       Json::Object{{"type", "Sequence"},
                    {"normalizers",
                     Json::Array{Json::Object{{"type", "Prepend"}, {"prepend", "_"}}, replace(" ", "_")}}}},
      {"pre_tokenizer", Json()},
      {"post_processor", Json()},
      {"decoder",
       Json::Object{
           {"type", "Sequence"},
           {"decoders",
            Json::Array{replace("_", " "), Json::Object{{"type", "ByteFallback"}},
                        Json::Object{{"type", "Fuse"}},
                        Json::Object{{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
      {"model", Json::Object{{"type", "BPE"},
                             {"unk_token", "<unk>"},
                             {"fuse_unk", true},
                             {"byte_fallback", true},
                             {"vocab", std::move(vocab)},
                             {"merges", Json::Array{"_ a", "_a b", "_ _", "a a"}}}}};
}

inline Json* member(Json* object, std::string_view key) {
  for (auto& [k, v] : *object->object())
    if (k == key) return &v;
  return nullptr;
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

}  // namespace tokenizer_test
