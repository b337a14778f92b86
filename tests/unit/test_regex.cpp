// Regular expressions of pre-tokenizers: what they match, what is refused, and that no match takes endless
// time.
#include <doctest/doctest.h>
#include <ctime>

#include <tuple>

#include "text/regex.h"

using namespace dsv3;
using lite::Code;

namespace {

using Pieces = std::vector<std::string>;

Pieces split(std::string_view pattern, std::string_view text) {
  const lite::Result<Regex> regex = Regex::compile(pattern);
  REQUIRE_MESSAGE(regex.ok(), pattern << ": " << regex.status().message());
  std::vector<std::string_view> views;
  const lite::Status status = regex->split(text, MatchTime(text.size()), &views);
  REQUIRE_MESSAGE(status.ok(), pattern << ": " << status.message());
  return Pieces(views.begin(), views.end());
}

}  // namespace

TEST_CASE("regular expressions cut as Oniguruma does") {
  // Expected pieces are those of Hugging Face tokenizers' Split(Regex(pattern), "isolated").
  const std::vector<std::tuple<std::string, std::string, Pieces>> cases = {
      {"b", "abc", {"a", "b", "c"}},
      {"a|ab", "ab", {"a", "b"}},  // leftmost-first, not longest
      {"ab|a", "ab", {"ab"}},
      {"(?:a|ab)(?:c|bcd)", "abcd", {"abcd"}},
      {"a*b", "aab", {"aab"}},
      {"a+?b?", "aab", {"a", "ab"}},
      {"a??b", "ab", {"ab"}},
      {"a{2}", "aaaaa", {"aa", "aa", "a"}},
      {"a{2,}", "a aaa", {"a ", "aaa"}},
      {"a{1,2}?", "aaa", {"a", "a", "a"}},
      {"a{0,2}b", "aaab", {"a", "aab"}},
      {"x(a|b)+", "xab", {"xab"}},
      {"[a-c-e]+", "-d", {"-", "d"}},
      {"[a-]+", "-a-b", {"-a-", "b"}},
      {"[^\\s\\d]+", "ab 1", {"ab", " 1"}},
      {"[\\]\\\\\\-]+", "]\\-a", {"]\\-", "a"}},
      {".", "a\nb", {"a", "\n", "b"}},
      {"(?i:'s|ka)",
       "'S'sxKA'ſ'ſ\u212Aa\u212Aa",
       {"'S", "'s", "x", "KA", "'ſ", "'ſ", "\u212Aa", "\u212Aa"}},  // folding
      {"(?i:[a-c])x", "Bx", {"Bx"}},
      {"(?i:a)b", "AB", {"AB"}},
      {"\\s+(?!\\S)|\\s+", "a   b ", {"a", "  ", " ", "b", " "}},
      {"a(?=b)", "abac", {"a", "bac"}},
      {"a(?!b)", "abac", {"ab", "a", "c"}},
      {"\\s+$", "a  \n  b  \n", {"a", "  ", "\n  b", "  \n"}},  // $ at each line's end
      {"a$", "a\na", {"a", "\n", "a"}},
      {"[a-c&&[b-d]]+", "abcd", {"a", "bc", "d"}},
      {"[a-d&&[^b]]+", "abcd", {"a", "b", "cd"}},
      {"(?<=a)b", "ab", {"a", "b"}},
      {"^a", "aa\na", {"a", "a\n", "a"}},  // ^ at each line's beginning
      {"\\p{Lu}\\P{Lu}", "aBc", {"a", "Bc"}},
      {"\\p{Han}+", "中あ文々", {"中", "あ", "文々"}}};
  for (const auto& row : cases) {
    const auto& pattern = std::get<0>(row);
    const auto& text = std::get<1>(row);
    const auto& pieces = std::get<2>(row);
    CAPTURE(pattern);
    CHECK(split(pattern, text) == pieces);
  }
  const lite::Result<Regex> literal = Regex::literal("a.(b\\中 \n");
  REQUIRE(literal.ok());
  std::vector<std::string_view> views;
  REQUIRE(literal->split("xa.(b\\中 \nx", MatchTime(11), &views).ok());
  CHECK(Pieces(views.begin(), views.end()) == Pieces{"x", "a.(b\\中 \n", "x"});
}

TEST_CASE("white space is what Unicode says it is") {
  for (const std::string c : {"\t", "\v", "\f", "\r", " ", "\u0085", "\u00A0", "\u1680", "\u2000", "\u200A",
                              "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"})
    CHECK(split("\\s", "x" + c + "x") == Pieces{"x", c, "x"});
  for (const std::string c : {"\u0008", "\u000E", "\u0084", "\u180E", "\u200B", "\u2060", "\uFEFF"})
    CHECK(split("\\s", "x" + c + "x") == Pieces{"x" + c + "x"});
}

TEST_CASE("regular expressions that would mean something else here are refused by name") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"(?i)a", "\"(?i\" at byte 0"},
      {"(*FAIL)", "\"(*F\""},
      {"(?C1)a", "\"(?C\""},
      {"(?R)", "\"(?R\""},
      {"(?<n>a)", "\"(?<\""},
      {"a{,2}", "this { at byte 1"},
      {"a{2}?", "this { at byte 1"},
      {"a{2", "this { at byte 1"},
      {"[a[bc]]", "a class inside a class at byte 2"},
      {"[a&&b]", "a class inside a class"},
      {"[[:alpha:]]", "a class inside a class"},
      {"[]a]", "an empty class"},
      {"[a", "a class without an end at byte 0"},
      {"\\w", "\\w at byte 0"},
      {"\\h", "\\h"},
      {"(a)\\1", "\\1"},
      {"\\C", "\\C"},
      {"a\\", "a lone backslash"},
      {"\\pL", "\\p without a name"},
      {"(a", "parenthesis"},
      {"*a", "quantifier"},
      {"[z-a]", "range"},
      {"\\p{Nonsense}", "property"},
      {std::string(70000, 'a'), "70000 bytes"}};
  for (const auto& row : cases) {
    const auto& pattern = row.first;
    const auto& message = row.second;
    CAPTURE(pattern.substr(0, 40));
    const lite::Status status = Regex::compile(pattern).status();
    CHECK(status.code() == Code::Unsupported);
    CHECK_MESSAGE(status.message().find(message) != std::string::npos, status.message());
  }
}

TEST_CASE("long runs take neither endless time nor endless stack") {
  const std::string spaces(1000000, ' '), letters(1000000, 'a');
  CHECK(split("\\s+$", spaces + "1") == Pieces{spaces + "1"});
  CHECK(split("\\s+$", "x" + spaces + "\n1") == Pieces{"x", spaces, "\n1"});
  CHECK(split("[\\p{L}&&[^\\p{Han}]]+", letters) == Pieces{letters});
}

TEST_CASE("a pattern that would never end is an error, and soon") {
  const std::string many = std::string(5000, 'a') + "cb";
  const struct {
    std::string pattern, text;
    bool ends;
  } cases[] = {
      {"(?:a+)+b", many.substr(4900), false},  // exponential in one place
      {"a*a*a*a*b", many, false},              // a fourth power
      {"(?:a?){50}b", many, false},            // every place looks far ahead
      {"a(?=a*c)|a(?=a*x)", many, true},       // and here at all the rest: squared, but soon done
  };
  for (const auto& c : cases) {
    CAPTURE(c.pattern);
    const lite::Result<Regex> regex = Regex::compile(c.pattern);
    REQUIRE(regex.ok());
    std::vector<std::string_view> pieces;
    const std::clock_t begin = std::clock();
    const lite::Status status = regex->split(c.text, MatchTime(c.text.size(), 0.2), &pieces);
    CHECK(double(std::clock() - begin) / CLOCKS_PER_SEC < 60);
    CHECK(status.ok() == c.ends);
    if (!status.ok()) CHECK(status.code() == Code::Unsupported);
  }
}
