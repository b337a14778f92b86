// Stop texts: where an answer ends, wherever tokens begin and end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/status.h"

namespace dsv3 {

class StopMatcher {
 public:
  static constexpr size_t kMaxTexts = 256, kMaxBytes = 1 << 20;  // of all together

  // InvalidArgument for an empty stop text, or too much of them.
  static lite::Result<StopMatcher> create(std::vector<std::string> stops);

  // Appends to the answer, and gives what of it can be shown by now: all but what may be the beginning of a
  // stop text, and an incomplete character at the end. The stop text that is complete first ends the answer,
  // of two that end together the longer one: the answer is what precedes it, all of which can be shown. The
  // view holds until the next call. Time: the text's length times the number of stop texts.
  std::string_view add(std::string_view text);
  bool stopped() const { return stopped_; }  // then more text is ignored
  // What is still held back when no more text comes.
  std::string_view finish();

 private:
  // Knuth, Morris, Pratt: how many of the stop text's first bytes the answer ends with.
  struct Stop {
    std::string text;
    std::vector<uint32_t>
        shorter;  // [n]: the longest beginning that ends the first n + 1 bytes, not all of them
    size_t matched = 0;

    bool advance(char byte);  // true when complete
  };
  explicit StopMatcher(std::vector<Stop> stops) : stops_(std::move(stops)) {}
  void forget_shown();
  std::string_view show(size_t n);  // the first n bytes of held_

  std::vector<Stop> stops_;
  std::string held_;
  size_t shown_ = 0;  // bytes of held_ that were given out
  bool stopped_ = false;
};

}  // namespace dsv3
