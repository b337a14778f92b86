// A packed file is a stranger's: every field changed, every cut, random damage with its checksums made right.
#include <doctest/doctest.h>
#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <set>

#include "tests/unit/advice.h"
#include "tests/unit/pack_sample.h"
#include "tests/unit/temp_dir.h"

using namespace pack_test;

namespace {

// A file's index taken apart, to be changed and put together again with its checksums right.
struct Editor {
  explicit Editor(std::string bytes) : file(std::move(bytes)) {
    std::memcpy(&header, file.data(), sizeof header);
    load(header.tensors, tensors);
    load(header.extents, extents);
    load(header.sections, sections);
  }
  template <class Record>
  void load(const pack::Part& part, std::vector<Record>& out) {
    out.resize(part.bytes / sizeof(Record));
    std::memcpy(out.data(), file.data() + part.offset, part.bytes);
  }
  template <class Record>
  void store(size_t offset, const std::vector<Record>& from) {
    std::memcpy(file.data() + offset, from.data(), from.size() * sizeof(Record));
  }
  // Tables go where they were; only then the checksums of what stands there.
  std::string build(bool fix_id = true) {
    pack::Header old;
    std::memcpy(&old, file.data(), sizeof old);
    store(old.tensors.offset, tensors);
    store(old.extents.offset, extents);
    store(old.sections.offset, sections);
    const auto bytes = std::as_bytes(std::span(file));
    if (fix_id) {
      size_t tensor_names = 0;
      for (const auto& t : tensors) tensor_names += t.name_bytes;
      const std::string_view text = file;
      const auto id = pack::hash_model(text.substr(old.json.offset, old.json.bytes),
                                       bytes.subspan(old.tensors.offset, old.tensors.bytes),
                                       text.substr(old.names.offset, old.names.bytes).substr(0, tensor_names),
                                       bytes.subspan(old.extents.offset, old.extents.bytes));
      std::copy(id.begin(), id.end(), header.model_id);
    }
    std::memcpy(file.data(), &header, sizeof header);
    const size_t index = std::clamp<size_t>(header.data_offset, sizeof header, file.size());
    header.index_checksum = pack::index_checksum(bytes.first(index));
    std::memcpy(file.data(), &header, sizeof header);
    return file;
  }

  std::string file;
  pack::Header header;
  std::vector<pack::TensorRecord> tensors;
  std::vector<pack::ExtentRecord> extents;
  std::vector<pack::SectionRecord> sections;
};

}  // namespace

TEST_CASE("pack: every field is checked") {
  TempDir dir;
  REQUIRE(sample().write(dir / "good").ok());
  const std::string good = slurp(dir / "good");
  spill(dir / "same", Editor(good).build());
  CHECK(slurp(dir / "same") == good);  // the editor itself changes nothing

  struct Case {
    std::string what;
    std::function<void(Editor&)> change;
    const char* message;
    Code code = Code::Corrupt;
    bool fix_id = true;
  };
  const uint64_t huge = ~uint64_t(0);
  // tensors: 0 layers.0.w, 1 gate, 2 up, 3 norm, 4 z.copy
  const std::vector<Case> cases = {
      {"magic", [](Editor& e) { e.header.magic[7] = 'X'; }, "does not start with \"DSV3PACK\""},
      {"version 0", [](Editor& e) { e.header.version = 0; }, "got version 0, expected 1", Code::Unsupported},
      {"version 2", [](Editor& e) { e.header.version = 2; }, "got version 2, expected 1", Code::Unsupported},
      {"header size", [](Editor& e) { e.header.header_bytes = 512; }, "header: got 512 bytes"},
      {"file size", [](Editor& e) { e.header.file_bytes += 4096; }, "cut off"},
      {"file size smaller", [](Editor& e) { e.header.file_bytes -= 1; }, "something appended"},
      {"data offset", [](Editor& e) { e.header.data_offset += 4096; }, "do not lie where"},
      {"data offset 0", [](Editor& e) { e.header.data_offset = 0; }, "do not lie where"},
      {"data offset huge", [&](Editor& e) { e.header.data_offset = huge; }, "do not lie where"},
      {"model id", [](Editor& e) { e.header.model_id[3] ^= 1; }, "model id", Code::Corrupt, false},
      {"file index", [](Editor& e) { e.header.file_index = 1; }, "file 1 of 1"},
      {"file count 0", [](Editor& e) { e.header.file_count = 0; }, "file 0 of 0"},
      {"file count 2", [](Editor& e) { e.header.file_count = 2; }, "must end in \"-00001-of-00002\""},
      {"file count huge", [](Editor& e) { e.header.file_count = 100000; }, "file 0 of 100000"},
      {"reserved", [](Editor& e) { e.header.reserved[95] = 1; }, "reserved bytes"},
      {"json offset", [](Editor& e) { e.header.json.offset += 64; }, "do not lie where"},
      {"json size", [](Editor& e) { e.header.json.bytes += 64; }, "do not lie where"},
      {"json size shorter", [](Editor& e) { e.header.json.bytes -= 1; }, "not valid JSON"},
      {"json size huge", [&](Editor& e) { e.header.json.bytes = huge; }, "more than the file can hold"},
      {"json size wraps", [&](Editor& e) { e.header.json.bytes = huge - 255; },
       "more than the file can hold"},
      {"json syntax", [](Editor& e) { e.file[e.header.json.offset] = '['; }, "not valid JSON"},
      {"json no object", [](Editor& e) { e.file.replace(e.header.json.offset, 14, "\"0123456789ab\""); },
       "got a string, expected an object"},
      {"names offset", [](Editor& e) { e.header.names.offset -= 64; }, "do not lie where"},
      {"names size", [](Editor& e) { e.header.names.bytes += 1; }, "names end at"},
      {"names size smaller", [](Editor& e) { e.header.names.bytes -= 1; }, "name does not lie"},
      {"tensors offset", [](Editor& e) { e.header.tensors.offset += 1; }, "do not lie where"},
      {"tensors size", [](Editor& e) { e.header.tensors.bytes -= 1; }, "whole records"},
      {"tensors huge", [&](Editor& e) { e.header.tensors.bytes = huge / 96 * 96; },
       "more than the file can hold"},
      {"extents offset", [](Editor& e) { e.header.extents.offset += 32; }, "do not lie where"},
      {"extents size", [](Editor& e) { e.header.extents.bytes += 1; }, "whole records"},
      {"extents fewer", [](Editor& e) { e.header.extents.bytes -= 32; }, "do not lie where"},
      {"sections offset", [](Editor& e) { e.header.sections.offset += 32; }, "do not lie where"},
      {"sections size", [](Editor& e) { e.header.sections.bytes += 1; }, "whole records"},
      {"sections fewer", [](Editor& e) { e.header.sections.bytes -= 32; }, "do not lie where"},
      {"section data offset", [](Editor& e) { e.header.section_data.offset += 64; }, "do not lie where"},
      {"section data size", [](Editor& e) { e.header.section_data.bytes += 1; }, "sections end at"},
      {"section data smaller", [](Editor& e) { e.header.section_data.bytes -= 1; }, "\"tokenizer.json\""},

      {"name offset", [](Editor& e) { e.tensors[1].name_offset += 1; }, "tensor 1: its name"},
      {"name offset huge", [&](Editor& e) { e.tensors[1].name_offset = huge; }, "tensor 1: its name"},
      {"name empty", [](Editor& e) { e.tensors[4].name_bytes = 0; }, "a name has 0 bytes"},
      {"name longer", [](Editor& e) { e.tensors[0].name_bytes += 1; }, "tensor 1: its name"},
      {"name beyond", [](Editor& e) { e.tensors[4].name_bytes = 1 << 31; }, "tensor 4: its name",
       Code::Corrupt, false},
      {"name control", [](Editor& e) { e.file[e.header.names.offset] = '\x1b'; }, "printable UTF-8"},
      {"name delete", [](Editor& e) { e.file[e.header.names.offset] = '\x7f'; }, "printable UTF-8"},
      {"name invalid", [](Editor& e) { e.file[e.header.names.offset] = '\xFF'; }, "printable UTF-8"},
      {"name surrogate", [](Editor& e) { e.file.replace(e.header.names.offset, 3, "\xED\xA0\x80"); },
       "printable UTF-8"},
      {"name overlong", [](Editor& e) { e.file.replace(e.header.names.offset, 2, "\xC0\xAF"); },
       "printable UTF-8"},
      {"name order", [](Editor& e) { e.file[e.header.names.offset] = 'm'; }, "not in order"},
      {"name twice",
       [](Editor& e) {
         e.file.replace(e.header.names.offset + 38, 10, "zzzzzzzzzz");
         e.tensors[3].name_bytes = e.tensors[4].name_bytes = 5;
         e.tensors[4].name_offset = 43;
       },
       "not in order"},
      {"name other", [](Editor& e) { e.file[e.header.names.offset + 9] = 'v'; },
       ""},  // legal: the editor works
      {"dtype", [](Editor& e) { e.tensors[0].dtype = 6; }, "element type number 6", Code::Unsupported},
      {"dtype other", [](Editor& e) { e.tensors[0].dtype = 0; }, "got 26000 bytes"},
      {"dtype integer", [](Editor& e) { e.tensors[0].dtype = 4; }, "block scales belong to a float matrix"},
      {"rank 0", [](Editor& e) { e.tensors[0].rank = 0; }, "got rank 0"},
      {"rank 5", [](Editor& e) { e.tensors[0].rank = 5; }, "got rank 5"},
      {"rank 1", [](Editor& e) { e.tensors[0].rank = 1; }, "beyond its rank"},
      {"rank 3", [](Editor& e) { e.tensors[0].rank = 3; }, "float matrix"},
      {"flags", [](Editor& e) { e.tensors[0].flags |= 2; }, "unknown flags 3", Code::Unsupported},
      {"not scaled", [](Editor& e) { e.tensors[0].flags = 0; }, "fields of scales are not zero"},
      {"scaled", [](Editor& e) { e.tensors[3].flags = 1; }, "float matrix"},
      {"scale dtype", [](Editor& e) { e.tensors[0].scale_dtype = 200; }, "element type number 200",
       Code::Unsupported},
      {"scale dtype f8", [](Editor& e) { e.tensors[0].scale_dtype = 3; }, "got scales of type F8_E4M3"},
      {"scale dtype i32", [](Editor& e) { e.tensors[0].scale_dtype = 4; }, "got scales of type I32"},
      {"scale dtype bf16", [](Editor& e) { e.tensors[0].scale_dtype = 1; },
       "16 of scales, expected 26000 and 8"},
      {"dimension 0", [](Editor& e) { e.tensors[0].shape[0] = 0; }, "got a dimension of 0"},
      {"dimension 1", [](Editor& e) { e.tensors[0].shape[0] = 1; }, "expected 130 and 8"},
      {"dimension 2^31", [](Editor& e) { e.tensors[0].shape[0] = 1ull << 31; }, "expected 279172874240"},
      {"dimension 2^32+1", [](Editor& e) { e.tensors[0].shape[0] = (1ull << 32) + 1; },
       "expected 558345748610"},
      {"dimension 2^56", [](Editor& e) { e.tensors[0].shape[0] = 1ull << 56; }, "too large to be real"},
      {"dimension 2^63", [](Editor& e) { e.tensors[0].shape[0] = 1ull << 63; }, "too large to be real"},
      {"dimension 2^64-1", [&](Editor& e) { e.tensors[0].shape[0] = huge; }, "too large to be real"},
      {"dimension product wraps",
       [](Editor& e) { e.tensors[0].shape[0] = e.tensors[0].shape[1] = 1ull << 32; }, "too large to be real"},
      {"dimension beyond rank", [](Editor& e) { e.tensors[0].shape[3] = 0; }, "beyond its rank"},
      {"block rows 0", [](Editor& e) { e.tensors[0].block_rows = 0; }, "scale blocks of 0 x 128"},
      {"block cols 0", [](Editor& e) { e.tensors[0].block_cols = 0; }, "scale blocks of 128 x 0"},
      {"block rows 64", [](Editor& e) { e.tensors[0].block_rows = 64; }, "expected 26000 and 32"},
      {"block cols 2^32-1", [](Editor& e) { e.tensors[0].block_cols = 0xFFFFFFFF; },
       "scale blocks of 128 x 4294967295"},
      {"block without scales", [](Editor& e) { e.tensors[3].block_rows = 1; },
       "fields of scales are not zero"},
      {"extent other", [](Editor& e) { e.tensors[0].extent = 1; }, "extent 0: no tensor"},
      {"extent shared", [](Editor& e) { e.tensors[0].extent = 2; }, "extent 0: no tensor"},
      {"extent beyond", [](Editor& e) { e.tensors[0].extent = 3; }, "extent 3 of 3"},
      {"extent 2^32-1", [](Editor& e) { e.tensors[0].extent = 0xFFFFFFFF; }, "extent 4294967295 of 3"},
      {"alias of itself", [](Editor& e) { e.tensors[4].alias_of = 4; }, "an alias itself"},
      {"alias of nothing", [](Editor& e) { e.tensors[4].alias_of = 5; }, "target 5 does not exist"},
      {"alias of another", [](Editor& e) { e.tensors[4].alias_of = 1; }, "differs from its target"},
      {"alias chain", [](Editor& e) { e.tensors[3].alias_of = 4; }, "an alias itself"},
      {"alias no more", [](Editor& e) { e.tensors[4].alias_of = pack::kNoAlias; },
       "got offsets 0 and 0, expected 64"},
      {"alias of other shape",
       [](Editor& e) {
         e.tensors[4].shape[0] = 2;
         e.tensors[4].data_bytes = 8;
       },
       "differs from"},
      {"data offset", [](Editor& e) { e.tensors[0].data_offset = 64; },
       "got offsets 64 and 26048, expected 0"},
      {"data offset overlaps", [](Editor& e) { e.tensors[2].data_offset = 0; }, "expected"},
      {"data offset huge", [&](Editor& e) { e.tensors[2].data_offset = huge - 63; }, "expected"},
      {"data bytes", [](Editor& e) { e.tensors[0].data_bytes -= 1; }, "got 25999 bytes"},
      {"data bytes huge", [&](Editor& e) { e.tensors[0].data_bytes = huge; }, "expected 26000"},
      {"scale offset", [](Editor& e) { e.tensors[0].scale_offset += 64; }, "got offsets 0 and 26112"},
      {"scale offset huge", [&](Editor& e) { e.tensors[0].scale_offset = huge; }, "expected 0 and 26048"},
      {"scale bytes", [](Editor& e) { e.tensors[0].scale_bytes = 0; }, "0 of scales"},
      {"scale offset without scales", [](Editor& e) { e.tensors[3].scale_offset = 64; }, "not zero"},
      {"scale bytes without scales", [](Editor& e) { e.tensors[3].scale_bytes = 4; }, "not zero"},

      {"extent file", [](Editor& e) { e.extents[1].file = 1; }, "extent 1: got file"},
      {"extent reserved", [](Editor& e) { e.extents[1].reserved = 1; }, "extent 1: got file"},
      {"extent offset", [](Editor& e) { e.extents[1].offset += 4096; }, "extent 1: got offset"},
      {"extent offset huge", [&](Editor& e) { e.extents[1].offset = huge; }, "extent 1: got offset"},
      {"extent empty", [](Editor& e) { e.extents[1].bytes = 0; }, "extent 1: got 0 bytes"},
      {"extent unaligned", [](Editor& e) { e.extents[1].bytes += 1; }, "extent 1: got 4097 bytes"},
      {"extent longer", [](Editor& e) { e.extents[2].bytes += 4096; }, "extent 2: got 36864 bytes"},
      {"extent shorter", [](Editor& e) { e.extents[2].bytes -= 4096; }, "extents end at"},
      {"extent huge", [&](Editor& e) { e.extents[0].bytes = huge - 4095; }, "extent 0: got"},
      {"extent too short",
       [](Editor& e) {
         e.extents[0].bytes -= 4096;  // and the next begins earlier
         e.extents[1].offset -= 4096;
         e.extents[1].bytes += 4096;
       },
       "does not fit its extent of 24576 bytes"},

      {"section name offset", [](Editor& e) { e.sections[1].name_offset += 1; }, "section 1: its name"},
      {"section name empty", [](Editor& e) { e.sections[0].name_bytes = 0; }, "a name has 0 bytes"},
      {"section name beyond", [](Editor& e) { e.sections[2].name_bytes = 0xFFFFFFFF; },
       "section 2: its name"},
      {"section name shorter", [](Editor& e) { e.sections[2].name_bytes -= 1; }, "names end at"},
      {"section name path",
       [](Editor& e) { e.file[e.sections[0].name_offset + e.header.names.offset] = '/'; },
       "not that of a file"},
      {"section name dots",
       [](Editor& e) { e.file.replace(e.header.names.offset + e.sections[1].name_offset, 5, "a\x01xyz"); },
       "printable"},
      {"section order", [](Editor& e) { e.file[e.sections[0].name_offset + e.header.names.offset] = 'x'; },
       "not in order"},
      {"section reserved", [](Editor& e) { e.sections[0].reserved = 1; }, "section 0: its name"},
      {"section offset", [](Editor& e) { e.sections[2].offset += 64; },
       "\"tokenizer.json\": it does not lie"},
      {"section offset elsewhere", [](Editor& e) { e.sections[0].offset = 0; },
       "\"config.json\": it does not lie"},
      {"section size", [](Editor& e) { e.sections[2].bytes += 1; }, "\"tokenizer.json\": it does not lie"},
      {"section huge", [&](Editor& e) { e.sections[0].bytes = huge; }, "\"config.json\": it does not lie"},
      {"section shorter", [](Editor& e) { e.sections[2].bytes -= 1; }, "sections end at"},

      {"gap after json", [](Editor& e) { e.file[e.header.json.offset + e.header.json.bytes] = 1; },
       "not zero"},
      {"gap after section", [](Editor& e) { e.file[e.sections[0].offset + 2] = 1; }, "not zero"},
      {"gap before data", [](Editor& e) { e.file[e.header.data_offset - 1] = 1; }, "not zero"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.what);
    Editor editor(good);
    c.change(editor);
    spill(dir / "bad", editor.build(c.fix_id));
    const auto file = PackFile::open(dir / "bad");
    if (!*c.message) {
      CHECK_MESSAGE(file.ok(), file.status().message());
      continue;
    }
    REQUIRE(!file.ok());
    CHECK(file.status().code() == c.code);
    CHECK_MESSAGE(file.status().message().find(c.message) != std::string::npos, file.status().message());
    CHECK(file.status().message().starts_with("open " + (dir / "bad")));
    CHECK_MESSAGE(has_advice(file.status().message()), file.status().message());
  }
}

TEST_CASE("pack: a cut-off or damaged file is refused") {
  TempDir dir;
  REQUIRE(sample().write(dir / "good").ok());
  const std::string good = slurp(dir / "good");
  const Editor e(good);
  std::set<size_t> cuts = {0, 1, 7, 8, 255, 256, good.size() - 1};
  for (const pack::Part* part : {&e.header.json, &e.header.names, &e.header.tensors, &e.header.extents,
                                 &e.header.sections, &e.header.section_data})
    cuts.insert({size_t(part->offset), size_t(part->offset + part->bytes)});
  for (const pack::ExtentRecord& r : e.extents) cuts.insert(size_t(r.offset));
  for (const size_t cut : cuts) {
    CAPTURE(cut);
    spill(dir / "cut", good.substr(0, cut));
    const auto file = PackFile::open(dir / "cut");
    REQUIRE(!file.ok());
    CHECK(file.status().code() == Code::Corrupt);
  }
  spill(dir / "long", good + "x");
  CHECK(PackFile::open(dir / "long").status().message().find("appended") != std::string::npos);

  for (const size_t at :
       {size_t(300), size_t(e.header.names.offset), size_t(e.header.tensors.offset + 20),
        size_t(e.header.extents.offset + 24), size_t(e.header.sections.offset + 9),
        size_t(e.header.section_data.offset), size_t(e.header.data_offset - 1), size_t(200), size_t(45)}) {
    CAPTURE(at);
    std::string bad = good;
    bad[at] ^= 0x10;
    spill(dir / "bad", bad);
    const auto file = PackFile::open(dir / "bad");
    REQUIRE(!file.ok());
    CHECK(file.status().code() == Code::Corrupt);
  }

  // Data is compared by verify() only, padding included.
  for (size_t i = 0; i < e.extents.size(); ++i)
    for (const size_t at :
         {size_t(e.extents[i].offset), size_t(e.extents[i].offset + e.extents[i].bytes - 1)}) {
      std::string bad = good;
      bad[at] ^= 0x10;
      spill(dir / "bad", bad);
      const auto file = PackFile::open(dir / "bad");
      REQUIRE(file.ok());
      const Status s = file->verify();
      CHECK(s.code() == Code::Corrupt);
      const char* expected[] = {"(\"layers.0.w\")", "(\"norm\")", "(\"layers.1.e.gate\", \"layers.1.e.up\")"};
      CHECK_MESSAGE(s.message().find(expected[i]) != std::string::npos, s.message());
    }
}

TEST_CASE("pack: random damage with right checksums never leads outside the file") {
  TempDir dir;
  REQUIRE(sample().write(dir / "good").ok());
  const std::string good = slurp(dir / "good");
  const uint64_t seed = 20240607;
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const pack::Header header_of_good = Editor(good).header;
  int opened = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = good;
    pack::Header header = header_of_good;
    for (uint64_t n = 1 + random() % 3; n > 0; --n) {
      const size_t at = random() % header_of_good.data_offset;
      const uint64_t values[] = {0, 1, 0x7F, 0x80, 0xFF, random()};
      const char value = char(values[random() % 6]);
      if (at < sizeof header)
        reinterpret_cast<char*>(&header)[at] = value;
      else
        bytes[at] = value;
    }
    Editor damaged(bytes);
    damaged.header = header;
    damaged.build();
    std::fstream(dir / "good", std::ios::binary | std::ios::in | std::ios::out)
        .write(damaged.file.data(), std::streamsize(header_of_good.data_offset));  // in place: the data stays
    const auto file = PackFile::open(dir / "good");
    if (!file.ok()) continue;
    ++opened;
    unsigned sum = 0;  // every byte that the file says is a tensor's can be read
    for (const PackFile::Item& item : file->items()) {
      for (int64_t j = 0; j < item.entry.data_bytes(); ++j) sum += unsigned(item.tensor.data[j]);
      for (int64_t j = 0; j < item.entry.scale_bytes(); ++j) sum += unsigned(item.tensor.scale.data[j]);
    }
    CHECK(sum > 0);
  }
  CHECK(opened > 0);  // some damage is harmless: a letter of a name, a section's byte
}
