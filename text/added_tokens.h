// Added tokens ("<|User|>"): text that is cut out before anything else looks at it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/span.h"

namespace dsv3 {

struct AddedToken {
  int32_t id = 0;
  std::string text;
  bool special = false;      // visible text leaves it out
  bool normalized = false;   // looked for in normalized text, after all that are not
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and behind it
  bool single_word = false;  // none where a letter, digit or the like is next to it
  bool anywhere = false;     // recognised in text of any origin, not only in trusted spans
};

// Finds the tokens of a set, leftmost first and longest at the same place.
class AddedTokenSet {
 public:
  AddedTokenSet() = default;
  explicit AddedTokenSet(std::vector<AddedToken> tokens);  // no text empty, no two equal

  struct Match {
    size_t begin = 0, end = 0;          // with the white space that the token takes along
    const AddedToken* token = nullptr;  // null: no match
  };
  // The first match that begins at `from` or later. Only a token that is recognised anywhere may lie outside
  // the trusted spans. Time: that distance, times the length of the longest token.
  Match find(std::string_view text, const TextSpans& trusted, size_t from) const;

 private:
  const AddedToken* longest_at(std::string_view text, size_t n_trusted) const;

  std::vector<AddedToken> tokens_;     // by text
  std::array<bool, 256> begins_ = {};  // some token begins with this byte
};

}  // namespace dsv3
