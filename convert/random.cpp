// A weight is a table of 4096 values, looked up with 12 bits of a hash of its place: no state, so any thread can
// make any part of any tensor.
#include "convert/random.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <new>
#include <span>

#include "convert/checkpoint.h"
#include "convert/layout.h"
#include "ggml-lite/file.h"
#include "ggml-lite/json.h"
#include "version.h"

namespace dsv3 {
namespace {

using lite::DType;
using lite::kScaleBlock;

constexpr int kTable = 4096;
constexpr int64_t kPiece = int64_t(8) << 20;      // elements made at once
constexpr int64_t kChunk = int64_t(1) << 16;      // of them by one thread: a multiple of 4
constexpr int64_t kMaxConfig = int64_t(1) << 24;  // bytes of a config.json

// SplitMix64's output function: every bit of the result depends on every bit of z.
uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

uint64_t key_of(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325;  // FNV-1a
  for (const char c : name) hash = (hash ^ uint8_t(c)) * 0x100000001B3;
  return mix(hash + mix(seed + kGolden));
}

// Elements first .. first + n - 1, `first` a multiple of 4: one hash gives four.
template <class T>
void draw(uint64_t key, const T* table, int64_t first, int64_t n, T* out) {
  for (int64_t i = 0; i < n; i += 4) {
    const uint64_t bits = mix(key + uint64_t((first + i) / 4) * kGolden);
    for (int64_t j = 0; j < std::min<int64_t>(4, n - i); ++j)
      out[i + j] = table[bits >> (16 * j) & (kTable - 1)];
  }
}

// The standard normal distribution's values at n evenly spaced probabilities, rounded to multiples of 2^-12 so that
// they are the same with every math library.
std::vector<float> normal_quantiles(int n) {
  std::vector<float> out;
  for (int i = 0; i < n; ++i) {
    const double p = (i + 0.5) / n;
    double low = -8, high = 8;
    while (high - low > 1e-9) {
      const double middle = (low + high) / 2;
      (std::erfc(-middle / std::sqrt(2.0)) / 2 < p ? low : high) = middle;
    }
    out.push_back(float(std::nearbyint(low * 4096) / 4096));
  }
  return out;
}

// Codes whose values are normal with the largest at 448, as in the blocks of a released checkpoint; and every finite
// code once more, so that the rare ones, subnormal ones among them, are in every matrix.
struct F8Table {
  std::array<uint8_t, kTable> codes;
  double deviation;  // of the values

  F8Table() {
    size_t n = 0;
    for (int code = 0; code < 256; ++code)
      if ((code & 0x7F) != 0x7F) codes[n++] = uint8_t(code);
    const std::vector<float> normal = normal_quantiles(int(kTable - n));
    for (const float x : normal) codes[n++] = lite::f8_from_f32(x * (448 / normal.back()));
    double sum = 0;
    for (const uint8_t code : codes) sum += std::pow(double(lite::f32_from_f8(code)), 2);
    deviation = std::sqrt(sum / kTable);
  }
};

class RandomModel {
 public:
  RandomModel(const RandomOptions& options, const ConvertCallbacks& callbacks)
      : options_(options), callbacks_(callbacks) {}

  Result<ConvertSummary> run();

 private:
  Status read_config();
  void plan(const TensorInfo& info);
  Status write(const Stored& t, lite::PackWriter* writer);
  template <class T>
  Status write_elements(const Stored& t, const T* table, lite::PackWriter* writer);
  Status report_progress() const;

  const RandomOptions& options_;
  const ConvertCallbacks& callbacks_;
  Json json_;  // config.json, with the layers asked for
  Config config_;
  std::vector<TensorInfo> table_;
  std::vector<Stored> stored_;
  std::vector<lite::PackAlias> aliases_;
  const std::vector<float> normal_ = normal_quantiles(kTable);
  const F8Table f8_;
  std::vector<std::byte> piece_;
  int64_t done_ = 0, total_ = 0;  // bytes
};

Result<ConvertSummary> RandomModel::run() {
  if (!lite::info(options_.dtype).is_float)
    return lite::invalid_argument("make ", options_.out, ": weights cannot be stored as ",
                                  lite::info(options_.dtype).name, "; try F32, BF16, F16 or F8_E4M3");
  LITE_TRY(read_config());
  table_ = tensor_table(config_);
  for (const TensorInfo& info : table_) plan(info);
  if (options_.f8_head &&
      std::none_of(stored_.begin(), stored_.end(), [](const Stored& t) { return t.info->output_head; }))
    return lite::invalid_argument(
        "make ", options_.out, ": the model of ", options_.config,
        " has no output head of its own that could be stored as F8_E4M3; leave --head out");

  Json provenance{Json::Object()};
  provenance.set("converter", "dsv3-convert " DSV3_VERSION_TEXT);
  provenance.set("random_seed", std::to_string(options_.seed));
  provenance.set("dtype", lite::info(options_.dtype).name);
  if (options_.f8_head) provenance.set("head", lite::info(DType::F8_E4M3).name);
  Json json{Json::Object()};
  json.set("config", config_.effective);
  LITE_ASSIGN(const std::vector<lite::PackExtent> extents, group_into_extents(stored_));
  lite::PackOptions how;
  how.split_bytes = options_.split_bytes;
  LITE_ASSIGN(lite::PackWriter writer,
              lite::PackWriter::plan(options_.out, json,
                                     {{"config.json", json_.dump()}, {"provenance.json", provenance.dump()}},
                                     extents, aliases_, std::move(how)));
  LITE_TRY(check_split(writer.parts(), options_.split_bytes));
  LITE_TRY(check_destination(writer.parts(), options_.force));
  LITE_TRY(writer.start());
  for (const Stored& t : stored_) total_ += t.entry.data_bytes() + t.entry.scale_bytes();
  for (const Stored& t : stored_) LITE_TRY(write(t, &writer));
  LITE_TRY(report_progress());
  LITE_TRY(writer.finish());
  if (options_.force) remove_replaced(options_.out, writer.parts().size(), callbacks_.note);
  ConvertSummary summary;
  summary.files = writer.parts();
  summary.file_bytes = writer.file_bytes();
  summary.tensors = int64_t(stored_.size());
  summary.aliases = int64_t(aliases_.size());
  return summary;
}

// Reads the configuration and takes away the layers that are not wanted.
Status RandomModel::read_config() {
  LITE_ASSIGN(const std::string text, lite::read_text(options_.config, kMaxConfig));
  LITE_ASSIGN(json_, Json::parse_file(text, options_.config));
  std::vector<std::string> unknown;
  auto whole = Config::parse(json_, &unknown);
  if (!whole.ok()) return whole.status().in(options_.config);
  if (!unknown.empty() && callbacks_.note)
    callbacks_.note("config.json: these keys are not used: " + list_names(unknown));
  config_ = std::move(*whole);
  if (!options_.layers) return {};

  const int64_t layers = *options_.layers;
  if (layers < 1 || layers > config_.num_hidden_layers)
    return lite::invalid_argument("make ", options_.out, ": got ", layers, " layers, expected 1 to ",
                                  config_.num_hidden_layers, ", which ", options_.config, " has");
  if (!json_.find("num_hidden_layers")) return {};  // a lone layer
  json_.set("num_hidden_layers", layers);
  if (json_.find("num_nextn_predict_layers")) json_.set("num_nextn_predict_layers", 0);
  if (const Json* overrides = json_.find("layer_config"); overrides && overrides->object()) {
    Json::Object kept;
    for (const auto& [layer, keys] : *overrides->object())
      if (std::stoll(layer) < layers) kept.emplace_back(layer, keys);
    json_.set("layer_config", std::move(kept));
  }
  LITE_ASSIGN(config_, Config::parse(json_));
  return {};
}

void RandomModel::plan(const TensorInfo& info) {
  if (info.optional) {  // as in released checkpoints: the MTP layer repeats embedding and head, a tied head is absent
    if (info.role == Role::Mtp) aliases_.push_back({info.name, info.same_as});
    return;
  }
  Stored t{&info, {}};
  t.entry.name = info.name;
  t.entry.shape = info.shape;
  t.entry.dtype = info.matrix                                       ? options_.dtype
                  : info.output_head && options_.f8_head            ? DType::F8_E4M3
                  : info.name.ends_with(".e_score_correction_bias") ? DType::F32
                                                                    : DType::BF16;
  t.entry.scaled = t.entry.dtype == DType::F8_E4M3;
  if (t.entry.scaled) t.entry.block_rows = t.entry.block_cols = kScaleBlock;
  stored_.push_back(std::move(t));
}

Status RandomModel::report_progress() const {
  if (callbacks_.progress && !callbacks_.progress(done_, total_))
    return {lite::Code::Cancelled, "make " + options_.out + ": cancelled"};
  return {};
}

// Norm weights have mean 1; biases are small; a matrix keeps the size of what it multiplies, if that is normed, and so
// an embedding gives rows of size 1.
Status RandomModel::write(const Stored& t, lite::PackWriter* writer) {
  const TensorInfo& info = *t.info;
  const bool vector = info.shape.size() == 1, norm = vector && info.name.ends_with("norm.weight");
  const double mean = norm ? 1 : 0;
  const double deviation = norm                       ? 0.25
                           : vector                   ? 0.1
                           : info.role == Role::Embed ? 1
                                                      : 1 / std::sqrt(double(info.shape[1]));
  if (t.entry.scaled) {
    LITE_TRY(write_elements(t, f8_.codes.data(), writer));
    std::vector<float> scales(size_t(t.entry.scale_bytes()) / sizeof(float));
    const uint64_t key = key_of(options_.seed, info.name + "_scale_inv");
    for (size_t i = 0; i < scales.size(); ++i) {  // 3/4 to 5/4 of what gives the deviation
      const double factor = 0.75 + double(mix(key + i * kGolden) >> 40) * 0x1p-25;
      scales[i] = float(deviation / f8_.deviation * factor);
    }
    done_ += t.entry.scale_bytes();
    return writer->write(std::as_bytes(std::span(scales)));
  }
  std::vector<float> values;
  for (const float x : normal_) values.push_back(float(mean + deviation * double(x)));
  if (t.entry.dtype == DType::F32) return write_elements(t, values.data(), writer);
  std::vector<uint16_t> encoded(values.size());
  lite::encode(t.entry.dtype, values.data(), encoded.data(), kTable);
  return write_elements(t, encoded.data(), writer);
}

template <class T>
Status RandomModel::write_elements(const Stored& t, const T* table, lite::PackWriter* writer) {
  const uint64_t key = key_of(options_.seed, t.info->name);
  const int64_t elements = t.entry.data_bytes() / int64_t(sizeof(T));
  for (int64_t first = 0; first < elements; first += kPiece) {
    LITE_TRY(report_progress());
    const int64_t n = std::min(kPiece, elements - first);
    piece_.resize(size_t(n) * sizeof(T));
    T* out = reinterpret_cast<T*>(piece_.data());
#pragma omp parallel for if (n > kChunk)
    for (int64_t at = 0; at < n; at += kChunk)
      draw(key, table, first + at, std::min(kChunk, n - at), out + at);
    LITE_TRY(writer->write(piece_));
    done_ += int64_t(piece_.size());
  }
  return {};
}

}  // namespace

Result<ConvertSummary> write_random_model(const RandomOptions& options, const ConvertCallbacks& callbacks) {
  try {
    return RandomModel(options, callbacks).run();
  } catch (const std::bad_alloc&) {
    return lite::out_of_memory("make ", options.out, ": the machine has no memory left");
  }
}

}  // namespace dsv3
