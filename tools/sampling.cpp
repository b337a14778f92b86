#include "tools/sampling.h"

#include <cstdlib>

#include <CLI/CLI.hpp>

namespace tools {
namespace {

constexpr double kLargest = 1e6;  // of biases and penalties, as the library has it

// "ID=V"; what is wrong with it, if anything.
std::string read_bias(const std::string& given, dsv3_logit_bias* bias) {
  const size_t equals = given.find('=');
  const std::string id = given.substr(0, equals);
  if (equals == std::string::npos) return "expected ID=V, got \"" + given + "\"";
  if (const std::string wrong = number(0, INT32_MAX)(id); !wrong.empty()) return wrong;
  const std::string value = given.substr(equals + 1);
  if (const std::string wrong = number(-kLargest, kLargest)(value); !wrong.empty()) return wrong;
  *bias = {int32_t(std::strtol(id.c_str(), nullptr, 10)), std::strtof(value.c_str(), nullptr)};
  if (std::to_string(bias->token) != id) return "expected a token id before =, got \"" + id + "\"";
  return "";
}

}  // namespace

void SamplingOptions::add_to(CLI::App* command) {
  const auto add = [&](const char* name, auto& value, const char* text, double smallest, double largest,
                       const char* type) {
    command->add_option(name, value, text)->check(number(smallest, largest))->type_name(type);
  };
  add("--temp", temperature,
      "temperature, 0: always the likeliest token; this and what\n"
      "else says so defaults to the checkpoint's\n"
      "generation_config.json, or else to what changes nothing",
      0, 1e6, "X");
  add("--top-k", top_k, "choose among the k likeliest tokens; 0: all (default: the checkpoint's)", 0,
      INT32_MAX, "N");
  add("--top-p", top_p,
      "choose among the likeliest tokens that reach this probability; 0 or 1: all (default: the "
      "checkpoint's)",
      0, 1, "X");
  add("--min-p", min_p,
      "leave out tokens less likely than this share of the likeliest one's; 0: none (default: the "
      "checkpoint's)",
      0, 1, "X");
  add("--typical-p", typical_p,
      "choose among the tokens as surprising as the mean that reach this probability; 0 or 1: all (default: "
      "the "
      "checkpoint's)",
      0, 1, "X");
  add("--repetition-penalty", repetition_penalty,
      "divide positive logits of tokens of the text so far, multiply negative ones; 0 or 1: none (default: "
      "the "
      "checkpoint's)",
      0, kLargest, "X");
  add("--presence-penalty", presence_penalty, "subtract from the logit of every token of the text so far",
      -kLargest, kLargest, "X");
  add("--frequency-penalty", frequency_penalty, "the same for every time that the token is there", -kLargest,
      kLargest, "X");
  add("--penalty-window", penalty_window,
      "the penalties look at so many last tokens of prompt and answer; 0: all (default)", 0, INT32_MAX, "N");
  command
      ->add_option_function<std::vector<std::string>>(
          "--logit-bias",
          [this](const std::vector<std::string>& given) {
            for (const std::string& text : given) {
              dsv3_logit_bias bias;
              if (const std::string wrong = read_bias(text, &bias); !wrong.empty())
                throw CLI::ValidationError("--logit-bias", wrong);
              logit_bias.push_back(bias);
            }
          },
          "add V to the logit of token ID; may be repeated")
      ->type_name("ID=V");
  // Not an option of strings: CLI11 would read a stop text "[a,b]" as a list.
  command->add_option("--stop", "end the answer before this text; may be repeated")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("TEXT")
      ->check([](const std::string& t) { return t.empty() ? "is empty" : ""; })
      ->each([this](const std::string& t) { stops.push_back(t); });
}

dsv3_sampling SamplingOptions::sampling(const Model& model) const {
  dsv3_sampling s = {};
  s.struct_size = sizeof s;
  check(dsv3_model_sampling(model.get(), &s));
  s.temperature = temperature.value_or(s.temperature);
  s.top_k = top_k.value_or(s.top_k);
  s.top_p = top_p.value_or(s.top_p);
  s.min_p = min_p.value_or(s.min_p);
  s.typical_p = typical_p.value_or(s.typical_p);
  s.repetition_penalty = repetition_penalty.value_or(s.repetition_penalty);
  s.presence_penalty = presence_penalty.value_or(s.presence_penalty);
  s.frequency_penalty = frequency_penalty.value_or(s.frequency_penalty);
  s.penalty_window = penalty_window.value_or(s.penalty_window);
  s.n_logit_bias = int32_t(logit_bias.size());
  s.logit_bias = logit_bias.data();
  return s;
}

StopTexts::StopTexts(const std::vector<std::string>& texts) {
  std::vector<const char*> pointers;
  std::vector<size_t> sizes;
  for (const std::string& t : texts) {
    pointers.push_back(t.data());
    sizes.push_back(t.size());
  }
  check(dsv3_stop_new(pointers.data(), sizes.data(), int32_t(texts.size()), &stop_));
}

std::string_view StopTexts::add(std::string_view bytes, bool* stopped) {
  const char* shown = nullptr;
  size_t n = 0;
  int complete = 0;
  check(dsv3_stop_add(stop_, bytes.data(), bytes.size(), &shown, &n, &complete));
  *stopped = complete != 0;
  return {shown, n};
}

std::string_view StopTexts::finish() {
  const char* shown = nullptr;
  size_t n = 0;
  check(dsv3_stop_finish(stop_, &shown, &n));
  return {shown, n};
}

}  // namespace tools
