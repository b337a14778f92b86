#include "tools/rows.h"

#include <algorithm>
#include <cmath>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace tools {

using nlohmann::json;

int32_t Row::real() const {
  int32_t n = int32_t(ids.size());
  while (n > 1 && !mask[size_t(n - 1)]) --n;
  return n;
}

void RowOptions::add_to(CLI::App* command) {
  CLI::Option* p = command->add_option("-p,--prompt", prompt, "the text");
  CLI::Option* f =
      command->add_option("-f,--file", file, "the text's file; - (default): standard input")->excludes(p);
  command
      ->add_option(
          "--ids", ids,
          "JSON file of token ids instead of a text: a list, a list of lists, or {\"input_ids\": lists, "
          "\"attention_mask\": lists}")
      ->excludes(p)
      ->excludes(f);
  command->parse_complete_callback([this, p] { has_prompt_ = p->count() > 0; });
}

std::vector<Row> RowOptions::read(const Model& model, std::string* text_out) const {
  std::vector<Row> rows;
  const auto add = [&](std::vector<int32_t> row_ids) {
    if (row_ids.empty()) fail("row ", rows.size(), ": no tokens");
    std::vector<uint8_t> all(row_ids.size(), 1);
    rows.push_back({std::move(row_ids), std::move(all)});
  };
  if (ids.empty()) {
    const dsv3_tokenizer* tokenizer = nullptr;
    check(dsv3_model_tokenizer(model.get(), &tokenizer));
    *text_out = has_prompt_ ? prompt : read_file(file);
    add(tokenize(tokenizer, *text_out, DSV3_BOS_AUTO));
    return rows;
  }
  const json given = parse_json(read_file(ids), ids);
  const json& lists = given.is_object() && given.contains("input_ids") ? given["input_ids"] : given;
  if (!lists.is_array() || lists.empty()) fail(ids, ": expected a list of token ids, or of such lists");
  if (lists[0].is_array())
    for (const json& list : lists) add(ids_of(list, ids));
  else
    add(ids_of(lists, ids));
  if (given.is_object() && given.contains("attention_mask")) {
    const json& masks = given["attention_mask"];
    for (size_t r = 0; r < rows.size(); ++r) {
      const json& mask = lists[0].is_array() ? masks.at(r) : masks;
      if (!mask.is_array() || mask.size() != rows[r].ids.size())
        fail(ids, ": row ", r, ": attention_mask is not as long as input_ids");
      for (size_t i = 0; i < mask.size(); ++i) rows[r].mask[i] = mask[i] != 0;
    }
  }
  return rows;
}

Outputs evaluate(const Model& model, const ComputeOptions& compute, const Row& row, bool all) {
  const dsv3_model_info info = get_info(model);
  const int32_t n = int32_t(row.ids.size());
  const int32_t at = all ? row.real() - 1 : dsv3_classified_position(model.get(), row.ids.data(), n);
  dsv3_session_options options = compute.session_options();
  options.context = at + 1;
  options.max_logits = all ? at + 1 : 1;
  const Session session = new_session(model, options);
  std::vector<uint8_t> want(size_t(at + 1), all);
  want.back() = 1;
  dsv3_batch batch = {};
  batch.struct_size = sizeof batch;
  batch.n = at + 1;
  batch.token = row.ids.data();
  batch.want_logits = want.data();
  check(dsv3_eval(session.get(), &batch));
  Outputs out;
  for (int32_t i = all ? 0 : at; i <= at; ++i) {
    const float* logits = nullptr;
    check(dsv3_logits(session.get(), i, &logits));
    out.values.emplace_back(logits, logits + info.n_outputs);
  }
  return out;
}

std::vector<double> softmax(const std::vector<float>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  double sum = 0;
  for (const float x : logits) sum += p.emplace_back(std::exp(x - largest));
  for (double& v : p) v /= sum;
  return p;
}

Offsets character_offsets(const dsv3_tokenizer* tokenizer, const std::vector<int32_t>& ids) {
  Offsets out;
  int64_t begun = 0;  // characters that have begun
  for (const int32_t id : ids) {
    const std::string bytes = detokenize(tokenizer, &id, 1, DSV3_SKIP_SPECIAL);
    const auto begins = [](char c) { return (c & 0xC0) != 0x80; };
    // A token that begins inside a character shares it with the token before.
    out.begin.push_back(!bytes.empty() && !begins(bytes[0]) ? std::max<int64_t>(begun - 1, 0) : begun);
    begun += std::count_if(bytes.begin(), bytes.end(), begins);
    out.end.push_back(begun);
  }
  return out;
}

}  // namespace tools
