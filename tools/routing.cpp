// dsv3 routing: how the experts of every layer are used by a text.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/rows.h"
#include "tools/tensor_file.h"

namespace tools {
namespace {

using nlohmann::ordered_json;

struct RoutingOptions {
  std::string model, format = "text", svg, trace;
  RowOptions rows;
  ComputeOptions compute;
};

struct Layer {
  int32_t index = 0, experts = 0, chosen = 0;
  std::vector<float> logits;     // [tokens, experts]
  std::vector<int64_t> ids;      // [tokens, chosen]
  std::vector<float> weights;    // [tokens, chosen]
  std::vector<int64_t> load;     // [experts] tokens that choose it
  double loss = 0, entropy = 0;  // entropy in bits of the load; log2(experts) when even
  double max_over_mean = 0;
};

std::vector<Layer> routed_layers(const Model& model) {
  const char* description = nullptr;
  check(dsv3_model_describe(model.get(), &description));
  const ordered_json all = ordered_json::parse(description);
  std::vector<Layer> layers;
  for (const ordered_json& l : all["layers"]) {
    if (l["kind"] != "moe") continue;
    Layer layer;
    layer.index = l["layer"];
    layer.experts = l["n_routed_experts"];
    layer.chosen = l["num_experts_per_tok"];
    layer.load.resize(size_t(layer.experts));
    layers.push_back(std::move(layer));
  }
  if (layers.empty()) fail("routing: the model has no layer with experts");
  return layers;
}

template <class T>
void append_kept(const Session& session, const char* kind, const Layer& layer, int32_t i,
                 std::vector<T>* out) {
  dsv3_dtype dtype;
  const void* values = nullptr;
  int32_t n = 0;
  check(dsv3_kept(session.get(), text(kind, layer.index).c_str(), i, &dtype, &values, &n));
  if (dtype == DSV3_I32)
    out->insert(out->end(), static_cast<const int32_t*>(values), static_cast<const int32_t*>(values) + n);
  else
    out->insert(out->end(), static_cast<const float*>(values), static_cast<const float*>(values) + n);
}

void evaluate_rows(const Model& model, const ComputeOptions& compute, const std::vector<Row>& rows,
                   std::vector<Layer>* layers) {
  constexpr int32_t kPass = 256;  // tokens
  for (const Row& row : rows) {
    dsv3_session_options options = compute.session_options();
    options.context = int32_t(row.ids.size());
    options.max_batch_tokens = std::min(options.context, kPass);
    options.keep = DSV3_KEEP_ROUTING;
    const Session session = new_session(model, options);
    for (int32_t first = 0; first < options.context; first += kPass) {
      dsv3_batch batch = {};
      batch.struct_size = sizeof batch;
      batch.n = std::min(kPass, options.context - first);
      batch.token = row.ids.data() + first;
      check(dsv3_eval(session.get(), &batch));
      for (Layer& layer : *layers)
        for (int32_t i = 0; i < batch.n; ++i) {
          append_kept(session, "router_logits.", layer, i, &layer.logits);
          if (!std::all_of(layer.logits.end() - layer.experts, layer.logits.end(),
                           [](float x) { return std::isfinite(x); }))
            fail("routing: row ", row.index, ": token ", row.dropped + first + i, ": router logits of layer ",
                 layer.index, " are not finite");
          append_kept(session, "router_ids.", layer, i, &layer.ids);
          append_kept(session, "router_weights.", layer, i, &layer.weights);
        }
    }
  }
}

void count(const std::vector<uint8_t>& mask, Layer* layer) {
  int64_t total = 0;
  for (size_t i = 0; i < layer->ids.size(); ++i)
    if (mask[i / size_t(layer->chosen)]) ++layer->load[size_t(layer->ids[i])], ++total;
  for (const int64_t load : layer->load)
    if (load) layer->entropy -= double(load) / double(total) * std::log2(double(load) / double(total));
  const double mean = double(total) / layer->experts;
  layer->max_over_mean = double(*std::max_element(layer->load.begin(), layer->load.end())) / mean;
  const float* logits = layer->logits.data();
  check(dsv3_load_balancing_loss(&logits, 1, int32_t(mask.size()), layer->experts, layer->chosen, mask.data(),
                                 &layer->loss));
}

// Of all layers together, as the training loss is; nothing (null in JSON) when layers have unlike numbers of
// experts.
std::optional<double> loss_of_all(const std::vector<Layer>& layers, const std::vector<uint8_t>& mask) {
  std::vector<const float*> logits;
  for (const Layer& l : layers) {
    if (l.experts != layers[0].experts || l.chosen != layers[0].chosen) return std::nullopt;
    logits.push_back(l.logits.data());
  }
  double loss = 0;
  check(dsv3_load_balancing_loss(logits.data(), int32_t(logits.size()), int32_t(mask.size()),
                                 layers[0].experts, layers[0].chosen, mask.data(), &loss));
  return loss;
}

std::string as_text(const std::vector<Layer>& layers, std::optional<double> loss, int64_t tokens) {
  std::string out = text(tokens, " tokens; load-balancing loss ");
  out += loss ? text(*loss, " (", layers[0].chosen, " is perfect balance)\n")
              : "of each layer only, as their numbers of experts differ\n";
  out += "layer  experts  max/mean  entropy (bits, of)      loss  unused  busiest\n";
  for (const Layer& l : layers) {
    char row[160];
    const auto busiest = std::max_element(l.load.begin(), l.load.end());
    std::snprintf(row, sizeof row, "%5d  %7d  %8.2f  %7.3f of %7.3f  %8.4f  %6d  expert %d: %lld\n", l.index,
                  l.experts, l.max_over_mean, l.entropy, std::log2(double(l.experts)), l.loss,
                  int(std::count(l.load.begin(), l.load.end(), 0)), int(busiest - l.load.begin()),
                  static_cast<long long>(*busiest));
    out += row;
  }
  return out;
}

std::string as_csv(const std::vector<Layer>& layers) {
  std::string out = "layer,expert,tokens\n";
  for (const Layer& l : layers)
    for (size_t e = 0; e < l.load.size(); ++e) out += text(l.index, ",", e, ",", l.load[e], "\n");
  return out;
}

std::string as_json(const std::vector<Layer>& layers, std::optional<double> loss, int64_t tokens) {
  ordered_json out = {{"tokens", tokens}, {"loss", nullptr}, {"layers", ordered_json::array()}};
  if (loss) out["loss"] = *loss;
  for (const Layer& l : layers)
    out["layers"].push_back({{"layer", l.index},
                             {"experts", l.experts},
                             {"experts_per_token", l.chosen},
                             {"loss", l.loss},
                             {"entropy_bits", l.entropy},
                             {"max_over_mean", l.max_over_mean},
                             {"load", l.load}});
  return out.dump() + "\n";
}

std::string partial_of(const std::string& path) {
  return path + ".partial";
}

// Before the work: where the picture and the trace go must be free, or theirs.
void check_outputs(const RoutingOptions& o) {
  namespace fs = std::filesystem;
  if (!o.trace.empty()) TensorFile::check(o.trace);
  if (o.svg.empty()) return;
  check_replaceable(o.svg, 0, "<svg", "a picture of this kind");
  if (fs::exists(fs::symlink_status(partial_of(o.svg))))
    fail("write ", partial_of(o.svg), ": it exists; remove it, or try another name for the picture");
  if (!o.trace.empty() && fs::absolute(o.svg).lexically_normal() == fs::absolute(o.trace).lexically_normal())
    fail("routing: --svg and --trace are the same file, ", o.svg);
}

// Appears under its name when it is complete; leaves nothing behind if it cannot be written.
void write_svg(const std::string& path, const std::string& picture) {
  const std::string partial = partial_of(path);
  std::ofstream file(partial, std::ios::binary);
  file << picture;
  file.close();
  if (file && std::rename(partial.c_str(), path.c_str()) == 0) return;
  const int why = errno;
  std::remove(partial.c_str());
  errno = why;
  fail_errno("write " + path);
}

// A row of cells per layer, from white (unused) to dark (twice the mean load or more).
std::string as_svg(const std::vector<Layer>& layers, int64_t tokens) {
  constexpr int kCell = 12, kLeft = 60, kTop = 40;
  int32_t widest = 0;
  for (const Layer& l : layers) widest = std::max(widest, l.experts);
  const int width = kLeft + widest * kCell + 20, height = kTop + int(layers.size()) * kCell + 40;
  std::string out =
      text("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", width, "\" height=\"", height,
           "\" font-family=\"sans-serif\" font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" "
           "fill=\"white\"/>\n",
           "<text x=\"", kLeft, "\" y=\"16\" font-size=\"12\">Expert load, ", tokens,
           " tokens: white unused, dark twice the mean or more</text>\n<text x=\"", kLeft, "\" y=\"",
           kTop - 6, "\">expert</text>\n<text x=\"6\" y=\"", kTop - 6, "\">layer</text>\n");
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& l = layers[i];
    const int y = kTop + int(i) * kCell;
    out += text("<text x=\"6\" y=\"", y + 9, "\">", l.index, "</text>\n");
    int64_t total = 0;
    for (const int64_t load : l.load) total += load;
    for (int32_t e = 0; e < l.experts; ++e) {
      const double share =
          std::min(1.0, double(l.load[size_t(e)]) * l.experts / double(std::max<int64_t>(total, 1)) / 2);
      const int red = int(255 - 231 * share), green = int(255 - 187 * share), blue = int(255 - 120 * share);
      out +=
          text("<rect x=\"", kLeft + e * kCell, "\" y=\"", y, "\" width=\"", kCell - 1, "\" height=\"",
               kCell - 1, "\" fill=\"rgb(", red, ",", green, ",", blue, ")\" stroke=\"#ddd\"><title>layer ",
               l.index, ", expert ", e, ": ", l.load[size_t(e)], " tokens</title></rect>\n");
    }
  }
  return out + "</svg>\n";
}

void save_trace(const std::string& path, const std::vector<Row>& given, const std::vector<Layer>& layers) {
  using Type = TensorFile::Type;
  TensorFile file(path);
  const auto rows = [](const Layer& l) { return int64_t(l.ids.size()) / l.chosen; };
  for (const Layer& l : layers) {
    file.add(text("router_ids.", l.index), Type::I64, {rows(l), l.chosen});
    file.add(text("router_weights.", l.index), Type::F32, {rows(l), l.chosen});
    file.add(text("router_logits.", l.index), Type::F32, {rows(l), l.experts});
  }
  // Of each token of the other tensors: its id, its row and place in what was given, and 0 if it is padding.
  std::vector<int64_t> ids, row, token, mask;
  for (const Row& r : given)
    for (size_t i = 0; i < r.ids.size(); ++i) {
      ids.push_back(r.ids[i]);
      row.push_back(int64_t(r.index));
      token.push_back(r.dropped + int64_t(i));
      mask.push_back(r.mask[i]);
    }
  const std::pair<const char*, const std::vector<int64_t>&> of_tokens[] = {
      {"input_ids", ids}, {"row", row}, {"token", token}, {"mask", mask}};
  for (const auto& [name, values] : of_tokens) file.add(name, Type::I64, {int64_t(values.size())});
  file.create();
  for (const auto& [name, values] : of_tokens) file.write_row(name, 0, values.data(), int64_t(values.size()));
  for (const Layer& l : layers)
    for (int64_t r = 0; r < rows(l); ++r) {
      file.write_row(text("router_ids.", l.index), r, &l.ids[size_t(r * l.chosen)], l.chosen);
      file.write_row(text("router_weights.", l.index), r, &l.weights[size_t(r * l.chosen)], l.chosen);
      file.write_row(text("router_logits.", l.index), r, &l.logits[size_t(r * l.experts)], l.experts);
    }
  file.finish();
}

void run_routing(const RoutingOptions& o) {
  check_outputs(o);
  const Model model = open_model(o.model, o.compute);
  std::string given;
  const std::vector<Row> rows = o.rows.read(model, &given);
  std::vector<Layer> layers = routed_layers(model);
  evaluate_rows(model, o.compute, rows, &layers);
  std::vector<uint8_t> mask;
  for (const Row& row : rows) mask.insert(mask.end(), row.mask.begin(), row.mask.end());
  const int64_t tokens = std::count_if(mask.begin(), mask.end(), [](uint8_t m) { return m != 0; });
  for (Layer& layer : layers) count(mask, &layer);
  const std::optional<double> loss = loss_of_all(layers, mask);
  if (!o.trace.empty()) save_trace(o.trace, rows, layers);
  if (!o.svg.empty()) write_svg(o.svg, as_svg(layers, tokens));
  write_stdout(o.format == "json"  ? as_json(layers, loss, tokens)
               : o.format == "csv" ? as_csv(layers)
                                   : as_text(layers, loss, tokens));
}

}  // namespace

void add_routing(CLI::App* program) {
  const auto o = std::make_shared<RoutingOptions>();
  CLI::App* command = program->add_subcommand("routing", "How the experts of every layer are used by a text");
  command->add_option("MODEL", o->model, "packed file")->required();
  o->rows.add_to(command);
  o->compute.add_to(command);
  command->add_option("--format", o->format, "text, json (all loads), or csv (layer,expert,tokens)")
      ->check(CLI::IsMember({"text", "json", "csv"}))
      ->capture_default_str();
  command->add_option("--svg", o->svg, "also write a heat map of load by layer and expert to this file");
  command->add_option(
      "--trace", o->trace,
      "also write every token's expert ids, weights and logits, and which token it is, to this "
      "safetensors file");
  command->callback([o] { run_routing(*o); });
}

}  // namespace tools
