// The packed file: what is written is read back, byte by byte as docs/format.md says, and appears only when
// complete.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <xxhash.h>
#include <algorithm>
#include <csignal>
#include <cstring>
#include <functional>
#include <random>

#include "tests/unit/pack_sample.h"
#include "tests/unit/temp_dir.h"

using namespace pack_test;

namespace {

int64_t align(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

}  // namespace

TEST_CASE("pack: random files come back as they were") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const auto pick = [&](int64_t low, int64_t high) {
      return low + int64_t(random() % uint64_t(high - low + 1));
    };
    TempDir dir;
    Content c;
    c.json.set("number", Json(pick(-100, 100)));
    for (int64_t i = pick(0, 4); i > 0; --i)
      c.sections.push_back({"s" + std::to_string(i), std::string(size_t(pick(0, 200)), char(random()))});
    std::vector<std::string> names;
    for (int64_t i = pick(0, 12); i > 0; --i) {
      std::vector<PackEntry> tensors;
      for (int64_t j = pick(1, 3); j > 0; --j) {
        const std::string name =
            std::to_string(random()) + (random() % 4 ? "" : "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
        std::vector<int64_t> shape;
        for (int64_t d = pick(1, 4); d > 0; --d) shape.push_back(pick(1, 9));
        PackEntry e = entry(name, DType(random() % kDTypes), shape);
        if (random() % 2) {
          constexpr DType scale_types[] = {DType::F32, DType::BF16, DType::F16};
          e = scaled(name, {pick(1, 300), pick(1, 300)}, scale_types[random() % 3], pick(1, 200));
          e.block_cols = pick(1, 400);
        }
        names.push_back(name);
        tensors.push_back(e);
      }
      const int64_t stride = random() % 2 ? 0 : pack::kPage * 200;
      c.add(std::move(tensors), random, stride);
    }
    for (int64_t i = names.empty() ? 0 : pick(0, 3); i > 0; --i)
      c.aliases.push_back({"alias" + std::to_string(i), names[random() % names.size()]});

    const std::string path = dir / "m";
    const Status written = c.write(path);
    REQUIRE_MESSAGE(written.ok(), written.message());
    CHECK(dir.names() == std::vector<std::string>{"m"});
    auto file = PackFile::open(path);
    REQUIRE_MESSAGE(file.ok(), file.status().message());
    CHECK(file->json().dump() == c.json.dump());
    CHECK(file->file_bytes() == int64_t(std::filesystem::file_size(path)));
    CHECK(file->verify().ok());
    CHECK(file->section_names().size() == c.sections.size());
    for (const PackSection& s : c.sections) {
      REQUIRE(file->section(s.name));
      CHECK(*file->section(s.name) == s.bytes);
    }
    CHECK(file->section("none") == nullptr);
    CHECK(file->find("none") == nullptr);
    REQUIRE(file->items().size() == names.size() + c.aliases.size());
    CHECK(std::is_sorted(file->items().begin(), file->items().end(),
                         [](const auto& a, const auto& b) { return a.entry.name < b.entry.name; }));
    for (const auto& near : file->items()) {
      for (const auto& item : file->items()) CHECK(file->find(item.entry.name, &near) == &item);
      for (const char* none : {"", "a", "none", "\u00ff"}) CHECK(file->find(none, &near) == nullptr);
    }
    for (size_t i = 0; i < c.extents.size(); ++i) {
      std::vector<std::string_view> expected;
      for (const PackEntry& e : c.extents[i].tensors) {
        expected.push_back(e.name);
        const PackFile::Item* item = file->find(e.name);
        REQUIRE(item);
        CHECK(item->extent == int32_t(i));
        CHECK(item->alias_of == -1);
        CHECK(item->entry.shape == e.shape);
        CHECK(item->entry.dtype == e.dtype);
        CHECK(item->entry.scaled == e.scaled);
        const auto& [data, scales] = c.bytes[e.name];
        CHECK(item->tensor.elements() * size_of(e.dtype) == int64_t(data.size()));
        CHECK(item->tensor.contiguous());
        CHECK(std::memcmp(item->tensor.data, data.data(), data.size()) == 0);
        REQUIRE((item->tensor.scale.data != nullptr) == e.scaled);
        if (!e.scaled) continue;
        CHECK(std::memcmp(item->tensor.scale.data, scales.data(), scales.size()) == 0);
        CHECK(item->tensor.scale.block_rows == e.block_rows);
        CHECK(item->tensor.scale.block_cols == e.block_cols);
        CHECK(item->tensor.scale.row_stride * ceil_div(e.shape[0], e.block_rows) == int64_t(scales.size()));
      }
      CHECK(file->tensors_of_extent(int32_t(i)) == expected);
      CHECK(file->extents()[i].bytes == *extent_bytes(c.extents[i]));
    }
    for (const PackAlias& a : c.aliases) {
      const PackFile::Item* item = file->find(a.name);
      REQUIRE(item);
      REQUIRE(item->alias_of >= 0);
      CHECK(file->items()[size_t(item->alias_of)].entry.name == a.target);
      CHECK(item->tensor.data == file->find(a.target)->tensor.data);
    }
    PackFile moved = std::move(*file);
    CHECK(moved.path() == path);
  }
}

// Read by offsets written out from docs/format.md, so that the format cannot change unnoticed.
TEST_CASE("pack: the bytes are those of docs/format.md") {
  TempDir dir;
  const Content c = sample();
  REQUIRE(c.write(dir / "m").ok());
  const std::string f = slurp(dir / "m");
  const auto number = [&](size_t at, size_t n) {
    uint64_t v = 0;
    for (size_t i = n; i-- > 0;) v = v << 8 | uint8_t(f.at(at + i));
    return v;
  };
  const auto u32 = [&](size_t at) { return number(at, 4); };
  const auto u64 = [&](size_t at) { return number(at, 8); };

  CHECK(f.substr(0, 8) == "DSV3PACK");
  CHECK(u32(8) == 1);
  CHECK(u32(12) == 256);
  CHECK(u64(16) == f.size());
  const size_t data = u64(24);
  CHECK(data == 4096);
  std::string index = f.substr(0, data);
  std::fill_n(index.begin() + 32, 8, '\0');
  CHECK(u64(32) == XXH3_64bits(index.data(), index.size()));
  CHECK(u32(56) == 0);
  CHECK(u32(60) == 1);
  const std::string json = "{\"config\":\"x\"}";
  const std::string tensor_names = "layers.0.wlayers.1.e.gatelayers.1.e.upnormz.copy";
  const std::string names = tensor_names + "config.jsonemptytokenizer.json";
  const size_t sizes[] = {json.size(), names.size(), 5 * 96, 3 * 32, 3 * 32, 64 + 100};
  size_t at = 256;
  for (size_t i = 0; i < 6; ++i) {
    CHECK(u64(64 + 16 * i) == at);
    CHECK(u64(72 + 16 * i) == sizes[i]);
    at = size_t(align(int64_t(at + sizes[i]), 64));
  }
  CHECK(f.substr(u64(64), json.size()) == json);
  CHECK(f.substr(u64(80), names.size()) == names);
  const size_t tensors = u64(96), extents = u64(112), sections = u64(128), section_data = u64(144);

  // "layers.0.w": F8_E4M3 [200, 130] with F32 scales [2, 2], alone in extent 0.
  CHECK(u64(tensors) == 0);
  CHECK(u32(tensors + 8) == 10);
  CHECK(number(tensors + 12, 1) == 3);
  CHECK(number(tensors + 13, 1) == 2);
  CHECK(number(tensors + 14, 1) == 1);
  CHECK(number(tensors + 15, 1) == 0);
  const uint64_t shape[] = {200, 130, 1, 1};
  for (size_t d = 0; d < 4; ++d) CHECK(u64(tensors + 16 + 8 * d) == shape[d]);
  CHECK(u32(tensors + 48) == 128);
  CHECK(u32(tensors + 52) == 128);
  CHECK(u32(tensors + 56) == 0);
  CHECK(u32(tensors + 60) == 0xFFFFFFFF);
  CHECK(u64(tensors + 64) == 0);
  CHECK(u64(tensors + 72) == 26000);
  CHECK(u64(tensors + 80) == 26048);
  CHECK(u64(tensors + 88) == 16);
  // "layers.1.e.up" follows gate and its scales in extent 2.
  const size_t up = tensors + 2 * 96;
  CHECK(u32(up + 56) == 2);
  CHECK(u64(up + 64) == 8320 + 64);
  CHECK(u64(up + 80) == 8320 + 64 + 8320);
  CHECK(u64(up + 88) == 8);
  // "z.copy" is an alias of "norm".
  CHECK(u32(tensors + 4 * 96 + 60) == 3);
  CHECK(f.substr(tensors + 4 * 96 + 12, 48) == f.substr(tensors + 3 * 96 + 12, 48));

  const uint64_t lengths[] = {28672, 4096, 32768};
  uint64_t offset = data;
  XXH3_state_t* id = XXH3_createState();
  XXH3_128bits_reset(id);
  XXH3_128bits_update(id, json.data(), json.size());
  XXH3_128bits_update(id, f.data() + tensors, 5 * 96);
  XXH3_128bits_update(id, tensor_names.data(), tensor_names.size());
  for (size_t i = 0; i < 3; ++i) {
    const size_t r = extents + 32 * i;
    CHECK(u64(r) == 0);
    CHECK(u64(r + 8) == offset);
    CHECK(u64(r + 16) == lengths[i]);
    CHECK(u64(r + 24) == XXH3_64bits(f.data() + offset, lengths[i]));
    XXH3_128bits_update(id, f.data() + r + 16, 16);
    offset += lengths[i];
  }
  CHECK(offset == f.size());
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(id));
  XXH3_freeState(id);
  CHECK(std::memcmp(canonical.digest, f.data() + 40, 16) == 0);

  CHECK(u64(sections) == tensor_names.size());
  CHECK(u32(sections + 8) == 11);
  CHECK(u32(sections + 12) == 0);
  CHECK(u64(sections + 16) == section_data);
  CHECK(u64(sections + 24) == 2);
  CHECK(u64(sections + 32 + 24) == 0);
  CHECK(u64(sections + 64 + 16) == section_data + 64);
  CHECK(f.substr(section_data + 64, 100) == std::string(100, 't'));
  CHECK(f.substr(data + 26000, 48) == std::string(48, '\0'));  // padding before scales
}

TEST_CASE("pack: the model id leaves sections out") {
  TempDir dir;
  Content c = sample();
  REQUIRE(c.write(dir / "a").ok());
  c.sections.push_back({"provenance.json", std::string(9000, ' ')});  // moves the data, too
  REQUIRE(c.write(dir / "b").ok());
  c.json.set("config", Json("y"));
  REQUIRE(c.write(dir / "c").ok());
  const std::string a = PackFile::open(dir / "a")->model_id(), b = PackFile::open(dir / "b")->model_id(),
                    other = PackFile::open(dir / "c")->model_id();
  CHECK(a.size() == 32);
  CHECK(a == b);
  CHECK(a != other);
  c = sample();
  c.bytes["norm"].first[0] ^= std::byte{1};
  REQUIRE(c.write(dir / "d").ok());
  CHECK(PackFile::open(dir / "d")->model_id() != a);
}

TEST_CASE("pack: what is not a packed file is said to be none") {
  TempDir dir;
  CHECK(PackFile::open(dir / "none").status().code() == Code::NotFound);
  CHECK(PackFile::open(dir.path()).status().code() == Code::InvalidArgument);
  spill(dir / "pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
  CHECK(PackFile::open(dir / "pointer").status().message().find("git lfs pull") != std::string::npos);
  spill(dir / "other", std::string(5000, 'G'));
  CHECK(PackFile::open(dir / "other").status().message().find("not a packed file") != std::string::npos);
  CHECK(!looks_packed(dir / "other"));
  CHECK(!looks_packed(dir / "none"));
  CHECK(!looks_packed(dir.path()));
  REQUIRE(sample().write(dir / "m").ok());
  CHECK(looks_packed(dir / "m"));
}

TEST_CASE("pack: verify reports progress and can be stopped") {
  TempDir dir;
  REQUIRE(sample().write(dir / "m").ok());
  const auto file = PackFile::open(dir / "m");
  REQUIRE(file.ok());
  int64_t last = -1, total = 0;
  CHECK(file->verify([&](int64_t done, int64_t all) {
              CHECK(done >= last);
              last = done;
              total = all;
              return true;
            })
            .ok());
  CHECK(last == total);
  CHECK(total == file->file_bytes() - 4096);
  CHECK(file->verify([](int64_t, int64_t) { return false; }).code() == Code::Cancelled);
}

TEST_CASE("pack: a writer refuses what no reader would take") {
  TempDir dir;
  const auto refused = [&](const Content& c, const std::string& message) {
    const Status s = c.write(dir / "m");
    CHECK(s.code() == Code::InvalidArgument);
    CHECK_MESSAGE(s.message().find(message) != std::string::npos, s.message());
    CHECK(dir.names().empty());
  };
  std::mt19937_64 random(7);
  const auto with = [&](const std::function<void(Content&)>& change) {
    Content c = sample();
    change(c);
    return c;
  };
  refused(with([&](Content& c) { c.add({entry("norm", DType::F32, {3})}, random); }),
          "\"norm\" is given twice");
  refused(with([&](Content& c) { c.aliases.push_back({"norm", "layers.0.w"}); }), "\"norm\" is given twice");
  refused(with([&](Content& c) { c.aliases.push_back({"a", "none"}); }), "there is no such tensor");
  refused(with([&](Content& c) { c.aliases.push_back({"a", "z.copy"}); }), "there is no such tensor");
  refused(with([&](Content& c) { c.aliases.push_back({"", "norm"}); }), "a name has 0 bytes");
  refused(with([&](Content& c) { c.add({entry("x\n", DType::F32, {3})}, random); }), "printable");
  refused(with([&](Content& c) { c.add({entry(std::string(1025, 'x'), DType::F32, {3})}, random); }),
          "1025 bytes");
  refused(with([&](Content& c) { c.extents.push_back({{entry("x", DType::F32, {})}}); }), "got 0 dimensions");
  refused(with([&](Content& c) {
            c.extents.push_back({{entry("x", DType::F32, {1, 1, 1, 1, 1})}});
          }),
          "5 dimensions");
  refused(with([&](Content& c) {
            c.extents.push_back({{entry("x", DType::F32, {2, 0})}});
          }),
          "dimension of 0");
  refused(with([&](Content& c) {
            c.extents.push_back({{entry("x", DType::F32, {1ll << 40, 1ll << 40})}});
          }),
          "too large");
  refused(with([&](Content& c) { c.extents.push_back({{scaled("x", {3})}}); }), "float matrix");
  refused(with([&](Content& c) {
            c.extents.push_back({{scaled("x", {3, 3}, DType::F8_E4M3)}});
          }),
          "F32, BF16 or F16");
  refused(with([&](Content& c) { c.extents.push_back({{scaled("x", {3, 3}, DType::F32, 0)}}); }), "0 x 0");
  refused(with([&](Content& c) { c.extents.push_back({}); }), "holds no tensor");
  refused(with([&](Content& c) { c.extents[0].stride = 4096; }), "got stride 4096");
  refused(with([&](Content& c) { c.extents[0].stride = 28673; }), "got stride 28673");
  refused(with([&](Content& c) { c.sections.push_back({"config.json", ""}); }), "given twice");
  refused(with([&](Content& c) { c.sections.push_back({"a/b", ""}); }), "not that of a file");
  refused(with([&](Content& c) { c.sections.push_back({"..", ""}); }), "not that of a file");
  refused(with([&](Content& c) { c.json = Json("x"); }), "not an object");

  // A petabyte: refused by the numbers, before anything is written.
  Content large;
  large.extents.push_back({{entry("x", DType::F32, {1ll << 48})}});
  const auto writer = PackWriter::create(dir / "m", large.json, {}, large.extents, {});
  REQUIRE(!writer.ok());
  CHECK(writer.status().code() == Code::Io);
  // 2^50 bytes of data; whether the first page counts depends on the file system, which may have it already.
  CHECK_MESSAGE(writer.status().message().find("it needs 112589990684") != std::string::npos,
                writer.status().message());
  CHECK(writer.status().message().find("available") != std::string::npos);
  CHECK(dir.names().empty());
}

TEST_CASE("pack: a file appears when it is complete and not before") {
  TempDir dir;
  const Content c = sample();
  spill(dir / "m", "old");
  {
    auto writer = PackWriter::create(dir / "m", c.json, c.sections, c.extents, c.aliases);
    REQUIRE(writer.ok());
    CHECK(std::filesystem::exists(dir / "m.partial"));
    CHECK(writer->finish().code() == Code::InvalidArgument);  // too early
    const auto& [data, scales] = c.bytes.at("layers.0.w");
    CHECK(writer->write(data).ok());
    CHECK(writer->write(scales).ok());
    CHECK(slurp(dir / "m") == "old");

    const auto second = PackWriter::create(dir / "m", c.json, c.sections, c.extents, c.aliases);
    CHECK(second.status().code() == Code::Busy);
    CHECK(second.status().message().find("another process is writing it") != std::string::npos);
    CHECK(std::filesystem::exists(dir / "m.partial"));
  }
  CHECK(dir.names() == std::vector<std::string>{"m"});
  CHECK(slurp(dir / "m") == "old");

  // Somebody else's file, or the same of a writer that was killed.
  for (const char* name : {"m.partial", "m.journal"}) {
    for (const std::string& foreign : {std::string(1 << 20, 'x'), std::string("D"), std::string("DSV3")}) {
      spill(dir / name, foreign + "\n");
      const Status refused = c.write(dir / "m");
      CHECK(refused.code() == Code::InvalidArgument);
      CHECK_MESSAGE(refused.message().find(dir / name + ": it is there and was not made by this program") !=
                        std::string::npos,
                    refused.message());
      CHECK(slurp(dir / name) == foreign + "\n");
      CHECK(dir.names().size() == 2);
    }
    spill(dir / name, "");
    REQUIRE(c.write(dir / "m").ok());
    CHECK(dir.names() == std::vector<std::string>{"m"});
  }
  spill(dir / "m.partial", "DSV3PACK" + std::string(1 << 20, 'x'));
  REQUIRE(c.write(dir / "m").ok());
  CHECK(dir.names() == std::vector<std::string>{"m"});
  const std::string bytes = slurp(dir / "m");
  REQUIRE(c.write(dir / "n").ok());
  CHECK(slurp(dir / "n") == bytes);

  // In pieces of any size it is the same file.
  auto writer = PackWriter::create(dir / "n", c.json, c.sections, c.extents, c.aliases);
  REQUIRE(writer.ok());
  Bytes all;
  for (const PackExtent& extent : c.extents)
    for (const PackEntry& e : extent.tensors) {
      const auto& [data, scales] = c.bytes.at(e.name);
      all.insert(all.end(), data.begin(), data.end());
      all.insert(all.end(), scales.begin(), scales.end());
    }
  std::mt19937_64 random(3);
  for (size_t at = 0; at < all.size();) {
    const size_t n = std::min(all.size() - at, size_t(1 + random() % 5000));
    REQUIRE(writer->write(std::span(all).subspan(at, n)).ok());
    at += n;
  }
  CHECK(writer->write(std::span(all).first(1)).code() == Code::InvalidArgument);
  REQUIRE(writer->finish().ok());
  CHECK(slurp(dir / "n") == bytes);
  CHECK(writer->finish().code() == Code::InvalidArgument);

  std::filesystem::create_directory(dir / "folder");
  CHECK(c.write(dir / "folder").code() == Code::InvalidArgument);
  CHECK(c.write(dir / "none/m").code() == Code::NotFound);
  spill(dir / "other", "precious");
  std::filesystem::create_symlink(dir / "other", dir / "m.partial");
  CHECK(!c.write(dir / "m").ok());  // never through a link
  CHECK(slurp(dir / "other") == "precious");
}

TEST_CASE("pack: a full disk is an error and leaves nothing behind") {
  TempDir dir;
  std::mt19937_64 random(5);
  Content c;
  c.add({entry("large", DType::F32, {1 << 20})}, random);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {  // a limit on the size of files fails writes as a full disk does
    const rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
    std::signal(SIGXFSZ, SIG_IGN);
    const Status s = c.write(dir / "m");
    const bool good = s.code() == Code::Io && s.message().find("m.partial") != std::string::npos &&
                      s.message().find(" of 4198400 bytes") != std::string::npos && dir.names().empty();
    _exit(good ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}
