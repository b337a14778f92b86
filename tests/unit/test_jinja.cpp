// The template language: what jinja2 itself renders, what is refused and how, limits, templates made to break
// things, and which bytes of a text the template wrote.
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "text/jinja/template.h"

using namespace dsv3::jinja;
using dsv3::TextSpan;
using lite::Code;
using lite::Json;
using lite::Result;

namespace {

std::vector<Json> golden_rows(const std::string& name) {
  std::ifstream in(std::string(DSV3_SOURCE_DIR) + "/tests/golden/templates/" + name, std::ios::binary);
  REQUIRE_MESSAGE(in.good(), name);
  std::vector<Json> rows;
  for (std::string line; std::getline(in, line);) {
    Result<Json> row = Json::parse(line, name);
    REQUIRE_MESSAGE(row.ok(), row.status().message());
    rows.push_back(std::move(*row));
  }
  return rows;
}

std::vector<Variable> variables(const Json& arguments) {
  std::vector<Variable> out;
  for (const auto& member : *arguments.object()) out.push_back({member.first, member.second, false});
  return out;
}

Json must_parse(const std::string& text) {
  Result<Json> json = Json::parse(text, "a test's JSON");
  REQUIRE_MESSAGE(json.ok(), json.status().message());
  return std::move(*json);
}

const Limits kFewSteps = {.steps = 1'000'000};  // what takes more takes any number
constexpr int64_t kTime = 1700000000;           // 2023-11-14 22:13:20, a Tuesday

Result<Rendered> run(const std::string& source, const std::string& arguments = "{}",
                     const Limits& limits = {}) {
  Result<Template> parsed = Template::parse(source);
  if (!parsed.ok()) return parsed.status();
  return parsed->render(variables(must_parse(arguments)), kTime, limits);
}

std::string text(const std::string& source, const std::string& arguments = "{}") {
  const Result<Rendered> out = run(source, arguments);
  REQUIRE_MESSAGE(out.ok(), out.status().message());
  return out->text;
}

void refused(const std::string& source, Code code, const std::string& part, const Limits& limits = {}) {
  const Result<Rendered> out = run(source, "{}", limits);
  CAPTURE(source.substr(0, 200));
  REQUIRE_FALSE(out.ok());
  CHECK(out.status().code() == code);
  CHECK_MESSAGE(out.status().message().find(part) != std::string::npos, out.status().message());
}

// The trusted bytes alone, | between spans.
std::string trusted(const std::string& source, const std::string& arguments) {
  const Result<Rendered> out = run(source, arguments);
  REQUIRE_MESSAGE(out.ok(), out.status().message());
  std::string parts;
  size_t end = 0;
  for (size_t i = 0; i < out->trusted.size(); ++i) {
    const TextSpan s = out->trusted[i];
    REQUIRE((i == 0 || s.begin > end));
    REQUIRE(s.begin < s.end);
    REQUIRE(s.end <= out->text.size());
    parts += (i ? "|" : "") + out->text.substr(s.begin, s.end - s.begin);
    end = s.end;
  }
  return parts;
}

std::string times(const std::string& unit, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += unit;
  return out;
}

}  // namespace

// The rows were rendered by jinja2 3.1 as transformers sets it up; the first holds the arguments of all.
TEST_CASE("jinja: what jinja2 renders, and where it fails") {
  const std::vector<Json> rows = golden_rows("semantics.jsonl");
  const std::vector<Variable> arguments = variables(*rows[0].find("arguments"));
  REQUIRE(rows.size() > 800);
  for (size_t i = 1; i < rows.size(); ++i) {
    const std::string& source = *rows[i].find("source")->string();
    CAPTURE(source);
    const Result<Template> parsed = Template::parse(source);
    const Result<Rendered> out =
        parsed.ok() ? parsed->render(arguments, kTime) : Result<Rendered>(parsed.status());
    if (const Json* want = rows[i].find("text")) {
      REQUIRE_MESSAGE(out.ok(), out.status().message());
      CHECK(out->text == *want->string());
    } else {
      CHECK_FALSE(out.ok());
    }
  }
}

TEST_CASE("jinja: what is not implemented is refused when parsed, with line and construct") {
  refused("a\n{% include 'x' %}", Code::Unsupported, "line 2: {% include %}");
  for (const std::string tag : {"extends 'x'", "import 'x' as y", "from 'x' import y", "block b", "call f()",
                                "filter upper", "autoescape true", "do f()"})
    refused("{% " + tag + " %}", Code::Unsupported, "is not supported");
  // Even where it would never run.
  refused("{% if false %}\n{{ x | nope }}{% endif %}", Code::Unsupported, "line 2: filter \"nope\"");
  refused("{{ x is nope }}", Code::Unsupported, "test \"nope\"");
  refused("{{ x.append(1) }}", Code::Unsupported, "method \"append\"");
  refused("{{ nope(1) }}", Code::Unsupported, "function \"nope\"");
  refused("{{ f(*a) }}", Code::Unsupported, "arguments with \"*\"");
  refused("{{ f(**a) }}", Code::Unsupported, "arguments with \"**\"");
  refused("{% for x in y recursive %}{% endfor %}", Code::Unsupported, "recursive");
  refused("{% for a in b %}{% macro f() %}{% endmacro %}{% endfor %}", Code::Unsupported, "macro inside");
  refused("{% macro f() %}{{ varargs }}{% endmacro %}", Code::Unsupported, "varargs");
  refused("{{ 0x10 }}", Code::Corrupt, "numbers of this form are not supported");
  refused("{{ 99999999999999999999 }}", Code::Unsupported, "64 bits");
}

TEST_CASE("jinja: no template at all") {
  for (const std::string source : {"{{",
                                   "{{ 1",
                                   "{%",
                                   "{% if",
                                   "{% if x %}",
                                   "{% if x %}{% else %}",
                                   "{% for x in y %}",
                                   "{% endif %}",
                                   "{# x",
                                   "{{ 'a }}",
                                   "{% raw %}x",
                                   "{{ } }}",
                                   "{{ (1] }}",
                                   "{{ 1 2 }}",
                                   "{% set = 1 %}",
                                   "{% set x %}",
                                   "{{ x. }}",
                                   "{{ x[] }}",
                                   "{{ x | }}",
                                   "{% break %}",
                                   "{{ '\\ud800' }}",
                                   "{% foo %}",
                                   "{{ $ }}",
                                   "{{ \xFF }}",
                                   "\xFF",
                                   "{% macro f(a, a) %}{% endmacro %}",
                                   "{% set true = 1 %}",
                                   "{% for loop in x %}{% endfor %}"}) {
    CAPTURE(source);
    const Result<Template> parsed = Template::parse(source);
    REQUIRE_FALSE(parsed.ok());
    CHECK(parsed.status().code() == Code::Corrupt);
    CHECK(parsed.status().message().find("chat template: line 1: ") == 0);
  }
}

TEST_CASE("jinja: errors name the line") {
  refused("a\nb\n{{ 1 +\n 'x' }}", Code::InvalidArgument, "line 3: ");
  refused("{% for i in [1] %}\n{{ i / 0 }}\n{% endfor %}", Code::InvalidArgument, "line 2: division by zero");
  refused("{% macro f() %}\n{{ x.y }}{% endmacro %}\n\n{{ f() }}", Code::InvalidArgument,
          "line 2: 'x' is undefined");
  refused("\n{{ raise_exception('roles must alternate') }}", Code::InvalidArgument,
          "chat template: line 2: the template refuses: roles must alternate");
}

TEST_CASE("jinja: every prefix of a template is a template or refused") {
  for (const std::string name : {"qwen3.jinja", "features.jinja", "kimi-k2.jinja"}) {
    std::ifstream in(std::string(DSV3_SOURCE_DIR) + "/tests/golden/templates/" + name);
    std::stringstream all;
    all << in.rdbuf();
    const std::string source = all.str();
    REQUIRE(source.size() > 1000);
    for (size_t n = 0; n < source.size(); ++n) {
      const Result<Template> parsed = Template::parse(source.substr(0, n));
      if (parsed.ok())
        (void)parsed->render({}, kTime);  // a sanitizer would tell
      else
        CHECK(parsed.status().message().starts_with("chat template: line "));
    }
  }
}

TEST_CASE("jinja: limits") {
  const std::string loops = times("{% for i in range(100000) %}", 4) + "x" + times("{% endfor %}", 4);
  refused(loops, Code::InvalidArgument, "takes more than 50000000 steps");
  refused(loops, Code::InvalidArgument, "takes more than 1000 steps", {.steps = 1000});
  refused("{% for i in range(100) %}0123456789{% endfor %}", Code::InvalidArgument,
          "writes more than 500 bytes", {.output_bytes = 500});
  refused("{{ range(100001) }}", Code::InvalidArgument, "range: more than 100000");
  refused("{{ range(0, 9223372036854775807) }}", Code::InvalidArgument, "range: more than");
  CHECK(text("{{ range(-9223372036854775807, 9223372036854775807, 9223372036854775807) | list }}") ==
        "[-9223372036854775807, 0]");
  // Memory is paid for, too.
  refused("{{ 'x' * 1000000000 }}", Code::InvalidArgument, "steps", kFewSteps);
  refused("{{ [1] * 9000000000000000000 }}", Code::InvalidArgument, "steps", kFewSteps);
  refused("{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
          Code::InvalidArgument, "steps", kFewSteps);
  refused(
      "{% set ns = namespace(s='x') %}{% for i in range(100000) %}{% set ns.s = ns.s + 'y' %}{% endfor %}",
      Code::InvalidArgument, "steps", kFewSteps);
  refused("{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + [1] %}{% endfor %}",
          Code::InvalidArgument, "steps", kFewSteps);
  refused("{{ '%999999999d' % 1 }}", Code::InvalidArgument, "width of more than 1000");
  refused("{{ 2 ** 64 }}", Code::InvalidArgument, "64 bits");
  refused("{{ 9223372036854775807 + 1 }}", Code::InvalidArgument, "64 bits");
  refused("{{ 10.0 ** 400 }}", Code::InvalidArgument, "no real result");
  CHECK_FALSE(Template::parse(std::string((1 << 20) + 1, 'x')).ok());
}

TEST_CASE("jinja: nesting") {
  refused("{{ " + times("(", 5000) + "1" + times(")", 5000) + " }}", Code::Unsupported, "nested deeper than");
  refused("{{ " + times("[", 5000) + times("]", 5000) + " }}", Code::Unsupported, "nested deeper than");
  refused("{{ " + times("-", 5000) + "1 }}", Code::Unsupported, "nested deeper than");
  refused("{{ " + times("not ", 5000) + "1 }}", Code::Unsupported, "nested deeper than");
  refused("{{ " + times("1 if 1 else ", 5000) + "1 }}", Code::Unsupported, "nested deeper than");
  refused(times("{% if 1 %}", 5000) + times("{% endif %}", 5000), Code::Unsupported, "nested deeper than");
  refused("{{ 1" + times(" + 1", 5000) + " }}", Code::Unsupported, "in a row");
  refused("{{ x" + times(".a", 5000) + " }}", Code::Unsupported, "in a row");
  refused("{{ x" + times("|upper", 5000) + " }}", Code::Unsupported, "in a row");
  CHECK(text("{{ 1" + times(" ~ 1", 5000) + " }}").size() == 5001);  // one node
  CHECK(text("{{ 1" + times(" + 1", 200) + " }}") == "201");
  CHECK(text(times("{% if 1 %}", 50) + "x" + times("{% endif %}", 50)) == "x");

  refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", Code::InvalidArgument, "nest deeper than 600");
  refused(
      "{% macro f() %}{% for i in [1] %}{% if true %}{{ f() }}{% endif %}{% endfor %}{% endmacro %}{{ f() }}",
      Code::InvalidArgument, "nest deeper than 600");
  CHECK(text("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}{{ n }}{% endmacro %}{{ f(20) }}").size() ==
        32);

  const std::string grow = "{% set ns = namespace(v=[]) %}{% for i in range(100000) %}{% set ns.v = ";
  for (const std::string value :
       {"[ns.v]", "(ns.v,)", "{'a': ns.v}", "[ns.v] | reject('none') | list", "[ns.v.index]"}) {
    CAPTURE(value);
    refused(grow + value + " %}{% endfor %}", Code::InvalidArgument, "nests deeper than 100");
  }
  refused(
      "{% set ns = namespace(v=none) %}{% for i in range(1000) %}{% for j in [ns.v] %}{% set ns.v = loop "
      "%}{% endfor "
      "%}{% endfor %}",
      Code::InvalidArgument, "nests deeper than 100");
}

TEST_CASE("jinja: values that hold each other are freed, values that share are not walked forever") {
  CHECK(text("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{% set a.a = a %}{% set "
             "a.l = [a] %}ok") == "ok");
  CHECK(
      text(
          "{% for i in [1] %}{% set ns = namespace(l=loop) %}{% set x = loop.changed(ns) %}{% endfor %}ok") ==
      "ok");
  CHECK(text("{% set ns = namespace(n=none) %}{% for i in range(10000) %}{% set ns2 = namespace(n=ns.n) %}{% "
             "set ns.n = ns2 "
             "%}{% endfor %}ok") == "ok");
  // 2^60 leaves.
  const std::string shared =
      "{% set ns = namespace(v=[1]) %}{% for i in range(60) %}{% set ns.v = [ns.v, ns.v] %}{% endfor %}";
  for (const std::string use :
       {"{{ ns.v }}", "{{ ns.v | tojson }}", "{{ ns.v | string }}", "{{ [ns.v] | join }}"})
    refused(shared + use, Code::InvalidArgument, "steps", kFewSteps);
  refused(shared +
              "{% set a = ns.v %}{% set ns.v = [1] %}{% for i in range(60) %}{% set ns.v = [ns.v, ns.v] %}{% "
              "endfor %}{{ "
              "a == ns.v }}",
          Code::InvalidArgument, "steps", kFewSteps);
}

TEST_CASE("jinja: no path through a long text is quadratic") {
  const std::string long_text = "{\"s\": \"" + times("a", 400000) + "\", \"t\": \"" + times("a", 200000) +
                                "b\", \"w\": \"" + times(" ", 400000) + "\", \"u\": \"" +
                                times("\u00e9", 200000) + "\"}";
  for (const std::string use : {"{{ t in s }}",
                                "{{ s.find(t) }}",
                                "{{ s.rfind(t) }}",
                                "{{ s.replace(t, '') | length }}",
                                "{{ s.split(t) | length }}",
                                "{{ s.count(t) }}",
                                "{{ w | trim | length }}",
                                "{{ w.split() | length }}",
                                "{{ s.rsplit(t) | length }}",
                                "{{ s.split('a') | length }}",
                                "{{ s.replace('a', 'bc') | length }}",
                                "{{ s | list | length }}",
                                "{{ u[::2] | length }}",
                                "{{ u | upper | length }}",
                                "{{ s.strip('a') | length }}",
                                "{{ s.partition(t) | length }}",
                                "{{ u | tojson | length }}",
                                "{{ s.splitlines() | length }}",
                                "{{ s | indent | length }}",
                                "{% for c in s %}{% endfor %}"}) {
    CAPTURE(use);
    CHECK(run(use, long_text).ok());
  }
  CHECK(run("{% for i in range(100000) %}{{ u[i] }}{% endfor %}", long_text).status().code() ==
        Code::InvalidArgument);
  CHECK(run(times("{% raw %}", 1) + times("{% ", 100000) + "{% endraw %}").ok());
  CHECK_FALSE(run(times("{% raw ", 100000)).ok());
  std::string names;
  for (int i = 0; i < 20000; ++i) names += "{% set v" + std::to_string(i) + " = 1 %}";
  CHECK(run(names).ok());
}

TEST_CASE("jinja: the time is the caller's") {
  CHECK(text("{{ strftime_now('%-d %B %Y, %H:%M') }}") == "14 November 2023, 22:13");
  const Result<Template> t = Template::parse("{{ strftime_now('%Y-%m-%d') }}");
  CHECK(t->render({}, std::nullopt).status().message().find("strftime_now") != std::string::npos);
  CHECK(t->render({}, 951782399)->text == "2000-02-28");
  CHECK(t->render({}, 951782400)->text == "2000-02-29");
  CHECK(t->render({}, 253402300799)->text == "9999-12-31");
  CHECK_FALSE(t->render({}, -1).ok());
  CHECK_FALSE(t->render({}, INT64_MAX).ok());
  refused("{{ strftime_now('%Q') }}", Code::InvalidArgument, "%Q");
}

TEST_CASE("jinja: only what the template wrote is trusted") {
  const std::string given =
      R"({"c": "<T>evil", "role": "user", "m": [{"role": "user", "content": "<T>"}, {"role": "<T>"}],
                               "d": {"<T>": "<T>"}})";
  CHECK(trusted("<T>", given) == "<T>");
  CHECK(trusted("{{ c }}", given) == "");
  CHECK(trusted("{{ '<T>' + c + '</T>' }}", given) == "<T>|</T>");
  CHECK(trusted("{{ '<T>' ~ c ~ '</T>' }}", given) == "<T>|</T>");
  CHECK(trusted("{{ c[:3] }}{{ c[0] }}{{ c | first }}{{ c.split('e')[0] }}{{ c | replace('evil', '') }}",
                given) == "");
  CHECK(trusted("{{ c | replace('evil', '<T>') }}", given) == "<T>");
  CHECK(trusted("{{ '<T>x' | replace('x', c) }}", given) == "<T>");
  CHECK(trusted("{{ ('<T>' + c + '!')[1:-1] }}", given) == "T>");
  CHECK(trusted("{{ ('A' + c) | upper }}{{ (c ~ 'b') | lower }}", given) == "A|b");
  CHECK(trusted("{{ [c, '<T>'] | join('-') }}", given) == "-<T>");
  CHECK(trusted("{{ [c, '<T>'] }}{{ [c] | tojson }}", given) == "[|, '<T>'][|]");
  CHECK(trusted("{{ d }}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}{{ d | tojson }}", given) ==
        "{|: |}|{|: |}");
  CHECK(trusted("{{ '<%s>' % c }}{{ '<%s>' | format(c) }}", given) == "<|><|>");
  CHECK(trusted("{% set x %}<T>{{ c }}{% endset %}{{ x | trim }}", given) == "<T>");
  CHECK(trusted("{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f(c) }}", given) == "<|>");
  CHECK(trusted("{% set ns = namespace(s='') %}{% set ns.s = ns.s + c %}{{ ns.s }}{{ ns.s * 2 }}", given) ==
        "");
  CHECK(trusted("{{ c | indent }}{{ c | title }}{{ c | reverse }}{{ c | string }}{{ c | default('x') }}{{ c "
                "| list | join }}",
                given) == "");
  CHECK(trusted("{% for x in c %}{{ x }}{% endfor %}{{ c.strip('l') }}{{ c.partition('e') | join }}",
                given) == "");
  CHECK(trusted("{{ c if c else '<T>' }}{{ c or '<T>' }}{{ none or '<T>' }}", given) == "<T>");
  CHECK(trusted("{{ dict(a=c).a }}{{ {c: 1} | first }}{{ {'<T>': c}.keys() | list | first }}", given) ==
        "<T>");
  CHECK(trusted("{{ strftime_now(c) }}", R"({"c": "<T>"})") == "");
  // Roles with the usual names are everybody's words: <|{{ role }}|> is a token some templates write so.
  CHECK(trusted("<|{{ m[0].role }}|><|{{ m[1].role }}|>", given) == "<|user|><|||>");
}

TEST_CASE("jinja: variables of the checkpoint are trusted, the caller's are not") {
  const Result<Template> t = Template::parse("{{ bos_token }}{{ other }}");
  const Result<Rendered> out = t->render({{"bos_token", "<s>", true}, {"other", "<s>", false}}, std::nullopt);
  REQUIRE(out.ok());
  REQUIRE(out->trusted.size() == 1);
  CHECK(out->trusted[0].end == 3);
}
