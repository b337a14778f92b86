// A packed file against its checkpoint, and back to one.
#include <doctest/doctest.h>
#include <algorithm>
#include <cstring>

#include "convert/checkpoint.h"
#include "tests/unit/convert_source.h"

using namespace convert_test;
namespace fs = std::filesystem;

namespace {

std::string bytes_of(const Checkpoint::Tensor& t) {
  std::string out(size_t(t.entry->bytes), '\0');
  REQUIRE(t.file().read(*t.entry, 0, std::as_writable_bytes(std::span(out))).ok());
  return out;
}

// Every tensor of `source` but `dropped` ones is in `folder`, as it was, and nothing else.
void same_checkpoint(const std::string& source, const std::string& folder, size_t dropped = 0) {
  const auto a = Checkpoint::open(source), b = Checkpoint::open(folder);
  REQUIRE_MESSAGE(b.ok(), b.status().message());
  CHECK(b->tensors().size() + dropped == a->tensors().size());
  for (const auto& [name, t] : b->tensors()) {
    const Checkpoint::Tensor* original = a->find(name);
    REQUIRE(original);
    CHECK(original->entry->dtype == t.entry->dtype);
    CHECK(original->entry->shape == t.entry->shape);
    CHECK(bytes_of(*original) == bytes_of(t));
  }
}

}  // namespace

TEST_CASE("export: nothing is made of a damaged file, nor a file of an unknown section") {
  TempDir dir;
  Source().write(dir / "src");
  REQUIRE(convert({dir / "src", dir / "m", {}, false}).ok());
  fs::create_symlink(dir / "nothing", dir / "link");
  says(export_checkpoint(dir / "m", dir / "link", 1 << 30).status(), Code::InvalidArgument, {"link exists"});
  const auto file = PackFile::open(dir / "m");
  const auto* item = file->find(Source::kMatrix);
  REQUIRE(item);
  std::string bytes = slurp(dir / "m");
  bytes[size_t(file->extents()[size_t(item->extent)].offset) + 5] ^= 1;
  spill(dir / "bad", bytes);
  says(export_checkpoint(dir / "bad", dir / "x", 1 << 30).status(), Code::Corrupt,
       {"export", Source::kMatrix, "damaged"});
  lite::PackEntry entry;
  entry.name = "w";
  entry.shape = {1};
  auto writer = lite::PackWriter::create(dir / "evil", Json(Json::Object()), {{"evil.py", "import os"}},
                                         {{{entry}}}, {});
  REQUIRE(writer.ok());
  REQUIRE(writer->write(std::vector<std::byte>(4)).ok());
  REQUIRE(writer->finish().ok());
  says(export_checkpoint(dir / "evil", dir / "x", 1 << 30).status(), Code::Unsupported, {"\"evil.py\""});
  for (const char* provenance : {"[]", "1", R"({"dtype": 1})", R"({"fused": {}})", "\xEF\xBB\xBF{}", ""}) {
    CAPTURE(provenance);
    auto strange = lite::PackWriter::create(dir / "strange", Json(Json::Object()),
                                            {{"provenance.json", provenance}}, {{{entry}}}, {});
    REQUIRE(strange->write(std::vector<std::byte>(4)).ok());
    REQUIRE(strange->finish().ok());
    says(export_checkpoint(dir / "strange", dir / "x", 1 << 30).status(), Code::Corrupt, {"provenance.json"});
  }
  CHECK(!fs::exists(dir / "x"));
  CHECK(!fs::exists(dir / "x.partial"));
}

TEST_CASE("export: every golden checkpoint comes back") {
  for (const auto& entry : fs::directory_iterator(DSV3_SOURCE_DIR "/tests/golden/cases")) {
    const std::string folder = entry.path().string();
    if (!Checkpoint::open(folder).ok()) continue;
    CAPTURE(folder);
    TempDir dir;
    REQUIRE(convert({folder, dir / "m", {}, false}).ok());
    CHECK(check(folder, "", dir / "m", 2).ok());
    for (const int64_t shard : {int64_t(1) << 40, int64_t(100'000)}) {
      const std::string out = dir / std::to_string(shard);
      const auto summary = export_checkpoint(dir / "m", out + "/", shard);
      REQUIRE_MESSAGE(summary.ok(), summary.status().message());
      CHECK(summary->dropped.empty());
      CHECK((summary->shards > 1) == (shard == 100'000));
      CHECK(fs::exists(out + "/model.safetensors") == (summary->shards == 1));
      same_checkpoint(folder, out);
      for (const char* name :
           {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
        if (fs::exists(folder + "/" + name)) CHECK(slurp(folder + "/" + name) == slurp(out + "/" + name));
      CHECK(!fs::exists(out + "/provenance.json"));
      // And again the same packed file.
      REQUIRE(convert({out, dir / ("again" + std::to_string(shard)), {}, false}).ok());
      CHECK(slurp(dir / ("again" + std::to_string(shard))) == slurp(dir / "m"));
    }
  }
}

TEST_CASE("export: aliases, dropped tensors, and what cannot come back") {
  TempDir dir;
  Source source;
  source.tensors["extra.b"] = {"I8", {2}, "xy"};
  source.tensors["extra.a"] = {"F32", {1}, std::string(4, '\0')};
  source.files = {{"additional_chat_templates/a.jinja", "a\r\n"}, {"additional_chat_templates/b.jinja", ""}};
  source.write(dir / "src");
  REQUIRE(convert({dir / "src", dir / "m", {}, false}).ok());
  const auto summary = export_checkpoint(dir / "m", dir / "back", 1 << 30);
  REQUIRE_MESSAGE(summary.ok(), summary.status().message());
  CHECK(summary->dropped == std::vector<std::string>{"extra.a", "extra.b"});
  same_checkpoint(dir / "src", dir / "back", 2);  // with the copies that are stored once
  for (const auto& [path, text] : source.files) CHECK(slurp(dir / ("back/" + path)) == text);

  says(export_checkpoint(dir / "m", dir / "back", 1 << 30).status(), Code::InvalidArgument,
       {"back exists", "a new folder"});
  fs::create_directory(dir / "other.partial");
  says(export_checkpoint(dir / "m", dir / "other", 1 << 30).status(), Code::InvalidArgument,
       {"other.partial", "remove it"});
  says(export_checkpoint(dir / "none", dir / "other", 1 << 30).status(), Code::NotFound, {"none"});
  says(export_checkpoint(dir / "m", dir / "no/where", 1 << 30).status(), Code::Io, {"no/where.partial"});
  REQUIRE(convert({dir / "src", dir / "bf16", DType::BF16, false}).ok());
  says(export_checkpoint(dir / "bf16", dir / "x", 1 << 30).status(), Code::Unsupported,
       {"made with --dtype BF16", "without --dtype"});
  ConvertCallbacks callbacks;
  callbacks.progress = [](int64_t done, int64_t) { return done < 50'000; };
  says(export_checkpoint(dir / "m", dir / "x", 1 << 30, callbacks).status(), Code::Cancelled, {"export"});
  CHECK(!fs::exists(dir / "x"));
  CHECK(!fs::exists(dir / "x.partial"));
}

TEST_CASE("export: a provenance that lies leads nowhere") {
  TempDir dir;
  lite::PackEntry e;
  e.name = "model.norm.weight";
  e.shape = {3};
  std::vector<std::byte> data(12);
  const auto with = [&](const std::string& provenance, const Json& json) {
    fs::remove(dir / "m");
    auto writer =
        lite::PackWriter::create(dir / "m", json, {{"provenance.json", provenance}}, {{{e}, 0}}, {});
    REQUIRE(writer.ok());
    REQUIRE(writer->write(data).ok());
    REQUIRE(writer->finish().ok());
    return export_checkpoint(dir / "m", dir / "x", 1 << 30).status();
  };
  const Json empty{Json::Object()};
  Json model{Json::Object()};
  model.set("config", Source().config);
  says(with("{", empty), Code::Corrupt, {"provenance.json"});
  says(with(R"({"dtype": 3})", empty), Code::Corrupt, {"dtype is not what it should be"});
  says(with(R"({"dtype": "X"})", empty), Code::Corrupt, {"dtype is not what it should be"});
  says(with(R"({"dropped": [3]})", empty), Code::Corrupt, {"dropped is not"});
  says(with(R"({"fused": ["a"]})", empty), Code::Corrupt, {"no \"config\""});
  says(with(R"({"fused": ["a"]})", model), Code::Corrupt,
       {"it holds 1 tensors, but its configuration asks for at least "});
  says(with(R"({"fused": ["model.layers.1.mlp.experts.down_proj"]})", model), Code::Corrupt,
       {"it holds 1 tensors, but its configuration asks for at least "});
  says(with("{}", empty), Code::Corrupt, {"no \"config\""});
  Json nonsense{Json::Object()};
  nonsense.set("config", 3);
  CHECK(!with("{}", nonsense).ok());
  says(with("{}", model), Code::Corrupt, {"it holds 1 tensors, but its configuration asks for at least "});
}

TEST_CASE("check: what differs is named") {
  TempDir dir;
  const Source source;
  source.write_sharded(dir / "src");
  const auto differs = [&](const Source& other, std::initializer_list<std::string> parts,
                           std::optional<DType> dtype = {}) {
    fs::remove(dir / "m");
    REQUIRE(convert({dir / "src", dir / "m", dtype, false}).ok());
    CHECK(check(dir / "src", "", dir / "m", 0).ok());
    fs::remove_all(dir / "other");
    other.write(dir / "other");
    const Status status = check(dir / "other", "", dir / "m", 0);
    CHECK(!status.ok());
    CHECK_MESSAGE(status.message().starts_with("check "), status.message());
    for (const std::string& part : parts)
      CHECK_MESSAGE(status.message().find(part) != std::string::npos, status.message());
  };
  Source other = source;
  other.tensors[Source::kMatrix].bytes[77] ^= 1;
  differs(other, {std::string("\"") + Source::kMatrix + "\": element 77 differs (byte 77: got "});
  other = source;
  other.tensors[Source::kScale].bytes[5] ^= 1;
  differs(other, {std::string("\"") + Source::kMatrix + "\": scale 1 differs"});
  other = source;
  other.tensors[Source::kMtpEmbed].bytes.back() ^= 1;  // an alias is compared, too
  differs(other, {Source::kMtpEmbed, "element 7999 differs"});
  other = source;
  other.tensors[Source::kMatrix] = {"F32", other.tensors[Source::kMatrix].shape,
                                    std::string(other.tensors[Source::kMatrix].bytes.size() * 4, '\0')};
  other.tensors.erase(Source::kScale);
  differs(other, {Source::kMatrix, "another type"});
  other = source;
  other.tensors.erase(Source::kMtpHead);
  differs(other, {"the packed file has "});
  other = source;
  other.config.set("routed_scaling_factor", 3.0);
  differs(other, {"the configurations differ"});
  other = source;
  other.config.set("torch_dtype", "x");
  differs(other, {"config.json differs"});
  other = source;
  other.files["chat_template.jinja"] = "x";
  differs(other, {"chat_template.jinja is missing in the packed file"});
  other = source;
  other.files["additional_chat_templates/x.jinja"] = "x";
  differs(other, {"additional_chat_templates:x.jinja is missing in the packed file"});
  // Re-encoded weights are re-encoded again.
  other = source;
  other.tensors[Source::kMatrix].bytes[77] ^= 1;
  differs(other, {std::string("\"") + Source::kMatrix + "\": element 77 differs"}, DType::BF16);
}
