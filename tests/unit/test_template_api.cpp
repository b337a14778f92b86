// Templates and outputs through the C API: buffers, null arguments, and what each call says.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "convert/convert.h"
#include "dsv3.h"
#include "tests/unit/temp_dir.h"

namespace {

const std::string kRoot = std::string(DSV3_SOURCE_DIR) + "/tests/golden/";

struct Handles {
  dsv3_template *chat_template = nullptr, *other = nullptr;
  dsv3_tokenizer* tokenizer = nullptr;
  dsv3_output* output = nullptr;
  ~Handles() {
    dsv3_template_free(chat_template);
    dsv3_template_free(other);
    dsv3_tokenizer_free(tokenizer);
    dsv3_output_free(output);
  }
};

bool says(const std::string& part) {
  return std::string(dsv3_last_error()).find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("template API: text, spans and ids come out under one convention") {
  Handles h;
  const std::string source = "{{ bos_token }}<｜User｜>{{ messages[0].content }}";
  REQUIRE(dsv3_template_parse(source.data(), source.size(), R"({"bos_token": "<｜begin▁of▁sentence｜>"})",
                              &h.chat_template) == DSV3_OK);
  const std::string arguments = R"({"messages": [{"role": "user", "content": "a<｜User｜>"}]})";
  const std::string want = "<｜begin▁of▁sentence｜><｜User｜>a<｜User｜>";
  std::vector<char> text(want.size());
  dsv3_span spans[4] = {};
  size_t n = 0, n_spans = 0;
  const auto render = [&](size_t capacity, size_t span_capacity) {
    return dsv3_template_render(h.chat_template, arguments.data(), arguments.size(), nullptr, text.data(),
                                capacity, &n, spans, span_capacity, &n_spans);
  };
  REQUIRE(render(0, 0) == DSV3_OK);
  CHECK(n == want.size());
  CHECK(n_spans == 1);
  CHECK(spans[0].end == 0);
  REQUIRE(render(5, 4) == DSV3_OK);
  CHECK(std::string(text.data(), 5) == want.substr(0, 5));
  CHECK(text[5] == 0);
  CHECK(spans[0].begin == 0);
  CHECK(spans[0].end == want.size() - std::string("a<｜User｜>").size());
  REQUIRE(render(text.size(), 4) == DSV3_OK);
  CHECK(std::string(text.data(), n) == want);

  REQUIRE(dsv3_tokenizer_open((kRoot + "tokenizers/deepseek-v3").c_str(), &h.tokenizer) == DSV3_OK);
  int32_t ids[64], user = 0, all[64];
  size_t n_ids = 0, n_all = 0;
  REQUIRE(dsv3_template_tokenize(h.chat_template, h.tokenizer, arguments.data(), arguments.size(), nullptr,
                                 ids, 64, &n_ids) == DSV3_OK);
  REQUIRE(dsv3_tokenize(h.tokenizer, want.data(), want.size(), DSV3_PARSE_ADDED, all, 64, &n_all) == DSV3_OK);
  user = all[1];
  CHECK(ids[0] == all[0]);
  CHECK(ids[1] == user);
  CHECK(n_ids > n_all);
  for (size_t i = 2; i < n_ids; ++i) CHECK(ids[i] != user);
}

TEST_CASE("template API: a history with numbers of any size is written as Python writes it") {
  Handles h;
  const std::string source =
      "{{ x }} {{ x | tojson }} {{ x.a + 1 if false else x.a == x.a }} {{ x.a is integer }} "
      "{{ x.a | string }} {{ x.a | int }}";
  REQUIRE(dsv3_template_parse(source.data(), source.size(), nullptr, &h.chat_template) == DSV3_OK);
  const std::string arguments = R"({"x": {"a": 9223372036854775808, "b": [1E400, -1E400]}})",
                    want =
                        "{'a': 9223372036854775808, 'b': [inf, -inf]} "
                        "{\"a\": 9223372036854775808, \"b\": [Infinity, -Infinity]} True True "
                        "9223372036854775808 9223372036854775808";
  std::string text(want.size(), 0);
  size_t n = 0;
  REQUIRE_MESSAGE(dsv3_template_render(h.chat_template, arguments.data(), arguments.size(), nullptr,
                                       text.data(), text.size(), &n, nullptr, 0, nullptr) == DSV3_OK,
                  dsv3_last_error());
  CHECK(n == want.size());
  CHECK(text == want);

  for (const std::string wrong :
       {"{{ x + 1 }}", "{{ 1 < x }}", "{{ x | float }}", "{{ -x }}", "{{ x | abs }}"}) {
    CAPTURE(wrong);
    dsv3_template* refused = nullptr;
    REQUIRE(dsv3_template_parse(wrong.data(), wrong.size(), nullptr, &refused) == DSV3_OK);
    const std::string big = R"({"x": 18446744073709551616})";
    CHECK(dsv3_template_render(refused, big.data(), big.size(), nullptr, nullptr, 0, &n, nullptr, 0,
                               nullptr) == DSV3_INVALID_ARGUMENT);
    dsv3_template_free(refused);
  }
}

TEST_CASE("template API: wrong arguments and files") {
  Handles h;
  REQUIRE(dsv3_template_open((kRoot + "templates/qwen3.jinja").c_str(), nullptr, &h.chat_template) ==
          DSV3_OK);
  dsv3_template* none = nullptr;
  size_t n = 7;
  const auto render = [&](const char* arguments) {
    return dsv3_template_render(h.chat_template, arguments, std::string(arguments).size(), nullptr, nullptr,
                                0, &n, nullptr, 0, nullptr);
  };
  CHECK(render("{") == DSV3_CORRUPT);
  CHECK(render("[]") == DSV3_INVALID_ARGUMENT);
  CHECK(render(R"({"messages": 5})") == DSV3_INVALID_ARGUMENT);
  CHECK(says("line "));
  CHECK(n == 7);  // written on success only
  CHECK(dsv3_template_render(nullptr, "{}", 2, nullptr, nullptr, 0, &n, nullptr, 0, nullptr) ==
        DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_render(h.chat_template, nullptr, 0, nullptr, nullptr, 0, &n, nullptr, 0, nullptr) ==
        DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_render(h.chat_template, "{}", 2, nullptr, nullptr, 1, &n, nullptr, 0, nullptr) ==
        DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_render(h.chat_template, "{}", 2, nullptr, nullptr, 0, nullptr, nullptr, 0, nullptr) ==
        DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_render(h.chat_template, "{}", 2, nullptr, nullptr, 0, &n, nullptr, 1, nullptr) ==
        DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_tokenize(h.chat_template, nullptr, "{}", 2, nullptr, nullptr, 0, &n) ==
        DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_open(nullptr, nullptr, &none) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_open("x", nullptr, nullptr) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_open((kRoot + "absent.jinja").c_str(), nullptr, &none) == DSV3_NOT_FOUND);
  CHECK(dsv3_template_open((kRoot + "absent").c_str(), nullptr, &none) == DSV3_NOT_FOUND);
  CHECK(dsv3_template_open(kRoot.c_str(), nullptr, &none) == DSV3_NOT_FOUND);
  CHECK(dsv3_template_open((kRoot + "templates/qwen3.jinja").c_str(), "rag", &none) == DSV3_INVALID_ARGUMENT);
  CHECK(says("none named \"rag\""));
  const std::string longest(1 << 20, 'x'), too_long = longest + "x";
  REQUIRE(dsv3_template_parse(longest.data(), longest.size(), nullptr, &h.other) == DSV3_OK);
  CHECK(dsv3_template_parse(too_long.data(), too_long.size(), nullptr, &none) == DSV3_UNSUPPORTED);
  CHECK(says("got 1048577 bytes, expected at most 1048576"));
  TempDir dir;
  spill(dir / "long.jinja", too_long);
  CHECK(dsv3_template_open((dir / "long.jinja").c_str(), nullptr, &none) == DSV3_UNSUPPORTED);
  CHECK(says("got 1048577 bytes, expected at most 1048576"));
  // Every message names its file once.
  for (const char* path : {"/absent.jinja", "/absent", "/"}) {
    const std::string whole = dir.path() + path;
    CHECK(dsv3_template_open(whole.c_str(), nullptr, &none) == DSV3_NOT_FOUND);
    const std::string message = dsv3_last_error();
    CHECK_MESSAGE(message.find(whole) == message.rfind(whole), message);
    CHECK_MESSAGE(message.find("open ") == message.rfind("open "), message);
  }
  CHECK(dsv3_template_parse(nullptr, 1, nullptr, &none) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_parse("{{", 2, nullptr, &none) == DSV3_CORRUPT);
  CHECK(dsv3_template_parse("{% include 'x' %}", 17, nullptr, &none) == DSV3_UNSUPPORTED);
  CHECK(says("line 1: {% include %}"));
  CHECK(dsv3_template_parse("x", 1, "[]", &none) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_template_parse("x", 1, R"({"bos_token": 5})", &none) == DSV3_INVALID_ARGUMENT);
  CHECK(says("bos_token: got an integer, expected a string"));
  CHECK(dsv3_template_parse("x", 1, R"({"eos_token": {"text": "a"}})", &none) == DSV3_INVALID_ARGUMENT);
  CHECK(says("eos_token: got an object"));
  CHECK(dsv3_template_parse("x", 1, R"({"bos": "<s>"})", &none) == DSV3_INVALID_ARGUMENT);
  CHECK(says("\"bos\" is none of bos_token"));
  CHECK(none == nullptr);
  CHECK(dsv3_template_parse("x", 1, "{", &none) == DSV3_CORRUPT);
  CHECK(dsv3_model_template(nullptr, nullptr, &none) == DSV3_INVALID_ARGUMENT);
  CHECK(none == nullptr);
  dsv3_template_free(nullptr);
}

TEST_CASE("template API: named templates of an open model") {
  TempDir dir;
  std::filesystem::copy(kRoot + "cases/ds3-f32", dir / "checkpoint");
  std::filesystem::create_directory(dir / "checkpoint/additional_chat_templates");
  spill(dir / "checkpoint/chat_template.jinja", "plain");
  spill(dir / "checkpoint/additional_chat_templates/tool_use.jinja", "tools");
  spill(dir / "checkpoint/additional_chat_templates/rag.jinja", "rag");
  REQUIRE(dsv3::convert({dir / "checkpoint", dir / "m.dsv3", {}, false}).ok());
  dsv3_model* model = nullptr;
  REQUIRE(dsv3_model_open((dir / "m.dsv3").c_str(), nullptr, &model) == DSV3_OK);
  const auto rendered = [&](const char* name, const std::string& arguments) {
    Handles h;
    REQUIRE(dsv3_model_template(model, name, &h.chat_template) == DSV3_OK);
    char text[16];
    size_t n = 0;
    REQUIRE(dsv3_template_render(h.chat_template, arguments.data(), arguments.size(), nullptr, text, 16, &n,
                                 nullptr, 0, nullptr) == DSV3_OK);
    return std::string(text, n);
  };
  CHECK(rendered(nullptr, "{}") == "plain");
  CHECK(rendered(nullptr, R"({"tools": [1]})") == "tools");
  CHECK(rendered("rag", R"({"tools": [1]})") == "rag");
  dsv3_template* none = nullptr;
  for (const char* name : {"x", "../rag", "a:b", "../../chat_template"})
    CHECK(dsv3_model_template(model, name, &none) != DSV3_OK);
  CHECK(none == nullptr);
  CHECK(dsv3_model_close(model) == DSV3_OK);
}

TEST_CASE("output API: events in order, each for one call") {
  Handles h;
  REQUIRE(dsv3_output_new("<think>\n", 8, &h.output) == DSV3_OK);
  dsv3_output_event event = {};
  event.struct_size = sizeof event;
  CHECK(dsv3_output_next(h.output, &event) == 0);
  const std::string text =
      "why</think>\n\nyes<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call><tool_call>";
  REQUIRE(dsv3_output_add(h.output, text.data(), text.size()) == DSV3_OK);
  REQUIRE(dsv3_output_finish(h.output) == DSV3_OK);
  const std::pair<dsv3_output_kind, std::string> want[] = {{DSV3_OUTPUT_REASONING, "why"},
                                                           {DSV3_OUTPUT_CONTENT, "yes"},
                                                           {DSV3_OUTPUT_TOOL_CALL, "{}"},
                                                           {DSV3_OUTPUT_CONTENT, "<tool_call>"}};
  for (const auto& w : want) {
    REQUIRE(dsv3_output_next(h.output, &event) == 1);
    CHECK(event.kind == w.first);
    CHECK(std::string(event.text, event.n_bytes) == w.second);
    CHECK(std::string(event.name) == (w.first == DSV3_OUTPUT_TOOL_CALL ? "f" : ""));
    CHECK(std::string(event.id) == "");
  }
  REQUIRE(dsv3_output_next(h.output, &event) == 1);
  CHECK(event.kind == DSV3_OUTPUT_NOTE);
  CHECK(dsv3_output_next(h.output, &event) == 0);
  CHECK(dsv3_output_add(h.output, "x", 1) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_output_finish(h.output) == DSV3_OK);
  CHECK(dsv3_output_new(nullptr, 1, &h.output) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_output_new("", 0, nullptr) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_output_add(nullptr, "x", 1) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_output_add(h.output, nullptr, 1) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_output_finish(nullptr) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_output_next(nullptr, &event) == 0);
  CHECK(says("\"output\" is null"));
  CHECK(dsv3_output_next(h.output, nullptr) == 0);
  CHECK(says("\"event\" is null"));
  dsv3_output_free(h.output);
  REQUIRE(dsv3_output_new("", 0, &h.output) == DSV3_OK);
  REQUIRE(dsv3_output_add(h.output, "x", 1) == DSV3_OK);
  event.struct_size = 0;
  CHECK(dsv3_output_next(h.output, &event) == 0);
  CHECK(says("dsv3_output_event: struct_size is 0"));
  event.struct_size = sizeof event;
  CHECK(dsv3_output_next(h.output, &event) == 1);  // nothing is lost
  dsv3_output_free(nullptr);
}
