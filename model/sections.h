// The sections that a model's packed file may have: text files of its checkpoint, byte for byte, and how it was made.
#pragma once

#include <algorithm>
#include <string_view>

namespace dsv3 {

inline constexpr std::string_view kCheckpointFiles[] = {
    "chat_template.jinja",     "chat_template.json", "config.json",    "generation_config.json",
    "special_tokens_map.json", "tiktoken.model",     "tokenizer.json", "tokenizer_config.json"};
inline constexpr std::string_view kProvenance = "provenance.json";

inline bool is_known_section(std::string_view name) {
  return name == kProvenance || std::find(std::begin(kCheckpointFiles), std::end(kCheckpointFiles), name) !=
                                    std::end(kCheckpointFiles);
}

}  // namespace dsv3
