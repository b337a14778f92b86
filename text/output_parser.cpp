#include "text/output_parser.h"

#include <algorithm>
#include <utility>

#include "ggml-lite/json.h"
#include "text/json_fields.h"

namespace dsv3 {

using lite::Json;
using lite::Result;
using lite::Status;
using Kind = OutputEvent::Kind;

namespace {

constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";
constexpr size_t kPiece = 1024;

struct Call {
  std::string name, id, arguments;
};

std::string_view trimmed(std::string_view text) {
  const size_t begin = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  text.remove_prefix(begin);
  return text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
}

Status check_name(std::string_view name) {
  const auto is_odd = [](char c) {
    return uint8_t(c) < 0x20 || c == 0x7F || std::string_view("<>{}\"").find(c) != std::string_view::npos;
  };
  if (!name.empty() && name.size() <= 256 && std::none_of(name.begin(), name.end(), is_odd)) return {};
  return lite::corrupt("no function's name");
}

Result<Call> checked(std::string_view name, std::string_view id, std::string_view arguments) {
  LITE_TRY(check_name(name));
  if (!id.empty()) LITE_TRY(check_name(id));
  LITE_ASSIGN(const Json json, Json::parse_wide(arguments, "the arguments"));
  if (!json.object()) return lite::corrupt("the arguments: got ", json.type_name(), ", expected an object");
  return Call{std::string(name), std::string(id), std::string(arguments)};
}

// TYPE sep NAME "\n```json\n" ARGUMENTS "\n```", or NAME sep ARGUMENTS.
Result<Call> deepseek_call(std::string_view text) {
  constexpr std::string_view kSeparator = "<\xEF\xBD\x9Ctool\xE2\x96\x81sep\xEF\xBD\x9C>", kFence = "```";
  const size_t at = text.find(kSeparator);
  if (at == std::string_view::npos) return lite::corrupt("no separator after the name");
  const std::string_view head = trimmed(text.substr(0, at));
  std::string_view rest = trimmed(text.substr(at + kSeparator.size()));
  const size_t fence = rest.find("\n```json\n");
  if (fence == std::string_view::npos || !rest.ends_with(kFence)) return checked(head, {}, rest);
  const std::string_view name = trimmed(rest.substr(0, fence));
  rest.remove_prefix(fence + 9);
  if (rest.size() < kFence.size()) return lite::corrupt("the JSON block has no end");
  rest.remove_suffix(kFence.size());
  return checked(name, {}, trimmed(rest));
}

// functions.NAME:INDEX begin ARGUMENTS; the whole id goes back with the tool's result.
Result<Call> kimi_call(std::string_view text) {
  constexpr std::string_view kBegin = "<|tool_call_argument_begin|>", kPrefix = "functions.";
  const size_t at = text.find(kBegin);
  if (at == std::string_view::npos) return lite::corrupt("no arguments after the id");
  const std::string_view id = trimmed(text.substr(0, at));
  std::string_view name = id;
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  const size_t colon = name.rfind(':');
  if (colon != std::string_view::npos &&
      name.find_first_not_of("0123456789", colon + 1) == std::string_view::npos)
    name = name.substr(0, colon);
  return checked(name, id, trimmed(text.substr(at + kBegin.size())));
}

// {"name": NAME, "arguments": ARGUMENTS}, these an object, or a string with its text.
Result<Call> qwen_call(std::string_view text) {
  std::vector<std::string_view> members;
  LITE_ASSIGN(const Json json, Json::parse_wide(text, "the call", &members));
  const std::string* name = field(json, "name").string();
  if (!name) return lite::corrupt("the call: expected an object with \"name\" and \"arguments\"");
  const Json* arguments = json.find("arguments");
  if (!arguments) return lite::corrupt("the call: it has no \"arguments\"");
  if (arguments->string()) return checked(*name, {}, *arguments->string());
  size_t i = 0;
  while ((*json.object())[i].first != "arguments") ++i;
  return checked(*name, {}, members[i]);
}

// How many bytes at the end of `text` are a beginning of `mark`, but not all of it.
size_t begun(std::string_view text, std::string_view mark) {
  for (size_t n = std::min(text.size(), mark.size() - 1); n > 0; --n)
    if (mark.starts_with(text.substr(text.size() - n))) return n;
  return 0;
}

}  // namespace

// The marks of a family's tool calls. Without a section a call stands by itself.
struct OutputParser::Format {
  std::string_view section, section_end, call, call_end;
  Result<Call> (*read)(std::string_view inside);
};

// U+FF5C and U+2581 stand where other families write | and _.
const OutputParser::Format OutputParser::kFormats[] = {
    {"<\xEF\xBD\x9Ctool\xE2\x96\x81"
     "calls\xE2\x96\x81"
     "begin\xEF\xBD\x9C>",
     "<\xEF\xBD\x9Ctool\xE2\x96\x81"
     "calls\xE2\x96\x81"
     "end\xEF\xBD\x9C>",
     "<\xEF\xBD\x9Ctool\xE2\x96\x81"
     "call\xE2\x96\x81"
     "begin\xEF\xBD\x9C>",
     "<\xEF\xBD\x9Ctool\xE2\x96\x81"
     "call\xE2\x96\x81"
     "end\xEF\xBD\x9C>",
     deepseek_call},
    {"<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
     kimi_call},
    {"", "", "<tool_call>", "</tool_call>", qwen_call}};

OutputParser::OutputParser(std::string_view prompt) {
  if (!trimmed(prompt).ends_with(kThink)) return;
  state_ = State::Reasoning;
  at_mark_ = true;
}

std::vector<OutputEvent> OutputParser::add(std::string_view text) {
  // In pieces: what a step costs is the buffer's length.
  for (; !text.empty(); text.remove_prefix(std::min(text.size(), kPiece))) {
    buffer_ += text.substr(0, kPiece);
    while (step()) {
    }
  }
  return std::exchange(events_, {});
}

std::vector<OutputEvent> OutputParser::finish() {
  if (state_ == State::Section || state_ == State::Call) {
    undecided_ += buffer_;
    buffer_.clear();
    // A section whose calls were all read is only short of its end.
    if (state_ == State::Call || !trimmed(undecided_).empty()) give_up("the answer ends inside of it");
  } else {
    plain(buffer_);
    buffer_.clear();
    if (!at_mark_)
      emit(state_ == State::Reasoning ? Kind::Reasoning : Kind::Content, std::string(newlines_, '\n'));
  }
  newlines_ = 0;
  return std::exchange(events_, {});
}

bool OutputParser::step() {
  switch (state_) {
    case State::Content:
    case State::Reasoning: return plain_text();
    case State::Section: return section();
    case State::Call: return call();
  }
  return false;
}

// Content or reasoning up to the next mark.
bool OutputParser::plain_text() {
  size_t first = std::string::npos, held = 0;
  const Format* format = nullptr;
  std::string_view mark;
  const auto look_for = [&](std::string_view candidate, const Format* its) {
    const size_t at = buffer_.find(candidate);
    if (at < first) {
      first = at;
      format = its;
      mark = candidate;
    }
    held = std::max(held, begun(buffer_, candidate));
  };
  if (state_ == State::Reasoning) {
    look_for(kThinkEnd, nullptr);
  } else {
    if (may_think_) look_for(kThink, nullptr);
    for (const Format& f : kFormats) look_for(f.section.empty() ? f.call : f.section, &f);
  }
  if (first == std::string::npos) {
    plain(std::string_view(buffer_).substr(0, buffer_.size() - held));
    buffer_.erase(0, buffer_.size() - held);
    return false;
  }
  plain(std::string_view(buffer_).substr(0, first));
  // Text before it has been content: then <think> is no mark.
  if (mark == kThink && !may_think_) {
    plain(mark);
    buffer_.erase(0, first + mark.size());
    return true;
  }
  buffer_.erase(0, first + mark.size());
  if (format) {
    undecided_.assign(newlines_, '\n');
    undecided_ += mark;
    format_ = format;
    after_mark(format->section.empty() ? State::Call : State::Section);
  } else {
    after_mark(mark == kThink ? State::Reasoning : State::Content);
  }
  return true;
}

void OutputParser::after_mark(State state) {
  state_ = state;
  newlines_ = 0;
  searched_ = 0;
  at_mark_ = true;
  may_think_ = false;
}

// Between the calls of a section: space, and then a call or the section's end.
bool OutputParser::section() {
  const size_t begin = std::min(buffer_.find_first_not_of(" \t\r\n"), buffer_.size());
  undecided_ += buffer_.substr(0, begin);
  buffer_.erase(0, begin);
  for (const bool ends : {false, true}) {
    const std::string_view mark = ends ? format_->section_end : format_->call;
    if (!std::string_view(buffer_).starts_with(mark)) continue;
    undecided_ += mark;
    buffer_.erase(0, mark.size());
    if (!ends) {
      after_mark(State::Call);
    } else if (trimmed(undecided_) != mark) {
      give_up("there is no call between its marks");
    } else {
      undecided_.clear();
      after_mark(State::Content);
    }
    return true;
  }
  if (begun(buffer_, format_->call) == buffer_.size() ||
      begun(buffer_, format_->section_end) == buffer_.size())
    return false;
  give_up("there is something else where a call should begin");
  return true;
}

bool OutputParser::call() {
  const std::string_view end = format_->call_end;
  const size_t at = buffer_.find(end, searched_);
  if (at == std::string::npos) {
    searched_ = buffer_.size() - std::min(buffer_.size(), end.size() - 1);
    return false;
  }
  const std::string inside = buffer_.substr(0, at);
  buffer_.erase(0, at + end.size());
  const Result<Call> call = format_->read(inside);
  if (!call.ok()) {
    (undecided_ += inside) += end;
    give_up(call.status().message());
    if (!format_->section.empty()) state_ = State::Section;  // its other calls may be right
    return true;
  }
  undecided_.clear();
  events_.push_back({Kind::ToolCall, call->arguments, call->name, call->id});
  after_mark(format_->section.empty() ? State::Content : State::Section);
  return true;
}

// What looked like tool calls is content.
void OutputParser::give_up(const std::string& why) {
  state_ = State::Content;
  at_mark_ = false;
  newlines_ = 0;
  emit(Kind::Content, undecided_);
  events_.push_back({Kind::Note, "malformed tool call: " + why, "", ""});
  undecided_.clear();
}

// Text of the present state, but for newlines at its end and after a mark.
void OutputParser::plain(std::string_view text) {
  if (text.empty()) return;
  const size_t last = text.find_last_not_of('\n');
  const size_t trailing = last == std::string_view::npos ? text.size() : text.size() - last - 1;
  text.remove_suffix(trailing);
  if (!text.empty()) {
    if (at_mark_) {
      newlines_ = 0;
      text.remove_prefix(text.find_first_not_of('\n'));
    }
    emit(state_ == State::Reasoning ? Kind::Reasoning : Kind::Content,
         std::string(newlines_, '\n').append(text));
    newlines_ = 0;
    at_mark_ = false;
    if (state_ == State::Content && text.find_first_not_of(" \t\r\n") != std::string_view::npos)
      may_think_ = false;
  }
  newlines_ += trailing;
}

void OutputParser::emit(Kind kind, std::string_view text) {
  if (text.empty()) return;
  if (!events_.empty() && events_.back().kind == kind)
    events_.back().text += text;
  else
    events_.push_back({kind, std::string(text), "", ""});
}

}  // namespace dsv3
