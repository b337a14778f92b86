// Stop texts against a search of the whole text, whatever pieces it comes in.
#include <doctest/doctest.h>

#include <random>

#include "text/stop.h"

using namespace dsv3;

namespace {

StopMatcher must_create(std::vector<std::string> stops) {
  auto matcher = StopMatcher::create(std::move(stops));
  REQUIRE_MESSAGE(matcher.ok(), matcher.status().message());
  return std::move(*matcher);
}

// The answer by its definition: up to the stop text that is complete first, of two the longer one.
std::string slow_answer(const std::string& text, const std::vector<std::string>& stops, bool* stopped) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops)
      if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    if (longest > 0) {
      *stopped = true;
      return text.substr(0, end - longest);
    }
  }
  *stopped = false;
  return text;
}

}  // namespace

TEST_CASE("a stop text ends the answer, wherever pieces begin and end") {
  StopMatcher m = must_create({"stop", "op!"});
  CHECK(m.add("a st") == "a ");
  CHECK(m.add("o") == "");
  CHECK(m.add("x") == "stox");
  CHECK(m.add("st") == "");
  CHECK_FALSE(m.stopped());
  CHECK(m.add("op!") == "");
  CHECK(m.stopped());
  CHECK(m.add("more") == "");
  CHECK(m.finish() == "");

  m = must_create({"stop", "xstop"});  // complete together: the longer one
  CHECK(m.add("axstop") == "a");
  m = must_create({"aab"});
  CHECK(m.add("aa") == "");
  CHECK(m.add("a") == "a");
  CHECK(m.finish() == "aa");
  m = must_create({});
  CHECK(m.add("all") == "all");
  CHECK(m.finish() == "");
}

TEST_CASE("characters are shown whole") {
  StopMatcher m = must_create({"é!"});
  CHECK(m.add("\xE4\xB8") == "");
  CHECK(m.add("\xAD\xC3") == "中");
  CHECK(m.add("\xA9") == "");
  CHECK(m.add("\xA9") == "é\xA9");
  CHECK(m.add("\xC3") == "");
  CHECK(m.finish() == "\xC3");
}

TEST_CASE("stop texts equal the search of the whole text") {
  const uint32_t seed = 21;
  INFO("seed ", seed);
  std::mt19937 random(seed);
  const auto word = [&](size_t longest) {
    std::string out;
    for (size_t n = 1 + random() % longest; n > 0; --n) out += "ab\xC3\xA9"[random() % 4];
    return out;
  };
  for (int round = 0; round < 5000; ++round) {
    CAPTURE(round);
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) stop = word(6);
    const std::string text = word(60);
    StopMatcher matcher = must_create(stops);
    std::string answer;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + random() % 5;
      answer += matcher.add(std::string_view(text).substr(at, n));
      at += n;
    }
    answer += matcher.finish();
    bool stopped = false;
    REQUIRE(answer == slow_answer(text, stops, &stopped));
    REQUIRE(matcher.stopped() == stopped);
  }
}

TEST_CASE("a long stop text that nearly comes again and again costs no more than the text") {
  const std::string most(100000, 'a');
  StopMatcher m = must_create({most + "b"});
  size_t shown = 0;
  for (int i = 0; i < 2000000; i += 50) shown += m.add(std::string(50, 'a')).size();
  CHECK(shown == 1900000);
  CHECK(m.add("b") == "");
  CHECK(m.stopped());
}

TEST_CASE("stop texts that make no sense") {
  CHECK(StopMatcher::create({"a", ""}).status().message().find("stop text 1 is empty") != std::string::npos);
  CHECK(StopMatcher::create(std::vector<std::string>(257, "a")).status().code() ==
        lite::Code::InvalidArgument);
  CHECK(StopMatcher::create({std::string((1 << 20) + 1, 'a')}).status().code() ==
        lite::Code::InvalidArgument);
}
