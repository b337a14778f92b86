// What a model writes, split into reasoning, content and tool calls while it is being written.
//
// Known are the marks of the released models: <think> and </think>; tool calls of DeepSeek V3 (a JSON block with a
// type), R1 and V3.1 (bare arguments), Kimi-K2 (an id), and Qwen3 (<tool_call> around one JSON object).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ggml-lite/status.h"

namespace dsv3 {

struct OutputEvent {
  enum class Kind { Content, Reasoning, ToolCall, Note };
  Kind kind = Kind::Content;
  std::string
      text;  // ToolCall: the arguments, one JSON object. Note: what was wrong with the content before it
  std::string name, id;  // of a tool call; the id may be empty
};

// Cutting the text into other pieces gives the same events, but for where one kind's text is cut. Newlines next to a
// mark belong to the format and are left out. A tool call is given as a whole, at its end; what is none, for all its
// marks, comes out as content, byte for byte, with a note. Time and memory are linear in the text.
class OutputParser {
 public:
  // `prompt`: what the model goes on from; when its end has opened <think>, the answer begins with reasoning.
  explicit OutputParser(std::string_view prompt);

  std::vector<OutputEvent> add(std::string_view text);
  std::vector<OutputEvent> finish();  // no more text comes

 private:
  enum class State { Content, Reasoning, Section, Call };
  struct Format;
  static const Format kFormats[];

  bool step();  // false: more text is needed
  bool plain_text();
  bool section();
  bool call();
  void plain(std::string_view text);
  void emit(OutputEvent::Kind kind, std::string_view text);
  void give_up(const std::string& why);
  void after_mark(State state);

  State state_ = State::Content;
  const Format* format_ = nullptr;  // of the tool calls being read
  std::string buffer_;              // not looked at yet, or not decided
  size_t searched_ = 0;             // bytes of buffer_ that hold no end of the call
  std::string undecided_;  // of the tool calls being read, with their marks: content, if they are none
  size_t newlines_ = 0;    // read, and left out if a mark follows
  bool at_mark_ = false;   // newlines read next follow a mark
  bool may_think_ = true;  // <think> is a mark until there is content
  std::vector<OutputEvent> events_;
};

}  // namespace dsv3
