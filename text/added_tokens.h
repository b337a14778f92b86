// Added tokens ("<|User|>"): text that is cut out before anything else looks at it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsv3 {

struct AddedToken {
  int32_t id = 0;
  std::string text;
  bool special = false;     // visible text leaves it out
  bool normalized = false;  // looked for after all that are not
};

// Finds the tokens of a set, leftmost first and longest at the same place.
class AddedTokenSet {
 public:
  AddedTokenSet() = default;
  explicit AddedTokenSet(std::vector<AddedToken> tokens);  // no text empty, no two equal

  struct Match {
    size_t begin = 0;
    const AddedToken* token = nullptr;  // null: no match
  };
  // The first match that begins at `from` or later. Time: that distance, times the length of the longest
  // token.
  Match find(std::string_view text, size_t from) const;
  int32_t id(std::string_view text) const;  // -1: none

 private:
  const AddedToken* longest_at(std::string_view text) const;

  std::vector<AddedToken> tokens_;     // by text
  std::array<bool, 256> begins_ = {};  // some token begins with this byte
};

}  // namespace dsv3
