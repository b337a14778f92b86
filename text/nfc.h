// Unicode normalization form C.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dsv3 {

// Characters newer than the Unicode of the reference library (Hugging Face tokenizers: 9) that would compose or
// change places by newer tables. For the models they are letters like any other: they part what is before
// from what is behind, and nfc() must not see them.
bool unknown_to_reference(uint32_t c);

// Of valid UTF-8, by utf8proc's Unicode version (15 in Debian 12's). Time is linear up to a logarithm, however
// many combining characters follow each other.
std::string nfc(std::string_view text);

}  // namespace dsv3
