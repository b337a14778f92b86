// Unicode normalization form C.
#pragma once

#include <string>
#include <string_view>

namespace dsv3 {

// Of valid UTF-8, by utf8proc's Unicode version (15 in Debian 12's). Time is linear up to a logarithm, however
// many combining characters follow each other.
std::string nfc(std::string_view text);

}  // namespace dsv3
