// How the next token is chosen: options of commands that write text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/common.h"

namespace tools {

struct SamplingOptions {
  std::optional<double> temperature, top_p, min_p, typical_p;
  std::optional<double> repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int32_t> top_k, penalty_window;
  std::vector<std::string> stops;
  std::vector<dsv3_logit_bias> logit_bias;

  void add_to(CLI::App* command);
  // What is given, over what the checkpoint asks for. Points into these options.
  dsv3_sampling sampling(const Model& model) const;
};

// Stop texts, and what of an answer can be shown.
class StopTexts {
 public:
  explicit StopTexts(const std::vector<std::string>& texts);
  StopTexts(const StopTexts&) = delete;
  ~StopTexts() { dsv3_stop_free(stop_); }

  // What can be shown now; `*stopped` becomes true when a stop text has appeared. The view holds until the next call.
  std::string_view add(std::string_view bytes, bool* stopped);
  std::string_view finish();  // all that is still held back

 private:
  dsv3_stop* stop_ = nullptr;
};

}  // namespace tools
