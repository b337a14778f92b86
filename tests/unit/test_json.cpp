// The JSON reader: what it gives, and what it refuses of files that nobody vouches for.
#include <doctest/doctest.h>
#include <limits>
#include <string>

#include "ggml-lite/json.h"

using lite::Code;
using lite::Json;

namespace {

void refused(const std::string& text, const std::string& why) {
  CAPTURE(text.substr(0, 80));
  const auto json = Json::parse(text, "x.json");
  REQUIRE(!json.ok());
  CHECK(json.status().code() == Code::Corrupt);
  const std::string& message = json.status().message();
  CHECK_MESSAGE(message.find("x.json") != std::string::npos, message);
  CHECK_MESSAGE(message.find(why) != std::string::npos, message);
}

Json parsed(const std::string& text) {
  auto json = Json::parse(text, "x.json");
  REQUIRE_MESSAGE(json.ok(), json.status().message());
  return std::move(*json);
}

std::string repeat(const std::string& text, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += text;
  return out;
}

}  // namespace

TEST_CASE("json: values") {
  const Json j = parsed(
      R"( {"a": null, "b": true, "i": -7, "d": 0.5, "s": "x\u00e9\ud83d\ude00\n", "l": [1, 2.0], "o": {}} )");
  CHECK(j.find("a")->is_null());
  CHECK(*j.find("b")->boolean());
  CHECK(*j.find("i")->integer() == -7);
  CHECK(j.find("d")->integer() == nullptr);
  double d = 0;
  CHECK(j.find("d")->number(&d));
  CHECK(d == 0.5);
  CHECK(j.find("i")->number(&d));
  CHECK(d == -7);
  CHECK(!j.find("s")->number(&d));
  CHECK(*j.find("s")->string() == "x\xC3\xA9\xF0\x9F\x98\x80\n");
  CHECK(j.find("l")->array()->size() == 2);
  CHECK(*j.find("l")->array()->at(0).integer() == 1);
  CHECK(j.find("l")->array()->at(1).integer() == nullptr);  // 2.0 is not an integer
  CHECK(j.find("o")->object()->empty());
  CHECK(j.find("none") == nullptr);
  CHECK(j.find("l")->find("a") == nullptr);
  const char* const types[] = {"null",     "a boolean", "an integer", "a number",
                               "a string", "a list",    "an object"};
  for (size_t i = 0; i < 7; ++i) CHECK(std::string((*j.object())[i].second.type_name()) == types[i]);
  CHECK((*j.object())[4].first == "s");  // in the order of the text
}

TEST_CASE("json: integers are exact or refused") {
  CHECK(*parsed("9223372036854775807").integer() == std::numeric_limits<int64_t>::max());
  CHECK(*parsed("-9223372036854775808").integer() == std::numeric_limits<int64_t>::min());
  CHECK(*parsed("9007199254740993").integer() == 9007199254740993);  // not a double
  CHECK(*parsed("-0").integer() == 0);
  refused("9223372036854775808", "integer 9223372036854775808 does not fit 64 bits");
  refused("-9223372036854775809", "integer -9223372036854775809 does not fit 64 bits");
  refused("18446744073709551615", "does not fit 64 bits");
  refused("{\"a\": 18446744073709551616}", "does not fit 64 bits");
  refused("1" + std::string(400, '0'), "");
}

TEST_CASE("json: doubles read back the same") {
  for (const double v : {0.1, 1e-6, 2.5, 1e300, 5e-324, 1.7976931348623157e308, 1.0 / 3, 163840.0, -0.0}) {
    double back = 0;
    REQUIRE(parsed(Json(v).dump()).number(&back));
    CHECK(back == v);
  }
  refused("1e999", "a number beyond the largest double");
  refused("[-1e400]", "a number beyond the largest double");
}

TEST_CASE("json: syntax errors say where") {
  refused("", "at byte");
  refused("   ", "at byte");
  refused("{\"a\": 1,}", "at byte 9");
  refused("[1 2]", "at byte 4");
  refused("{\"a\" 1}", "at byte 6");
  refused("{} x", "at byte 4");
  refused("{}{}", "at byte 3");
  refused("tru", "at byte");
  refused("NaN", "at byte");
  refused("[01]", "at byte");
  refused("[.5]", "at byte");
  refused("[1.]", "at byte");
  refused("[+1]", "at byte");
  refused("'a'", "at byte");
  refused("{a: 1}", "at byte");
  refused("[1, /* no */ 2]", "at byte");
  refused("\"tab\tin string\"", "at byte");
  refused("\"unfinished", "at byte");
  refused("\"\\x\"", "at byte");
  refused("\"\\ud800\"", "at byte");
  refused("\"\\udc00\"", "at byte");
  refused(std::string("[1]\0", 4), "at byte");
}

TEST_CASE("json: a byte order mark is refused") {
  refused("\xEF\xBB\xBF{}", "at byte 1: a byte order mark");
  CHECK(!Json::parse_wide("\xEF\xBB\xBF{}", "x.json").ok());
  for (const char* part : {"\xEF", "\xEF\xBB", "\xEF{}", "{}\xEF\xBB\xBF", "[\xEF\xBB\xBF]", "\xFE\xFF{}"})
    refused(part, "at byte");
  CHECK(*parsed("\"\xEF\xBB\xBF\"").string() == "\xEF\xBB\xBF");  // in a string it is a character
}

TEST_CASE("json: invalid UTF-8 is refused") {
  for (const char* bytes :
       {"\xFF", "\x80", "\xC3", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82"}) {
    refused(std::string("\"") + bytes + "\"", "at byte");
    refused(std::string("{\"") + bytes + "\": 1}", "at byte");
  }
  CHECK(*parsed("\"\xED\x9F\xBF\xF4\x8F\xBF\xBF\"").string() == "\xED\x9F\xBF\xF4\x8F\xBF\xBF");
}

TEST_CASE("json: a key twice in one object is refused, wherever it is") {
  refused("{\"a\": 1, \"a\": 1}", "key \"a\" appears twice");
  refused("{\"o\": [{\"k\": 1, \"b\": {}, \"k\": 2}]}", "key \"k\" appears twice");
  refused("{\"a\": 1, \"\\u0061\": 2}", "key \"a\" appears twice");
  CHECK(parsed("{\"a\": {\"a\": {\"a\": 1}}, \"b\": {\"a\": 1}}").object()->size() == 2);
  CHECK(parsed("[{\"a\": 1}, {\"a\": 1}]").array()->size() == 2);
}

TEST_CASE("json: nesting has an end") {
  parsed(repeat("[", 64) + repeat("]", 64));
  parsed(repeat("{\"a\":", 64) + "1" + repeat("}", 64));
  refused(repeat("[", 65) + repeat("]", 65), "nested deeper than 64");
  refused(repeat("{\"a\":", 65) + "1" + repeat("}", 65), "nested deeper than 64");
  refused(repeat("[", 10'000'000), "nested deeper than 64");
}

TEST_CASE("json: dump is one line that reads back the same") {
  const std::string text = R"({"z":1,"a":[true,null,-5,0.25,"\"\\\n\u0001é"],"o":{"k":{}}})";
  CHECK(parsed(text).dump() == text);
  Json j{Json::Object()};
  j.set("b", 1);
  j.set("a", "x");
  j.set("b", Json::Array{1, 2.5});
  CHECK(j.dump() == R"({"b":[1,2.5],"a":"x"})");
  CHECK(Json(std::string("\xFF")).dump().find('\xFF') == std::string::npos);  // what is no UTF-8 is replaced
}

TEST_CASE("json: every refusal has an offset") {
  for (const char* text :
       {"{\"a\": 1, \"a\": 1}", "[1, 18446744073709551616]", "[1, 9223372036854775808]", "[1, 1e999]"})
    refused(text, "at byte");
  refused(repeat("[", 65), "at byte");
}

TEST_CASE("json: large texts take time in proportion, and messages stay short") {
  std::string keys = "{", list = "[";
  for (int i = 0; i < 100000; ++i) {
    keys += lite::str(i ? "," : "", "\"some key, as long as the name of a tensor, ", i, "\":", i);
    list += "[],";
  }
  CHECK(parsed(keys + "}").object()->size() == 100000);
  refused(keys + ", \"some key, as long as the name of a tensor, 0\": 1}", "appears twice");
  CHECK(parsed(list + "1]").array()->size() == 100001);
  const std::string endless(1 << 20, '9');
  for (const std::string& text : {endless, "{\"" + endless + "\":1,\"" + endless + "\":1}", "[\"" + endless})
    CHECK(Json::parse(text, "text").status().message().size() < 400);
  const lite::Status large = Json::parse(std::string((size_t(64) << 20) + 1, ' '), "text").status();
  CHECK(large.code() == Code::Unsupported);
  CHECK(large.message().find("expected at most 67108864") != std::string::npos);
  // Short values are many: their number has an end, too. The list itself is one.
  std::string most = "[";
  for (int i = 0; i < (4 << 20) - 1; ++i) most += "0,";
  most.back() = ']';
  CHECK(parsed(most).array()->size() == (4 << 20) - 1);
  most.back() = ',';
  refused(most + "0]", "more than 4194304 values");
}

TEST_CASE("json: numbers of any size are kept when asked for") {
  const std::string digits(400, '7'),
      text = R"({"a" : 9223372036854775808, "b":[-9223372036854775809,1E400 , -1e400],)"
             R"("1E400,\\": {"c": ")" +
             digits + R"(","d":)" + digits + R"(}, "e":-1E+999,"f": 1.50 ,"g":true, "h": "1E400"})";
  std::vector<std::string_view> members;
  const auto read = Json::parse_wide(text, "x.json", &members);
  REQUIRE_MESSAGE(read.ok(), read.status().message());
  CHECK(*read->find("a")->wide_integer() == "9223372036854775808");
  CHECK(std::string(read->find("a")->type_name()) == "an integer");
  CHECK(read->find("a")->integer() == nullptr);
  const Json::Array& b = *read->find("b")->array();
  CHECK(*b[0].wide_integer() == "-9223372036854775809");
  const auto number = [](const Json& json) {
    double d = 0;
    CHECK(json.number(&d));
    return d;
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  CHECK(number(b[1]) == kInfinity);
  CHECK(number(b[2]) == -kInfinity);
  CHECK(number(*read->find("e")) == -kInfinity);
  CHECK(number(*read->find("f")) == 1.5);
  CHECK(*read->find("h")->string() == "1E400");
  const Json& nested = *read->find("1E400,\\");
  CHECK(*nested.find("c")->string() == digits);
  CHECK(*nested.find("d")->wide_integer() == digits);
  CHECK(nested.dump() == R"({"c":")" + digits + R"(","d":)" + digits + "}");
  const std::vector<std::string_view> want = {"9223372036854775808",
                                              "[-9223372036854775809,1E400 , -1e400]",
                                              members.at(2),
                                              "-1E+999",
                                              "1.50",
                                              "true",
                                              "\"1E400\""};
  CHECK(members == want);
  CHECK(members[2].size() == nested.dump().size() + 1);

  for (const std::string wrong : {"1E400.", "1E400x", "1E4001.5", "[1E400 1E400]", "01E400", "1.E400", "-",
                                  "1E400-", "{\"a\":1E400", "--1E400", "[\"1E400]", "tru1E400"}) {
    CAPTURE(wrong);
    CHECK(!Json::parse_wide(wrong, "x.json").ok());
  }
  CHECK(Json::parse_wide("[1E400,x]", "x.json").status().message().find("at byte 8") != std::string::npos);
}
