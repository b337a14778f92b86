// Rows of token ids that a subcommand evaluates one by one: from a text, or from JSON as other programs write
// it.
#pragma once

#include <string>
#include <vector>

#include "tools/common.h"

namespace tools {

struct Row {
  std::vector<int32_t> ids;
  std::vector<uint8_t> mask;     // 0: padding; as long as ids
  std::vector<dsv3_span> spans;  // of a text, the bytes that each id comes from
  size_t index = 0;              // among the rows given
  int64_t dropped = 0;           // padding before ids[0]: token i is the given row's token i + dropped
  int32_t real() const;  // tokens up to the last that is not padding; no later one changes what those give
};

// The options -p, -f and --ids.
struct RowOptions {
  std::string prompt, file = "-", ids;

  void add_to(CLI::App* command);
  // One row of the text, tokenized as the checkpoint does it by itself (added tokens are plain text), or the
  // rows of
  // --ids: a list of ids, a list of such lists, or {"input_ids": rows, "attention_mask": rows of 0 and 1}. Padding before
  // the tokens is dropped.
  std::vector<Row> read(const Model& model, std::string* text) const;

 private:
  bool has_prompt_ = false;
};

// What the model computes for the tokens of one row, each evaluated once in a session of its own length;
// every token's outputs when `all`, else those of the classified position.
struct Outputs {
  std::vector<std::vector<float>> values;  // [tokens or 1][n_outputs]
};
Outputs evaluate(const Model& model, const ComputeOptions& compute, const Row& row, bool all);

// Probabilities of one row of logits.
std::vector<double> softmax(const std::vector<float>& logits);

// Where tokens lie in their text, in characters (code points): token i is [begin[i], end[i]). Tokens that share a
// character have all of it.
struct Offsets {
  std::vector<int64_t> begin, end;
};
Offsets character_offsets(std::string_view text, const std::vector<dsv3_span>& spans);
std::string characters(std::string_view text, int64_t begin, int64_t end);  // [begin, end) of the text

}  // namespace tools
