// A stretch of a text.
#pragma once

#include <cstddef>

namespace dsv3 {

struct TextSpan {
  size_t begin = 0, end = 0;  // bytes begin..end-1
};

}  // namespace dsv3
