// What templates do to strings: Python's methods of str, by themselves.
#pragma once

#include <string_view>
#include <vector>

#include "text/jinja/text.h"
#include "text/jinja/value.h"

namespace dsv3::jinja {

// Title: Python's method, at every letter after none. TitleWords: Jinja's filter, after space and opening brackets.
enum class Case { Upper, Lower, Capitalize, Title, TitleWords };
Text map_case(const Text& text, Case how);
bool is_all_case(std::string_view text, bool upper);  // and some letter has a case at all
bool all_characters(std::string_view text, bool (*is)(uint32_t code_point));  // and there is one

// Without the listed characters, or white space, at its sides.
Text strip(const Text& text, const Text* characters, bool left, bool right);
// The first `count` places; negative: all.
Result<Text> replace(const Text& text, const Text& from, const Text& to, int64_t count, Budget* budget);
// At most `most` cuts, negative: all, counted from the left or the right. Null: at white space.
std::vector<Text> split(const Text& text, const Text* separator, int64_t most, bool from_right);
std::vector<Text> split_lines(const Text& text, bool keep_ends);
int64_t count_text(std::string_view text, const Text& part);
Result<Text> join(const Text& separator, const Values& items, Budget* budget);

}  // namespace dsv3::jinja
