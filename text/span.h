// Stretches of a text.
#pragma once

#include <cstddef>
#include <vector>

namespace dsv3 {

struct TextSpan {
  size_t begin = 0, end = 0;  // bytes begin..end-1
};
using TextSpans = std::vector<TextSpan>;  // ascending, none empty, none touching the next

}  // namespace dsv3
