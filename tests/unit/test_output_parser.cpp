// What models write, split into parts: every format, malformed calls, and every way to cut the text.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "text/output_parser.h"

using namespace dsv3;
using Kind = OutputEvent::Kind;

namespace {

// Events as text, one kind's pieces put together: C[content] R[reasoning] T[name|id|arguments] N.
std::string shown(const std::vector<OutputEvent>& events) {
  std::string out;
  Kind last = Kind::Note;
  for (const OutputEvent& e : events) {
    const bool goes_on = e.kind == last && (e.kind == Kind::Content || e.kind == Kind::Reasoning);
    if (goes_on) out.pop_back();
    if (e.kind == Kind::ToolCall)
      out += "T[" + e.name + "|" + e.id + "|" + e.text + "]";
    else if (e.kind == Kind::Note)
      out += "N";
    else
      out += (goes_on ? "" : e.kind == Kind::Content ? "C[" : "R[") + e.text + "]";
    last = e.kind;
  }
  return out;
}

std::string parse(const std::string& text, const std::string& prompt, const std::vector<size_t>& cuts) {
  OutputParser parser(prompt);
  std::vector<OutputEvent> events;
  const auto take = [&](std::vector<OutputEvent> more) {
    events.insert(events.end(), more.begin(), more.end());
  };
  size_t begin = 0;
  for (const size_t cut : cuts) {
    take(parser.add(std::string_view(text).substr(begin, cut - begin)));
    begin = cut;
  }
  take(parser.add(std::string_view(text).substr(begin)));
  take(parser.finish());
  return shown(events);
}

// The same whatever the cuts: each byte alone, any two pieces, and random ones.
void check(const std::string& text, const std::string& want, const std::string& prompt = "") {
  CAPTURE(text);
  REQUIRE(parse(text, prompt, {}) == want);
  std::vector<size_t> every;
  for (size_t i = 1; i < text.size(); ++i) every.push_back(i);
  REQUIRE(parse(text, prompt, every) == want);
  for (size_t i = 0; i <= text.size(); ++i) REQUIRE(parse(text, prompt, {i}) == want);
  const unsigned seed = 20261122;
  CAPTURE(seed);
  std::mt19937 rng(seed);
  for (int n = 0; n < 50; ++n) {
    std::vector<size_t> cuts;
    for (size_t i = 1; i < text.size(); ++i)
      if (rng() % 5 == 0) cuts.push_back(i);
    REQUIRE(parse(text, prompt, cuts) == want);
  }
}

std::string deepseek(const std::string& calls) {
  return "<｜tool▁calls▁begin｜>" + calls + "<｜tool▁calls▁end｜>";
}
std::string v3_call(const std::string& name, const std::string& arguments) {
  return "<｜tool▁call▁begin｜>function<｜tool▁sep｜>" + name + "\n```json\n" + arguments +
         "\n```<｜tool▁call▁end｜>";
}
std::string v31_call(const std::string& name, const std::string& arguments) {
  return "<｜tool▁call▁begin｜>" + name + "<｜tool▁sep｜>" + arguments + "<｜tool▁call▁end｜>";
}
std::string kimi_call(const std::string& id, const std::string& arguments) {
  return "<|tool_call_begin|>" + id + "<|tool_call_argument_begin|>" + arguments + "<|tool_call_end|>";
}

}  // namespace

TEST_CASE("output: plain text is itself") {
  check("", "");
  check("Hello, world", "C[Hello, world]");
  check("\n\n a \n\nb\n\n", "C[\n\n a \n\nb\n\n]");
  check("\n", "C[\n]");
  check("1 < 2 <b> <think <tool_cal <| <｜tool <｜tool▁calls▁begin",
        "C[1 < 2 <b> <think <tool_cal <| <｜tool <｜tool▁calls▁begin]");
  check("日本 😀 é", "C[日本 😀 é]");
  check("</think>x", "C[</think>x]");
}

TEST_CASE("output: reasoning") {
  check("<think>\nadd them\n</think>\n\n4", "R[add them]C[4]");
  check("\n<think>a\n\nb</think>c", "R[a\n\nb]C[c]");
  check("add\n</think>\n\n4\n", "R[add]C[4\n]", "...<｜Assistant｜><think>\n");
  check("add</think>4", "R[add]C[4]", "<think>");
  check("no end\n", "R[no end\n]", "<think>");
  check("<think></think>x", "C[x]");
  check("<think>\n\n</think>\n\nx", "C[x]");
  check("answer about <think> marks </think>", "C[answer about <think> marks </think>]");
  check("<think>a</think>b<think>c", "R[a]C[b<think>c]");
  check("a", "C[a]", "<think></think>");
  check("<think>a <tool_call>b</think>c", "R[a <tool_call>b]C[c]");
}

TEST_CASE("output: tool calls of every family") {
  check(deepseek(v3_call("f", "{\"a\": 1}")), "T[f||{\"a\": 1}]");
  check("Look:\n" + deepseek(v3_call("f", "{}") + "\n" + v3_call("g", "{\"x\": \"``` </x>\"}")) + "\n",
        "C[Look:]T[f||{}]T[g||{\"x\": \"``` </x>\"}]");
  check(deepseek(v31_call("get_weather", "{\"city\": \"Zürich\"}") + v31_call("g", "{}")),
        "T[get_weather||{\"city\": \"Zürich\"}]T[g||{}]");
  check("why</think>now" + deepseek(v31_call("f", "{}")) + "after", "R[why]C[now]T[f||{}]C[after]",
        "<think>");
  check("<|tool_calls_section_begin|>" + kimi_call("functions.get_weather:0", "{\"a\": [1]}") +
            kimi_call("functions.a:b:12", "{}") + "<|tool_calls_section_end|>",
        "T[get_weather|functions.get_weather:0|{\"a\": [1]}]T[a:b|functions.a:b:12|{}]");
  check("<|tool_calls_section_begin|>\n" + kimi_call(" my_id ", " {} ") + "\n<|tool_calls_section_end|>",
        "T[my_id|my_id|{}]");
  check(
      "<think>\nr\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": "
      "1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", "
      "\"arguments\": \"{}\"}\n</tool_call>",
      "R[r]T[f||{\"a\": 1}]T[g||{}]");
  check("text\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\nmore", "C[text]T[f||{}]C[more]");
}

TEST_CASE("output: arguments are the model's bytes, numbers of any size with them") {
  const std::string arguments =
      "{\"n\": 9223372036854775808, \"x\":1.50, \"y\": [-1E400, 1e-400], \"s\": \"\\u00e9\" }";
  check(deepseek(v3_call("f", arguments) + v31_call("f", arguments)),
        "T[f||" + arguments + "]T[f||" + arguments + "]");
  check("<|tool_calls_section_begin|>" + kimi_call("functions.f:0", arguments) + "<|tool_calls_section_end|>",
        "T[f|functions.f:0|" + arguments + "]");
  check("<tool_call>{\"arguments\" : " + arguments + " , \"name\": \"f\", \"z\": 1E999}</tool_call>",
        "T[f||" + arguments + "]");
  check("<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"n\\\": 1E400}\"}</tool_call>",
        "T[f||{\"n\": 1E400}]");
}

TEST_CASE("output: malformed tool calls are content, nothing is lost") {
  const auto raw = [](const std::string& text) { check(text, "C[" + text + "]N"); };
  raw("a\n<tool_call>\nnot JSON\n</tool_call>");
  raw("<tool_call>{\"name\": 5}</tool_call>");
  raw("<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>");
  raw("<tool_call>{\"name\": \"f\"}</tool_call>");
  raw("<tool_call>{\"name\": \"f\", \"arguments\": {}}");  // no end
  raw("<tool_call>");
  raw("x\n\n<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>");
  raw("<｜tool▁calls▁begin｜>" + v31_call("f", "{broken"));
  raw("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>no separator<｜tool▁call▁end｜>");
  raw("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n```<｜tool▁call▁end｜>");
  check("<｜tool▁calls▁begin｜> \n something else", "C[<｜tool▁calls▁begin｜> \n ]NC[something else]");
  raw("<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>");
  raw("<｜tool▁calls▁begin｜>");
  // A name or an id ends at a zero byte where it is handed out.
  for (const std::string odd : {"\\u0000", "\\u001b", "\\n", "\\u007f"})
    raw("<tool_call>{\"name\": \"read" + odd + "_safe\", \"arguments\": {}}</tool_call>");
  for (const std::string& odd : {std::string(1, '\0'), std::string("\x1b"), std::string("\x7f")}) {
    raw("<｜tool▁calls▁begin｜>" + v31_call("read" + odd + "_safe", "{}"));
    raw("<|tool_calls_section_begin|>" + kimi_call("functions.a:0" + odd, "{}"));
    raw("<|tool_calls_section_begin|>" + kimi_call(odd + "functions.a:0", "{}"));
  }
  raw("<|tool_calls_section_begin|>" + kimi_call("", "{}"));
  raw("<|tool_calls_section_begin|><|tool_call_begin|>f<|tool_call_end|>");
  // A right one beside a wrong one counts.
  check(deepseek(v31_call("f", "{}") + v31_call("g", "{") + v31_call("h", "{}")),
        "T[f||{}]C[" + v31_call("g", "{") + "]NT[h||{}]");
  check("<tool_call>x</tool_call><tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>",
        "C[<tool_call>x</tool_call>]NT[f||{}]");
  check(deepseek(v31_call("f", "{}")).substr(0, deepseek(v31_call("f", "{}")).size() - 5),
        "T[f||{}]C[<｜tool▁calls▁en]N");
  check("<｜tool▁calls▁begin｜>" + v31_call("f", "{}"), "T[f||{}]");
}

TEST_CASE("output: long texts in small pieces") {
  const auto start = std::chrono::steady_clock::now();
  for (const std::string unit :
       {"\n", "<", "<think", "a", "<tool_call>", "</tool_call>", "<｜tool▁calls▁begin｜>", "<tool_call>{}"}) {
    std::string text;
    while (text.size() < 200000) text += unit;
    for (const size_t piece : {size_t(1), text.size()}) {
      OutputParser parser("");
      std::string all;
      const auto take = [&](const std::vector<OutputEvent>& events) {
        for (const OutputEvent& e : events)
          if (e.kind == Kind::Content) all += e.text;
      };
      for (size_t at = 0; at < text.size(); at += piece)
        take(parser.add(std::string_view(text).substr(at, piece)));
      take(parser.finish());
      CHECK((all == text));
    }
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
}
