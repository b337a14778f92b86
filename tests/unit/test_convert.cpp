// The converter: goldens come through bit for bit, and other types are the nearest there are.
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "convert/checkpoint.h"
#include "tests/unit/convert_source.h"

using namespace convert_test;

namespace {

std::vector<std::string> golden_folders() {
  std::vector<std::string> out = {DSV3_SOURCE_DIR "/examples/demo-model"};
  for (const auto& entry : std::filesystem::directory_iterator(DSV3_SOURCE_DIR "/tests/golden/cases"))
    if (std::filesystem::exists(entry.path() / "model.safetensors") ||
        std::filesystem::exists(entry.path() / "model.safetensors.index.json"))
      out.push_back(entry.path().string());
  std::sort(out.begin(), out.end());
  REQUIRE(out.size() > 5);
  return out;
}

std::string data_of(const Checkpoint::Tensor& t) {
  std::string out(size_t(t.entry->bytes), '\0');
  REQUIRE(t.file().read(*t.entry, 0, std::as_writable_bytes(std::span(out))).ok());
  return out;
}

std::string data_of(const PackFile::Item& item) {
  return {reinterpret_cast<const char*>(item.tensor.data), size_t(item.entry.data_bytes())};
}

std::string scales_of(const PackFile::Item& item) {
  return {reinterpret_cast<const char*>(item.tensor.scale.data), size_t(item.entry.scale_bytes())};
}

// A file keeps the checkpoint's own name of a tensor, which may be one of several.
const PackFile::Item* find(const PackFile& file, const TensorInfo& info) {
  const PackFile::Item* item = file.find(info.name);
  for (size_t i = 0; !item && i < info.also.size(); ++i) item = file.find(info.also[i]);
  return item;
}

Config config_of(const PackFile& file) {
  auto config = Config::parse(*file.json().find("config"));
  REQUIRE_MESSAGE(config.ok(), config.status().message());
  return std::move(*config);
}

// Elements of a float type as double, with their scales.
std::vector<double> values_of(DType dtype, const std::string& data, const std::vector<int64_t>& shape,
                              const std::string* scales = nullptr, DType scale_dtype = DType::F32) {
  const size_t n = data.size() / size_t(lite::size_of(dtype));
  std::vector<float> floats(n);
  lite::decode(dtype, data.data(), floats.data(), int64_t(n));
  std::vector<double> out(floats.begin(), floats.end());
  if (!scales) return out;
  std::vector<float> grid(scales->size() / size_t(lite::size_of(scale_dtype)));
  lite::decode(scale_dtype, scales->data(), grid.data(), int64_t(grid.size()));
  const size_t cols = size_t(shape[1]), grid_cols = (cols + 127) / 128;
  for (size_t i = 0; i < n; ++i) out[i] *= double(grid[i / cols / 128 * grid_cols + i % cols / 128]);
  return out;
}

// Whether code `got` of a 16-bit type is the nearest to `value`, of two the even one.
bool is_nearest(DType dtype, uint16_t got, double value) {
  static const auto table = [](DType of) {
    std::vector<double> values(65536);
    for (uint32_t code = 0; code < 65536; ++code)
      values[code] = double(of == DType::BF16 ? lite::f32_from_bf16(uint16_t(code))
                                              : lite::f32_from_f16(uint16_t(code)));
    return values;
  };
  static const std::vector<double> bf16 = table(DType::BF16), f16 = table(DType::F16);
  const std::vector<double>& values = dtype == DType::BF16 ? bf16 : f16;
  const double error = std::fabs(values[got] - value);
  for (const int step : {-1, 1}) {
    if ((got & 0x7FFF) == 0 && step < 0) continue;
    const double other_error = std::fabs(values[got + step] - value);
    if (other_error < error || (other_error == error && got % 2)) return false;
  }
  return value == 0 || std::signbit(value) == (got >= 0x8000);
}

}  // namespace

TEST_CASE("convert: every golden checkpoint comes through bit for bit") {
  for (const std::string& folder : golden_folders()) {
    CAPTURE(folder);
    TempDir dir;
    const auto summary = convert({folder, dir / "m.dsv3", {}, false});
    REQUIRE_MESSAGE(summary.ok(), summary.status().message());
    CHECK(dir.names() == std::vector<std::string>{"m.dsv3"});
    const auto file = PackFile::open(dir / "m.dsv3");
    REQUIRE_MESSAGE(file.ok(), file.status().message());
    CHECK(file->verify().ok());
    CHECK(file->file_bytes() == summary->file_bytes);
    CHECK(int64_t(file->items().size()) == summary->tensors + summary->aliases);
    const auto checkpoint = Checkpoint::open(folder);
    REQUIRE(checkpoint.ok());
    size_t found = 0;
    for (const PackFile::Item& item : file->items()) {
      CAPTURE(item.entry.name);
      const Checkpoint::Tensor* source = checkpoint->find(item.entry.name);
      REQUIRE(source);
      ++found;
      CHECK(source->entry->dtype == lite::info(item.entry.dtype).name);
      CHECK(source->entry->shape == item.entry.shape);
      CHECK(data_of(item) == data_of(*source));
      const Checkpoint::Tensor* scale = checkpoint->find(item.entry.name + "_scale_inv");
      REQUIRE(item.entry.scaled == (scale != nullptr));
      if (!scale) continue;
      ++found;
      CHECK(scale->entry->dtype == lite::info(item.entry.scale_dtype).name);
      CHECK(item.entry.block_rows == 128);
      CHECK(item.entry.block_cols == 128);
      CHECK(scales_of(item) == data_of(*scale));
    }
    CHECK(found == checkpoint->tensors().size());

    size_t sections = 1;  // provenance.json
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      const std::set<std::string> kept = {"config.json", "generation_config.json", "tokenizer.json",
                                          "tokenizer_config.json"};
      if (!kept.contains(name)) continue;
      ++sections;
      REQUIRE(file->section(name));
      CHECK(*file->section(name) == slurp(entry.path().string()));
    }
    CHECK(file->section_names().size() == sections);
    REQUIRE(file->section("provenance.json"));
    CHECK(file->section("provenance.json")->find("\"dtype\":\"keep\"") != std::string_view::npos);
    CHECK(file->section("provenance.json")->find(dir.path()) == std::string_view::npos);
    const Config config = config_of(*file);
    for (const TensorInfo& info : tensor_table(config)) CHECK((info.optional || find(*file, info)));

    // An expert's tensors share an extent, and experts follow each other, all equally long.
    std::map<int, std::set<int64_t>> lengths;
    std::map<std::pair<int, int>, std::vector<std::string_view>> experts;
    std::map<std::pair<int, int>, int32_t> extent_of;
    const std::vector<TensorInfo> table = tensor_table(config);
    for (const TensorInfo& info : table) {
      const PackFile::Item* item = find(*file, info);
      if (info.expert < 0 || !item) continue;
      lengths[info.layer].insert(file->extents()[size_t(item->extent)].bytes);
      experts[{info.layer, info.expert}].push_back(item->entry.name);
      extent_of[{info.layer, info.expert}] = item->extent;
    }
    for (const auto& [layer, bytes] : lengths) CHECK(bytes.size() == 1);
    for (const auto& [expert, names] : experts) {
      CHECK(file->tensors_of_extent(extent_of[expert]) == names);
      CHECK(extent_of[expert] == extent_of[{expert.first, 0}] + expert.second);
    }

    REQUIRE(convert({folder, dir / "again.dsv3", {}, false}).ok());
    CHECK(slurp(dir / "m.dsv3") == slurp(dir / "again.dsv3"));
  }
}

TEST_CASE("convert: other types are the nearest there are, in projections and experts only") {
  for (const std::string& folder : golden_folders()) {
    CAPTURE(folder);
    const auto checkpoint = Checkpoint::open(folder);
    REQUIRE(checkpoint.ok());
    for (const DType to : {DType::F32, DType::BF16, DType::F16, DType::F8_E4M3}) {
      CAPTURE(std::string(lite::info(to).name));
      TempDir dir;
      const auto summary = convert({folder, dir / "m.dsv3", to, false});
      REQUIRE_MESSAGE(summary.ok(), summary.status().message());
      const auto file = PackFile::open(dir / "m.dsv3");
      REQUIRE(file.ok());
      for (const TensorInfo& info : tensor_table(config_of(*file))) {
        const PackFile::Item* item = find(*file, info);
        if (!item) continue;
        CAPTURE(item->entry.name);
        const Checkpoint::Tensor* source = checkpoint->find(item->entry.name);
        const Checkpoint::Tensor* scale = checkpoint->find(item->entry.name + "_scale_inv");
        const DType from = *lite::dtype_from_name(source->entry->dtype);
        CHECK(item->entry.dtype == (info.matrix ? to : from));
        const std::string data = data_of(*item), source_data = data_of(*source),
                          source_scales = scale ? data_of(*scale) : "";
        if (item->entry.dtype == from) {
          CHECK(data == source_data);
          CHECK(scales_of(*item) == source_scales);
          continue;
        }
        const std::vector<double> expected =
            values_of(from, source_data, info.shape, scale ? &source_scales : nullptr,
                      scale ? *lite::dtype_from_name(scale->entry->dtype) : DType::F32);
        const size_t cols = size_t(info.shape[1]), rows = size_t(info.shape[0]),
                     grid_cols = (cols + 127) / 128;
        size_t wrong = 0;
        if (to == DType::F8_E4M3) {
          CHECK(item->entry.scale_dtype == DType::F32);
          const std::string scale_bytes = scales_of(*item);
          const float* scales = reinterpret_cast<const float*>(scale_bytes.data());
          std::vector<double> largest(scale_bytes.size() / 4);
          REQUIRE(largest.size() == (rows + 127) / 128 * grid_cols);
          for (size_t i = 0; i < expected.size(); ++i) {
            double& m = largest[i / cols / 128 * grid_cols + i % cols / 128];
            m = std::max(m, std::fabs(expected[i]));
          }
          for (size_t i = 0; i < largest.size(); ++i)
            wrong += scales[i] != (largest[i] > 0 ? float(largest[i] / 448) : 1.0f);
          for (size_t i = 0; i < expected.size(); ++i) {
            const float s = scales[i / cols / 128 * grid_cols + i % cols / 128];
            const double got = double(lite::f32_from_f8(uint8_t(data[i]))) * double(s);
            wrong += std::fabs(got - expected[i]) >
                     std::max(std::fabs(expected[i]) / 16, double(s) / 1024) * (1 + 1e-6);
          }
        } else if (to == DType::F32) {
          for (size_t i = 0; i < expected.size(); ++i)
            wrong += reinterpret_cast<const float*>(data.data())[i] != float(expected[i]);
        } else {
          for (size_t i = 0; i < expected.size(); ++i)
            wrong += !is_nearest(to, reinterpret_cast<const uint16_t*>(data.data())[i], expected[i]);
        }
        REQUIRE(wrong == 0);
      }
    }
  }
}

TEST_CASE("convert: repeated tensors are stored once") {
  TempDir dir;
  Source source;
  source.write(dir / "src");
  REQUIRE(convert({dir / "src", dir / "a", {}, false}).ok());
  const auto a = PackFile::open(dir / "a");
  REQUIRE(a.ok());
  const std::pair<const char*, const char*> pairs[] = {{Source::kMtpEmbed, "model.embed_tokens.weight"},
                                                       {Source::kMtpHead, "lm_head.weight"}};
  for (const auto& [copy, original] : pairs) {
    REQUIRE(a->find(copy));
    REQUIRE(a->find(copy)->alias_of >= 0);
    CHECK(a->items()[size_t(a->find(copy)->alias_of)].entry.name == original);
  }

  source.tensors[Source::kMtpEmbed].bytes.back() ^= 1;
  source.tensors.erase(Source::kMtpHead);
  source.write(dir / "src2");
  Notes notes;
  const auto summary = convert({dir / "src2", dir / "b", {}, false}, notes.callbacks());
  REQUIRE(summary.ok());
  CHECK(summary->aliases == 0);
  CHECK(notes.has(std::string(Source::kMtpEmbed) + " differs from model.embed_tokens.weight"));
  const auto b = PackFile::open(dir / "b");
  CHECK(b->find(Source::kMtpHead) == nullptr);
  CHECK(b->find(Source::kMtpEmbed)->alias_of == -1);
  CHECK(data_of(*b->find(Source::kMtpEmbed)) == source.tensors[Source::kMtpEmbed].bytes);

  source.tensors[Source::kMtpEmbed] = {
      "BF16", {50, 160}, std::string(16000, '\0')};  // of another type: also its own
  source.write(dir / "src3");
  REQUIRE(convert({dir / "src3", dir / "c", {}, false}).ok());
  CHECK(PackFile::open(dir / "c")->find(Source::kMtpEmbed)->entry.dtype == DType::BF16);
}

TEST_CASE("convert: experts of one layer are equally long whatever their types") {
  TempDir dir;
  Source source;
  const auto name = [](int expert) {
    return lite::str("model.layers.1.mlp.experts.", expert, ".down_proj.weight");
  };
  source.tensors[name(2)] = {"F32", {160, 40}, std::string(160 * 40 * 4, '\0')};
  source.tensors.erase(name(2) + "_scale_inv");
  source.write(dir / "src");
  REQUIRE(convert({dir / "src", dir / "m", {}, false}).ok());
  const auto file = PackFile::open(dir / "m");
  REQUIRE(file.ok());
  const int32_t first = file->find(name(0))->extent;
  for (int e = 0; e < 4; ++e) {
    CHECK(file->find(name(e))->extent == first + e);
    // gate and up with their scales, each to 64 bytes, and down in f32
    CHECK(file->extents()[size_t(first + e)].bytes ==
          lite::round_up(2 * (40 * 160 + 64) + 160 * 40 * 4, 4096));
  }
}

TEST_CASE("convert: the same tensors in other shards give the same file") {
  TempDir dir;
  const Source source;
  source.write(dir / "one");
  source.write_sharded(dir / "three");
  REQUIRE(convert({dir / "one", dir / "a", {}, false}).ok());
  const auto sharded = convert({dir / "three", dir / "b", {}, false});
  REQUIRE_MESSAGE(sharded.ok(), sharded.status().message());
  CHECK(slurp(dir / "a") == slurp(dir / "b"));
}

TEST_CASE("convert: a checkpoint without its multi-token-prediction layer") {
  TempDir dir;
  Source source;
  std::erase_if(source.tensors, [](const auto& t) { return t.first.starts_with("model.layers.2."); });
  source.write(dir / "src");
  Notes notes;
  const auto summary = convert({dir / "src", dir / "m", {}, false}, notes.callbacks());
  REQUIRE_MESSAGE(summary.ok(), summary.status().message());
  CHECK(notes.has("no multi-token-prediction layer"));
  const auto file = PackFile::open(dir / "m");
  CHECK(config_of(*file).num_nextn_predict_layers == 0);
  CHECK(*file->section("config.json") == source.config.dump());  // as it was

  source = Source();
  source.tensors.erase("model.layers.2.enorm.weight");  // but a part of it missing is an error
  refused(source, Code::NotFound, {"1 of ", "are missing: model.layers.2.enorm.weight"});
}

TEST_CASE("convert: large matrices in pieces") {
  TempDir dir;
  const Source source(false, 256, 33'000);  // 8.4 million elements: several pieces, two strips
  source.write(dir / "src");
  const std::string name = "model.layers.0.mlp.down_proj.weight", up = "model.layers.0.mlp.up_proj.weight";
  REQUIRE(convert({dir / "src", dir / "keep", {}, false}).ok());
  const auto keep = PackFile::open(dir / "keep");
  CHECK(data_of(*keep->find(name)) == source.tensors.at(name).bytes);
  REQUIRE(convert({dir / "src", dir / "f8", DType::F8_E4M3, false}).ok());
  const auto f8 = PackFile::open(dir / "f8");
  for (const std::string& n : {name, up}) {
    const RawTensor& t = source.tensors.at(n);
    std::vector<uint8_t> codes(t.bytes.size() / 4);
    std::vector<float> scales(size_t(lite::ceil_div(t.shape[0], 128) * lite::ceil_div(t.shape[1], 128)));
    lite::quantize_f8(reinterpret_cast<const float*>(t.bytes.data()), t.shape[0], t.shape[1], codes.data(),
                      scales.data());
    CHECK(std::memcmp(f8->find(n)->tensor.data, codes.data(), codes.size()) == 0);
    CHECK(std::memcmp(f8->find(n)->tensor.scale.data, scales.data(), scales.size() * 4) == 0);
  }
  // And from FP8 on, strip by strip with the scales of each.
  Source f8_source(true, 256, 33'000);
  f8_source.write(dir / "src8");
  REQUIRE(convert({dir / "src8", dir / "bf16", DType::BF16, false}).ok());
  const auto bf16 = PackFile::open(dir / "bf16");
  for (const std::string& n : {name, up}) {
    const RawTensor& t = f8_source.tensors.at(n);
    const std::vector<double> expected =
        values_of(DType::F8_E4M3, t.bytes, t.shape, &f8_source.tensors.at(n + "_scale_inv").bytes);
    const uint16_t* got = reinterpret_cast<const uint16_t*>(bf16->find(n)->tensor.data);
    size_t wrong = 0;
    for (size_t i = 0; i < expected.size(); ++i) wrong += !is_nearest(DType::BF16, got[i], expected[i]);
    CHECK(wrong == 0);
  }
}

TEST_CASE("convert: FP8 to 16 bits is rounded once") {
  // Products of code and scale that lie so near the middle of two bf16 or f16 numbers that rounding to float
  // first would move them onto it.
  TempDir dir;
  Source source;
  RawTensor& scale = source.tensors[Source::kScale];
  RawTensor& matrix = source.tensors[Source::kMatrix];
  for (const DType to : {DType::BF16, DType::F16}) {
    const double step = to == DType::BF16 ? 0x1p-7 : 0x1p-10;
    std::fill(matrix.bytes.begin(), matrix.bytes.end(), 0x3F);  // 1.875
    // scale * 1.875 is a hair above 1 + step / 2: the nearest float is 1 + step / 2 itself.
    const float s = std::nextafter(float((1 + step / 2) / 1.875), 2.0f);
    const double exact = double(s) * 1.875;
    for (size_t i = 0; i < scale.bytes.size() / 4; ++i) put(&scale.bytes, i, s);
    source.write(dir / "src");
    const std::string out = dir / (std::string("m") + lite::info(to).name);
    REQUIRE(convert({dir / "src", out, to, false}).ok());
    const auto file = PackFile::open(out);
    const uint16_t got = *file->find(Source::kMatrix)->tensor.row<uint16_t>(0);
    CHECK(is_nearest(to, got, exact));
  }
}

TEST_CASE("convert: scales of 16 bits stay as they are") {
  TempDir dir;
  Source source;
  RawTensor& scale = source.tensors[Source::kScale];
  scale = {"BF16", scale.shape, std::string("\x80\x3F\x00\x40", 4)};  // 1 and 2
  source.write(dir / "src");
  REQUIRE(convert({dir / "src", dir / "m", {}, false}).ok());
  const auto file = PackFile::open(dir / "m");
  CHECK(file->find(Source::kMatrix)->entry.scale_dtype == DType::BF16);
  CHECK(scales_of(*file->find(Source::kMatrix)) == scale.bytes);
  REQUIRE(convert({dir / "src", dir / "f32", DType::F32, false}).ok());
  const auto f32 = PackFile::open(dir / "f32");
  const lite::Tensor& t = f32->find(Source::kMatrix)->tensor;
  const uint8_t last = uint8_t(source.tensors[Source::kMatrix].bytes.back());
  CHECK(t.row<float>(t.shape[0] - 1)[t.shape[1] - 1] == lite::f32_from_f8(last) * 2);
}
