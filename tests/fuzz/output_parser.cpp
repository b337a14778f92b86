// text/output_parser: what a model goes on from, and after a zero byte what it writes. The first byte says how long the
// pieces are in which the text arrives; they change nothing.
#include "text/output_parser.h"

#include "ggml-lite/json.h"
#include "tests/fuzz/fuzz.h"

using dsv3::OutputEvent;

namespace {

// Events with the pieces of one kind's text put together.
std::vector<OutputEvent> parse(std::string_view prompt, std::string_view text, size_t piece) {
  dsv3::OutputParser parser(prompt);
  std::vector<OutputEvent> all;
  const auto take = [&](const std::vector<OutputEvent>& events) {
    for (const OutputEvent& e : events) {
      const bool is_text = e.kind == OutputEvent::Kind::Content || e.kind == OutputEvent::Kind::Reasoning;
      if (is_text && !all.empty() && all.back().kind == e.kind)
        all.back().text += e.text;
      else
        all.push_back(e);
    }
  };
  for (; !text.empty(); text.remove_prefix(std::min(piece, text.size())))
    take(parser.add(text.substr(0, piece)));
  take(parser.finish());
  return all;
}

bool same(const OutputEvent& a, const OutputEvent& b) {
  return a.kind == b.kind && a.text == b.text && a.name == b.name && a.id == b.id;
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string_view text = fuzz::text_of(data + 1, size - 1);
  const std::string_view prompt = fuzz::take_up_to('\0', &text);
  const std::vector<OutputEvent> whole = parse(prompt, text, text.size() + 1),
                                 pieces = parse(prompt, text, size_t(data[0] % 64) + 1);
  fuzz::require(std::equal(whole.begin(), whole.end(), pieces.begin(), pieces.end(), same),
                "pieces give the same events as the whole");
  size_t bytes = 0;  // of the text that are shown, whatever it is
  for (const OutputEvent& e : whole) {
    if (e.kind == OutputEvent::Kind::Note) {
      fuzz::require(!e.text.empty() && e.text.size() < 2000, "a note says something and is no novel");
      continue;
    }
    if (e.kind == OutputEvent::Kind::ToolCall) {
      const auto arguments = lite::Json::parse_wide(e.text, "arguments");
      fuzz::require(arguments.ok() && arguments->object(), "the arguments of a call are a JSON object");
      fuzz::require(!e.name.empty(), "a call has a name");
      continue;
    }
    bytes += e.text.size();
  }
  fuzz::require(bytes <= text.size(), "nothing is shown that was not written");
  return 0;
}
