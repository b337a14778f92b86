// The converter's sources: where checkpoints lie, and the ways in which they name and pack their tensors.
#include <doctest/doctest.h>
#include <algorithm>
#include <cstring>

#include "convert/checkpoint.h"
#include "convert/hub_cache.h"
#include "tests/unit/convert_source.h"

using namespace convert_test;
namespace fs = std::filesystem;

namespace {

// The experts of every layer in two tensors, as transformers 5 writes them: gate rows, then up rows.
Source fused(Source source) {
  const Config config = *Config::parse(source.config);
  for (const TensorInfo& info : tensor_table(config)) {
    if (!info.fused) continue;
    for (const char* suffix : {"", "_scale_inv"}) {
      const auto part = source.tensors.find(info.name + suffix);
      if (part == source.tensors.end()) continue;
      RawTensor& whole = source.tensors[info.fused_name() + suffix];
      whole.dtype = part->second.dtype;
      whole.bytes += part->second.bytes;  // the table's order is expert, gate, up, down
      whole.shape = info.fused_shape();
      if (*suffix)
        for (size_t d = 1; d < 3; ++d) whole.shape[d] = lite::ceil_div(whole.shape[d], 128);
      source.tensors.erase(part);
    }
  }
  return source;
}

Source of_case(const std::string& name) {
  const std::string path = DSV3_SOURCE_DIR "/tests/golden/cases/" + name + "/config.json";
  return Source(*Json::parse(slurp(path), "config.json"));
}

}  // namespace

TEST_CASE("source: a folder, a cached repository, a name in the cache") {
  TempDir dir;
  const std::string a(40, 'a'), b(40, 'b'), hub = dir / "hub", repository = hub + "/models--org--name";
  for (const std::string& commit : {a, b}) fs::create_directories(repository + "/snapshots/" + commit);
  fs::create_directories(repository + "/refs/refs/pr");
  spill(repository + "/refs/main", a);
  spill(repository + "/refs/refs/pr/1", b + "\n");
  spill(repository + "/refs/bad", "../../..");
  fs::create_directory(dir / "plain");

  CHECK(*find_checkpoint(dir / "plain", hub) == dir / "plain");
  CHECK(*find_checkpoint(dir / "plain/", "") == dir / "plain");
  CHECK(*find_checkpoint(repository, "") == repository + "/snapshots/" + a);
  CHECK(*find_checkpoint(repository + "/", "") == repository + "/snapshots/" + a);
  CHECK(*find_checkpoint(repository + "/snapshots/" + b, "") == repository + "/snapshots/" + b);
  CHECK(*find_checkpoint("org/name", hub) == repository + "/snapshots/" + a);
  CHECK(*find_checkpoint("org/name@main", hub) == repository + "/snapshots/" + a);
  CHECK(*find_checkpoint("org/name@" + b, hub) == repository + "/snapshots/" + b);
  CHECK(*find_checkpoint("org/name@refs/pr/1", hub) == repository + "/snapshots/" + b);

  says(find_checkpoint("org/other", hub).status(), Code::NotFound,
       {"org/other", "not in the Hugging Face cache " + hub, "hf download org/other"});
  says(find_checkpoint("org/name@v9", hub).status(), Code::NotFound, {"no revision v9", a + ", " + b});
  says(find_checkpoint("org/name@" + std::string(40, 'c'), hub).status(), Code::NotFound,
       {"no snapshot of ccc"});
  says(find_checkpoint("org/name@bad", hub).status(), Code::Corrupt, {"refs/bad does not hold a commit"});
  for (const char* revision : {"../main", "/etc/passwd", "", "a/../main", "x\n"})
    says(find_checkpoint(std::string("org/name@") + revision, hub).status(), Code::InvalidArgument,
         {"expected a branch, tag or commit"});
  says(find_checkpoint("org/name", "").status(), Code::NotFound, {"no Hugging Face cache"});
  for (const char* name : {"name", "a/b/c", "/no/where", "../x", "org/", "/name"})
    says(find_checkpoint(name, hub).status(), Code::NotFound, {"there is no such folder"});
}

TEST_CASE("convert: from the cache, by name") {
  TempDir dir;
  const std::string commit(40, 'd'), repository = dir / "hub/models--org--name";
  fs::create_directories(repository + "/refs");
  fs::create_directories(repository + "/snapshots");
  spill(repository + "/refs/main", commit);
  Source().write(repository + "/snapshots/" + commit);
  Source().write(dir / "src");
  ConvertOptions options{"org/name", dir / "m", {}, false};
  options.hub_cache = dir / "hub";
  const auto summary = convert(options);
  REQUIRE_MESSAGE(summary.ok(), summary.status().message());
  REQUIRE(convert({dir / "src", dir / "n", {}, false}).ok());
  CHECK(slurp(dir / "m") == slurp(dir / "n"));
  // A link to a blob that is not there: the download was cut short.
  fs::remove(repository + "/snapshots/" + commit + "/model.safetensors");
  fs::create_symlink("../../blobs/0", repository + "/snapshots/" + commit + "/model.safetensors");
  options.out = dir / "o";
  says(convert(options).status(), Code::NotFound,
       {"model.safetensors: it is a link to ", ", and nothing is there"});
}

// A copy of a packed file whose provenance names one tensor of all experts many times.
static std::string named_again(const PackFile& file, const std::string& path) {
  const Json provenance = *Json::parse(std::string(*file.section("provenance.json")), "provenance.json");
  const std::string first = *provenance.find("fused")->array()->at(0).string();
  Json again{Json::Object()};
  again.set("dtype", "keep");
  again.set("fused", Json::Array(20'000, first));
  std::vector<lite::PackExtent> extents;
  std::vector<const PackFile::Item*> items;
  for (const PackFile::Item& item : file.items()) {
    if (item.alias_of >= 0) continue;
    extents.push_back({{item.entry}});
    items.push_back(&item);
  }
  auto writer = lite::PackWriter::create(path, file.json(), {{"provenance.json", again.dump()}}, extents, {});
  REQUIRE_MESSAGE(writer.ok(), writer.status().message());
  for (const PackFile::Item* item : items) {
    const lite::PackEntry& e = item->entry;
    REQUIRE(writer->write({item->tensor.data, size_t(e.data_bytes())}).ok());
    if (e.scaled) REQUIRE(writer->write({item->tensor.scale.data, size_t(e.scale_bytes())}).ok());
  }
  REQUIRE(writer->finish().ok());
  return path;
}

TEST_CASE("convert: a configuration that asks for far more than the checkpoint has") {
  Source source = of_case("qwen3-moe");
  source.config.set("num_hidden_layers", 1000);
  source.config.set("num_experts", 131);
  refused(source, Code::NotFound, {"tensors, but its config.json asks for at least 262738; "});
  // Experts in one tensor count as what they hold, if it holds as many.
  source = fused(of_case("qwen3-moe"));
  source.config.set("num_hidden_layers", 1000);
  source.config.set("num_experts", 131);
  refused(source, Code::NotFound, {"tensors, but its config.json asks for at least 262738; "});
  for (int i = 0; i < 1000; ++i)
    source.tensors[lite::str("model.layers.", i, ".mlp.experts.down_proj")] = {
        "F32", {131}, std::string(524, '\0')};
  refused(source, Code::NotFound, {" tensors are missing: "});
}

TEST_CASE("convert: experts in one tensor are the same experts") {
  const Source deepseek_f8 = [] {
    Json config =
        *Json::parse(slurp(DSV3_SOURCE_DIR "/tests/golden/cases/ds3-mtp/config.json"), "config.json");
    Source source;
    source.config.set("moe_intermediate_size", 128);
    source.tensors.clear();
    source.fill(true);
    return source;
  }();
  const std::pair<const char*, Source> sources[] = {{"deepseek fp8", deepseek_f8},
                                                    {"deepseek", Source(false)},
                                                    {"qwen3", of_case("qwen3-moe")},
                                                    {"mixtral", of_case("mixtral")}};
  for (const auto& pair : sources) {
    CAPTURE(std::string(pair.first));
    for (const std::optional<DType> dtype : {std::optional<DType>(), std::optional(DType::BF16)}) {
      TempDir dir;
      pair.second.write(dir / "plain");
      const Source together = fused(pair.second);
      REQUIRE(together.tensors.size() < pair.second.tensors.size());
      together.write(dir / "fused");
      REQUIRE(convert({dir / "plain", dir / "a", dtype, false}).ok());
      const auto summary = convert({dir / "fused", dir / "b", dtype, false});
      REQUIRE_MESSAGE(summary.ok(), summary.status().message());
      const auto a = PackFile::open(dir / "a"), b = PackFile::open(dir / "b");
      CHECK(a->model_id() == b->model_id());
      CHECK(a->section("provenance.json")->find("fused") == std::string_view::npos);
      CHECK(b->section("provenance.json")->find(".mlp.experts.gate_up_proj\"") != std::string_view::npos);
      CHECK(check(dir / "fused", "", dir / "b", 0).ok());
      if (dtype) continue;
      const auto exported = export_checkpoint(dir / "b", dir / "back", 1 << 30);
      REQUIRE_MESSAGE(exported.ok(), exported.status().message());
      const auto back = Checkpoint::open(dir / "back"), source = Checkpoint::open(dir / "fused");
      CHECK(back->tensors().size() == source->tensors().size());
      says(export_checkpoint(named_again(*b, dir / "again"), dir / "x", 1 << 30).status(), Code::Corrupt,
           {"names the tensor \"model.layers.", "\" twice"});
      for (const auto& [name, t] : together.tensors) {
        const Checkpoint::Tensor* got = back->find(name);
        REQUIRE(got);
        CHECK(got->entry->dtype == t.dtype);
        CHECK(got->entry->shape == t.shape);
        std::string bytes(t.bytes.size(), '\0');
        REQUIRE(got->file().read(*got->entry, 0, std::as_writable_bytes(std::span(bytes))).ok());
        CHECK(bytes == t.bytes);
      }
    }
  }
}

TEST_CASE("convert: experts in one tensor that do not fit") {
  Source source = fused(Source(false));
  const std::string name = "model.layers.1.mlp.experts.gate_up_proj",
                    down = "model.layers.1.mlp.experts.down_proj";
  Source bad = source;
  bad.tensors[name].shape = {4, 160, 80};  // transposed
  refused(bad, Code::Corrupt, {name + ": got [4, 160, 80], expected [4, 80, 160]"});
  bad = source;
  bad.tensors.erase(down);
  refused(bad, Code::NotFound, {"are missing: model.layers.1.mlp.experts.0.down_proj.weight"});
  bad = source;
  bad.tensors["model.layers.1.mlp.experts.2.up_proj.weight"] = {"F32", {40, 160}, std::string(25600, '\0')};
  refused(bad, Code::Corrupt, {"under two names: model.layers.1.mlp.experts.2.up_proj.weight and " + name});
  bad = source;
  put(&bad.tensors[name].bytes, 3 * 80 * 160 + 45 * 160 + 7, std::numeric_limits<float>::infinity());
  refused(bad, Code::Corrupt, {"\"" + name + "\"", "(expert 3, row 45, column 7) is NaN or infinite"});
  bad = fused(Source(true));  // gate and up have 40 rows each
  for (const char* layer : {"1", "2"})
    bad.tensors[lite::str("model.layers.", layer, ".mlp.experts.gate_up_proj_scale_inv")].bytes.resize(4 * 1 *
                                                                                                       2 * 4);
  refused(bad, Code::Unsupported, {"in one scale block of 128 rows", name});
}

TEST_CASE("convert: FP8 wherever there is a matrix, with scales of any float type") {
  TempDir dir;
  Source source;
  const std::vector<std::string> names = {"model.embed_tokens.weight", "lm_head.weight",
                                          "model.layers.1.mlp.gate.weight", "model.layers.2.eh_proj.weight"};
  const std::pair<const char*, std::string> types[] = {{"F32", std::string("\0\0\x80\x3F", 4)},
                                                       {"BF16", std::string("\x80\x3F", 2)},
                                                       {"F16", std::string("\0\x3C", 2)}};
  for (size_t i = 0; i < names.size(); ++i) {
    RawTensor& t = source.tensors[names[i]];
    t.dtype = "F8_E4M3";
    t.bytes.assign(size_t(t.shape[0] * t.shape[1]), char(0x30 + i));
    const std::vector<int64_t> grid = {lite::ceil_div(t.shape[0], 128), lite::ceil_div(t.shape[1], 128)};
    const auto& type = types[i % 3];
    std::string scales;
    for (int64_t n = grid[0] * grid[1]; n > 0; --n) scales += type.second;
    source.tensors[names[i] + "_scale_inv"] = {type.first, grid, scales};
  }
  source.tensors[Source::kMtpEmbed] = source.tensors[names[0]];  // also as another name of the same
  source.tensors[std::string(Source::kMtpEmbed) + "_scale_inv"] = source.tensors[names[0] + "_scale_inv"];
  source.tensors.erase(Source::kMtpHead);
  source.write(dir / "src");
  const auto summary = convert({dir / "src", dir / "m", {}, false});
  REQUIRE_MESSAGE(summary.ok(), summary.status().message());
  const auto file = PackFile::open(dir / "m");
  for (size_t i = 0; i < names.size(); ++i) {
    const PackFile::Item* item = file->find(names[i]);
    REQUIRE(item);
    CHECK(item->entry.dtype == DType::F8_E4M3);
    CHECK(lite::info(item->entry.scale_dtype).name == std::string(types[i % 3].first));
    CHECK(std::memcmp(item->tensor.data, source.tensors[names[i]].bytes.data(),
                      source.tensors[names[i]].bytes.size()) == 0);
  }
  CHECK(file->find(Source::kMtpEmbed)->alias_of >= 0);
}
