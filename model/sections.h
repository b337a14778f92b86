// The sections that a model's packed file may have: text files of its checkpoint, byte for byte, and how it was made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "ggml-lite/pack.h"

namespace dsv3 {

inline constexpr std::string_view kCheckpointFiles[] = {
    "chat_template.jinja",     "chat_template.json", "config.json",    "generation_config.json",
    "special_tokens_map.json", "tiktoken.model",     "tokenizer.json", "tokenizer_config.json"};
// Also kept: its files *.jinja. In a section's name, which is that of a plain file, the folder ends with ':'.
inline constexpr std::string_view kTemplateFolder = "additional_chat_templates";
inline constexpr std::string_view kTemplateEnding = ".jinja";
inline constexpr int64_t kMaxCheckpointFile = int64_t(64) << 20;  // bytes of one; real ones have up to 33 MB
inline constexpr std::string_view kProvenance = "provenance.json";

// Whether `name` is "additional_chat_templates", the separator, and the name of a template's file.
inline bool is_named_template(std::string_view name, char separator) {
  const size_t folder = kTemplateFolder.size();
  return name.starts_with(kTemplateFolder) && name.size() > folder + 1 + kTemplateEnding.size() &&
         name[folder] == separator && name.ends_with(kTemplateEnding);
}

inline bool is_known_section(std::string_view name) {
  return name == kProvenance || is_named_template(name, ':') ||
         std::find(std::begin(kCheckpointFiles), std::end(kCheckpointFiles), name) !=
             std::end(kCheckpointFiles);
}

// Unsupported for a file with a section of another name; `what` begins the message.
inline lite::Status check_sections(const lite::PackFile& file, std::string_view what) {
  for (const std::string& name : file.section_names())
    if (!is_known_section(name))
      return lite::unsupported(what, ": it has a section \"", name,
                               "\", which this version does not know; try a newer version");
  return {};
}

// The section of a checkpoint's file, and the other way round: paths begin at the checkpoint's folder.
inline std::string section_of_path(std::string_view path) {
  std::string name(path);
  if (is_named_template(path, '/')) name[kTemplateFolder.size()] = ':';
  return name;
}
inline std::string path_of_section(std::string_view section) {
  std::string path(section);
  if (is_named_template(section, ':')) path[kTemplateFolder.size()] = '/';
  return path;
}

// What the checkpoint had at that path; null for no file.
inline const std::string_view* checkpoint_file(const lite::PackFile& file, std::string_view path) {
  return file.section(section_of_path(path));
}

}  // namespace dsv3
