// Tokens of a template to its statements.
#pragma once

#include <string_view>
#include <vector>

#include "ggml-lite/status.h"
#include "text/jinja/ast.h"

namespace dsv3::jinja {

// Corrupt for what is no template; Unsupported, by name, for statements, filters, tests, methods and functions that are
// not implemented. Both with the line.
lite::Result<std::vector<Statement>> parse(std::string_view source);

}  // namespace dsv3::jinja
