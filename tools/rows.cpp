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
  CLI::Option* f = command->add_option("-f,--file,FILE", file, "the text's file; - (default): standard input")
                       ->excludes(p);
  command
      ->add_option(
          "--ids", ids,
          "JSON file of token ids instead of a text: a list, a list of lists, or {\"input_ids\": lists, "
          "\"attention_mask\": lists}")
      ->excludes(p)
      ->excludes(f);
  command->parse_complete_callback([this, p] { has_prompt_ = p->count() > 0; });
}

namespace {

// Padding is before the tokens or after them. What is before them is dropped: no token may see it, and that positions
// begin at another number changes nothing, as only their differences count.
void read_mask(const json& mask, const std::string& what, Row* row) {
  if (!mask.is_array() || mask.size() != row->ids.size()) fail(what, " is not as long as input_ids");
  for (size_t i = 0; i < mask.size(); ++i) {
    if (mask[i] != 0 && mask[i] != 1) fail(what, ": item ", i, ": got ", mask[i].dump(), ", expected 0 or 1");
    row->mask[i] = mask[i] == 1;
  }
  const auto first = std::find(row->mask.begin(), row->mask.end(), 1);
  const auto after = std::find(first, row->mask.end(), 0);
  if (std::find(after, row->mask.end(), 1) != row->mask.end())
    fail(what, ": 0 at item ", after - row->mask.begin(),
         " stands between tokens, expected padding at the ends");
  if (first == row->mask.end()) fail(what, " leaves no token");
  row->dropped = first - row->mask.begin();
  row->ids.erase(row->ids.begin(), row->ids.begin() + row->dropped);
  row->mask.erase(row->mask.begin(), first);
}

}  // namespace

std::vector<Row> RowOptions::read(const Model& model, std::string* text_out) const {
  std::vector<Row> rows;
  const int64_t n_ids = get_info(model).vocab_size;
  const auto add = [&](std::vector<int32_t> row_ids) {
    const std::string what = text(ids, ids.empty() ? "" : ": ", "row ", rows.size());
    if (row_ids.empty()) fail(what, ": no tokens");
    for (size_t i = 0; i < row_ids.size(); ++i)
      if (row_ids[i] >= n_ids)
        fail(what, ": item ", i, ": got ", row_ids[i], ", expected a token id in 0..", n_ids - 1);
    std::vector<uint8_t> all(row_ids.size(), 1);
    rows.push_back({std::move(row_ids), std::move(all), {}, rows.size()});
  };
  if (ids.empty()) {
    const dsv3_tokenizer* tokenizer = nullptr;
    check(dsv3_model_tokenizer(model.get(), &tokenizer));
    *text_out = has_prompt_ ? prompt : read_file(file);
    std::vector<dsv3_span> spans;
    add(tokenize_spans(tokenizer, *text_out, DSV3_BOS_AUTO, &spans));
    rows[0].spans = std::move(spans);
    return rows;
  }
  const json given = parse_json(read_file(ids), ids);
  const json& lists = given.is_object() && given.contains("input_ids") ? given["input_ids"] : given;
  if (!lists.is_array() || lists.empty()) fail(ids, ": expected a list of token ids, or of such lists");
  if (lists[0].is_array())
    for (const json& list : lists) add(ids_of(list, text(ids, ": row ", rows.size())));
  else
    add(ids_of(lists, ids));
  if (given.is_object() && given.contains("attention_mask")) {
    const json& masks = given["attention_mask"];
    const bool many = lists[0].is_array();
    if (!masks.is_array() || (many && masks.size() != rows.size()))
      fail(ids, ": attention_mask is not a list of as many rows as input_ids");
    for (size_t r = 0; r < rows.size(); ++r)
      read_mask(many ? masks[r] : masks, text(ids, ": row ", r, ": attention_mask"), &rows[r]);
  }
  return rows;
}

Outputs evaluate(const Model& model, const ComputeOptions& compute, const Row& row, bool all) {
  const dsv3_model_info info = get_info(model);
  const int32_t n = row.real();
  const int32_t at = all ? n - 1 : dsv3_classified_position(model.get(), row.ids.data(), n);
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
    if (!std::all_of(logits, logits + info.n_outputs, [](float x) { return std::isfinite(x); }))
      fail("row ", row.index, ": token ", row.dropped + i, ": logits are not finite");
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

namespace {
bool begins_character(char byte) {
  return (byte & 0xC0) != 0x80;
}
}  // namespace

Offsets character_offsets(std::string_view text, const std::vector<dsv3_span>& spans) {
  std::vector<int64_t> begun = {0};  // [i]: characters that have begun before byte i
  for (const char byte : text) begun.push_back(begun.back() + begins_character(byte));
  Offsets out;
  for (const dsv3_span& span : spans) {
    const int64_t inside =
        span.begin < span.end && begun[span.begin] > 0 && !begins_character(text[span.begin]);
    out.begin.push_back(begun[span.begin] - inside);
    out.end.push_back(begun[span.end]);
  }
  return out;
}

std::string characters(std::string_view text, int64_t begin, int64_t end) {
  std::string out;
  int64_t begun = 0;
  for (const char byte : text) {
    begun += begins_character(byte);
    if (begun > begin && begun <= end) out += byte;
  }
  return out;
}

}  // namespace tools
