// text/regex: a pattern, and after a zero byte a text that it cuts. The pieces together are the text, and however the
// pattern is made, there is an end.
#include "text/regex.h"

#include "tests/fuzz/fuzz.h"
#include "text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text = fuzz::text_of(data, size);
  const std::string_view pattern = fuzz::take_up_to('\0', &text);
  const auto regex = dsv3::Regex::compile(pattern);
  fuzz::check(regex.status());
  if (!regex.ok()) return 0;
  text = text.substr(0, dsv3::utf8_valid_prefix(text));
  std::vector<std::string_view> pieces;
  const lite::Status status = regex->split(text, dsv3::MatchTime(text.size(), 0.02), &pieces);
  fuzz::check(status);
  if (!status.ok()) return 0;
  const char* at = text.data();
  for (const std::string_view piece : pieces) {
    fuzz::require(!piece.empty() && piece.data() == at, "pieces follow each other, none empty");
    at += piece.size();
  }
  fuzz::require(at == text.data() + text.size(), "the pieces together are the text");
  return 0;
}
