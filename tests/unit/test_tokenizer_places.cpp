// Where tokens lie in the text that was given.
#include <doctest/doctest.h>

#include <algorithm>

#include "tests/unit/tokenizer_support.h"

using namespace tokenizer_test;

// In characters, as Hugging Face tokenizers 0.23.3 gives them ("offsets"), but for what NFC composes: there it gives the
// first character alone, 3..4 for the "e\u0301" of the first text.
TEST_CASE("places in the text that was given, however it is rewritten") {
  struct Case {
    const char *tokenizer, *text;
    std::vector<std::pair<size_t, size_t>> characters;
  };
  const Case cases[] = {
      {"qwen3", "cafe\u0301 noir x", {{0, 2}, {2, 3}, {3, 5}, {5, 7}, {7, 8}, {8, 10}, {10, 11}, {11, 12}}},
      {"qwen3", "Mr. Bennet", {{0, 1}, {1, 2}, {2, 3}, {3, 5}, {5, 7}, {7, 8}, {8, 10}}},
      {"qwen3", "  a  b", {{0, 1}, {1, 3}, {3, 4}, {4, 6}}},
      {"qwen3", "caf\u00E9 \u2603z", {{0, 2}, {2, 3}, {3, 4}, {4, 5}, {5, 6}, {5, 6}, {5, 6}, {6, 7}}},
      {"qwen3",
       "<s>hi</s> x<|im_start|>y",
       {{0, 1},
        {1, 2},
        {2, 3},
        {3, 5},
        {5, 6},
        {6, 7},
        {7, 8},
        {8, 9},
        {9, 10},
        {10, 11},
        {11, 23},
        {23, 24}}},
      {"qwen3", " ", {{0, 1}}},
      {"qwen3", "\u212B x", {{0, 1}, {0, 1}, {1, 2}, {2, 3}}},
      {"mixtral",
       "cafe\u0301 noir x",
       {{0, 1}, {0, 2}, {2, 3}, {3, 4}, {4, 5}, {4, 5}, {5, 7}, {7, 8}, {8, 10}, {10, 11}, {11, 12}}},
      {"mixtral", "Mr. Bennet", {{0, 1}, {1, 2}, {2, 3}, {3, 7}, {7, 8}, {8, 10}}},
      {"mixtral", "  a  b", {{0, 1}, {0, 1}, {1, 3}, {3, 4}, {4, 6}}},
      {"mixtral",
       "caf\u00E9 \u2603z",
       {{0, 1}, {0, 2}, {2, 3}, {3, 4}, {4, 5}, {5, 6}, {5, 6}, {5, 6}, {6, 7}}},
      {"mixtral",
       "<s>hi</s> x<|im_start|>y",
       {{0, 3},
        {3, 4},
        {3, 5},
        {5, 9},
        {9, 10},
        {9, 10},
        {10, 11},
        {11, 12},
        {12, 13},
        {13, 15},
        {15, 16},
        {16, 18},
        {18, 21},
        {21, 22},
        {22, 23},
        {23, 24}}},
      {"mixtral", " ", {{0, 1}, {0, 1}}},
      {"mixtral", "\u212B x", {{0, 1}, {0, 1}, {0, 1}, {0, 1}, {1, 2}, {2, 3}}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.tokenizer);
    CAPTURE(c.text);
    const Tokenizer t = must_open(golden_files(c.tokenizer));
    const std::string_view text = c.text;
    Ids ids;
    std::vector<TextSpan> places;
    REQUIRE(t.encode(text, {.parse_added = true}, &ids, &places).ok());
    CHECK(ids == encode(t, text, {.parse_added = true}));
    REQUIRE(places.size() == ids.size());
    const auto begun = [&](size_t end) {  // characters
      return size_t(std::count_if(text.begin(), text.begin() + ptrdiff_t(end),
                                  [](char b) { return (b & 0xC0) != 0x80; }));
    };
    std::vector<std::pair<size_t, size_t>> got;
    for (const TextSpan& p : places) {
      REQUIRE(p.begin < p.end);
      REQUIRE(p.end <= text.size());
      got.emplace_back(begun(p.begin + 1) - 1, begun(p.end));
    }
    CHECK(got == c.characters);
  }
}

TEST_CASE("places with a beginning, with fused unknown characters, and of bytes that are not UTF-8") {
  Ids ids;
  const std::string text =
      "a\xF0\x9F\x98\x80 \xFF"
      "e\u0301 b";
  for (const char* name : {"deepseek-v3", "deepseek-v2", "qwen3", "mixtral", "kimi-k2"}) {
    CAPTURE(name);
    const Tokenizer t = must_open(golden_files(name));
    std::vector<TextSpan> places(7);
    REQUIRE(t.encode(text, {}, &ids, &places).ok());
    REQUIRE(places.size() == ids.size());
    size_t covered = 0;  // every byte comes from somewhere
    for (const TextSpan& p : places) {
      CHECK(p.begin <= covered);
      covered = std::max(covered, p.end);
    }
    CHECK(covered == text.size());
    if (t.bos() < 0) continue;
    std::vector<TextSpan> after;
    REQUIRE(t.encode(text, {.bos = true}, &ids, &after).ok());
    REQUIRE(after.size() == places.size() + 1);
    CHECK(after[0].end == 0);
    CHECK(after[1].end == places[0].end);
  }
}
