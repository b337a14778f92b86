#include "text/jinja/template.h"

#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"

namespace dsv3::jinja {

Template::Template(std::vector<Statement> body)
    : body_(std::make_unique<const std::vector<Statement>>(std::move(body))) {}
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;
Template::~Template() = default;

Result<Template> Template::parse(std::string_view source) {
  if (source.size() > kMaxSource)
    return lite::unsupported("chat template: got ", source.size(), " bytes, expected at most ", kMaxSource);
  Result<std::vector<Statement>> body = jinja::parse(source);
  if (!body.ok()) return body.status().in("chat template");
  return Template(std::move(*body));
}

Result<Rendered> Template::render(const std::vector<Variable>& variables, std::optional<int64_t> local_time,
                                  const Limits& limits) const {
  Interpreter interpreter(limits, local_time);
  for (const Variable& v : variables)
    if (const Status status = interpreter.define(v); !status.ok())
      return status.in("chat template: variable " + v.name);
  const Result<Text> text = interpreter.run(*body_);
  if (!text.ok()) return text.status().in("chat template");
  return Rendered{text->bytes(), text->trusted_spans()};
}

}  // namespace dsv3::jinja
