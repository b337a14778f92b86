#include "text/stop.h"

#include <algorithm>

#include "text/tokenizer.h"

namespace dsv3 {

using lite::Result;

bool StopMatcher::Stop::advance(char byte) {
  if (matched == text.size()) matched = shorter[matched - 1];
  while (matched > 0 && text[matched] != byte) matched = shorter[matched - 1];
  if (text[matched] == byte) ++matched;
  return matched == text.size();
}

Result<StopMatcher> StopMatcher::create(std::vector<std::string> texts) {
  if (texts.size() > kMaxTexts)
    return lite::invalid_argument("stop texts: got ", texts.size(), ", at most ", kMaxTexts);
  size_t n_bytes = 0;
  std::vector<Stop> stops;
  for (std::string& text : texts) {
    if (text.empty()) return lite::invalid_argument("stop text ", stops.size(), " is empty");
    n_bytes += text.size();
    if (n_bytes > kMaxBytes)
      return lite::invalid_argument("stop texts of more than ", kMaxBytes, " bytes together");
    Stop stop;
    stop.shorter.push_back(0);
    for (size_t i = 1, n = 0; i < text.size(); ++i) {
      while (n > 0 && text[n] != text[i]) n = stop.shorter[n - 1];
      if (text[n] == text[i]) ++n;
      stop.shorter.push_back(uint32_t(n));
    }
    stop.text = std::move(text);
    stops.push_back(std::move(stop));
  }
  return StopMatcher(std::move(stops));
}

std::string_view StopMatcher::add(std::string_view text) {
  forget_shown();
  if (stopped_) return {};
  for (const char byte : text) {
    held_ += byte;
    size_t longest = 0;
    for (Stop& stop : stops_)
      if (stop.advance(byte)) longest = std::max(longest, stop.text.size());
    if (longest > 0) {
      stopped_ = true;
      held_.resize(held_.size() - longest);
      return show(held_.size());
    }
  }
  size_t possible = 0;  // bytes at the end that a stop text may begin with
  for (const Stop& stop : stops_) possible = std::max(possible, stop.matched);
  return show(utf8_complete_prefix(std::string_view(held_).substr(0, held_.size() - possible)));
}

std::string_view StopMatcher::finish() {
  forget_shown();
  return show(held_.size());
}

void StopMatcher::forget_shown() {
  held_.erase(0, shown_);
  shown_ = 0;
}

std::string_view StopMatcher::show(size_t n) {
  shown_ = n;
  return std::string_view(held_).substr(0, n);
}

}  // namespace dsv3
