// text/jinja: a template, and after a zero byte the JSON of its variables. However it is made it ends soon, and what it
// says it wrote itself lies in the text, in order.
#include "tests/fuzz/fuzz.h"
#include "text/jinja/template.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view json = fuzz::text_of(data, size);
  const std::string_view source = fuzz::take_up_to('\0', &json);
  const auto parsed = dsv3::jinja::Template::parse(source);
  fuzz::check(parsed.status());
  if (!parsed.ok()) return 0;
  std::vector<dsv3::jinja::Variable> variables;
  if (const auto given = lite::Json::parse(json, "variables"); given.ok() && given->object())
    for (const auto& [name, value] : *given->object())
      variables.push_back({name, value, name == "bos_token"});
  dsv3::jinja::Limits limits;
  limits.steps = 20000;
  limits.output_bytes = 1 << 16;
  const auto rendered = parsed->render(variables, 86400, limits);
  fuzz::check(rendered.status());
  if (!rendered.ok()) return 0;
  size_t end = 0;
  for (const dsv3::TextSpan& span : rendered->trusted) {
    fuzz::require(span.begin < span.end && (end == 0 || span.begin > end),
                  "trusted spans ascend and do not touch");
    end = span.end;
  }
  fuzz::require(end <= rendered->text.size(), "trusted spans lie in the text");
  return 0;
}
