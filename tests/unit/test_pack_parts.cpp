// A packed file in several parts, and one that is written in several goes.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "ggml-lite/pack_journal.h"
#include "tests/unit/pack_sample.h"
#include "tests/unit/temp_dir.h"

using namespace pack_test;

namespace {
int g_failing_syncs = 0;  // so many calls of fdatasync() fail as those of a bad disk do
}

extern "C" int fdatasync(int fd) {
  if (g_failing_syncs == 0) return int(syscall(SYS_fdatasync, fd));
  --g_failing_syncs;
  errno = EIO;
  return -1;
}

namespace {

// Seven extents of 8 KiB to 40 KiB, an alias, a section.
Content large(uint64_t seed = 11) {
  std::mt19937_64 random(seed);
  Content c;
  c.json.set("config", Json("x"));
  c.sections = {{"config.json", "{}"}};
  for (int i = 0; i < 7; ++i) c.add({scaled("w" + std::to_string(i), {128, 40 + 40 * i})}, random);
  c.aliases = {{"copy", "w6"}};
  return c;
}

PackOptions split(int64_t bytes, const std::string& key = "") {
  PackOptions options;
  options.split_bytes = bytes;
  options.resume_key = key;
  return options;
}

std::vector<std::string> sorted(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return names;
}

void write_extent(PackWriter* writer, const Content& c, size_t i) {
  PackWriter::Extent extent = writer->begin(i);
  for (const PackEntry& e : c.extents[i].tensors) {
    const auto& [data, scales] = c.bytes.at(e.name);
    REQUIRE(extent.write(std::span(data).first(100)).ok());
    REQUIRE(extent.write(std::span(data).subspan(100)).ok());
    REQUIRE(extent.write(scales).ok());
  }
}

Result<PackWriter> create(const Content& c, const std::string& path, const PackOptions& options) {
  return PackWriter::create(path, c.json, c.sections, c.extents, c.aliases, options);
}

void same_content(const PackFile& file, const Content& c) {
  for (const auto& [name, bytes] : c.bytes) {
    const PackFile::Item* item = file.find(name);
    REQUIRE(item);
    CHECK(std::memcmp(item->tensor.data, bytes.first.data(), bytes.first.size()) == 0);
    CHECK(std::memcmp(item->tensor.scale.data, bytes.second.data(), bytes.second.size()) == 0);
  }
  CHECK(file.find("copy")->tensor.data == file.find("w6")->tensor.data);
  CHECK(file.verify().ok());
}

}  // namespace

TEST_CASE("pack: several files are one model, whichever is opened") {
  TempDir dir;
  const Content c = large();
  REQUIRE(c.write(dir / "one.dsv3").ok());
  const auto one = PackFile::open(dir / "one.dsv3");
  REQUIRE(c.write(dir / "m.dsv3", split(60'000)).ok());
  const std::vector<std::string> names = sorted(dir.names());
  CHECK(names == std::vector<std::string>{"m-00001-of-00004.dsv3", "m-00002-of-00004.dsv3",
                                          "m-00003-of-00004.dsv3", "m-00004-of-00004.dsv3", "one.dsv3"});
  for (size_t i = 0; i < 4; ++i) {
    const auto file = PackFile::open(dir / names[i]);
    REQUIRE_MESSAGE(file.ok(), file.status().message());
    CHECK(file->path() == dir / names[i]);
    CHECK(file->model_id() == one->model_id());  // how it is cut does not matter
    REQUIRE(file->parts().size() == 4);
    int64_t bytes = 0;
    for (size_t p = 0; p < 4; ++p) {
      CHECK(file->parts()[p].path == dir / names[p]);
      CHECK(file->parts()[p].bytes == int64_t(std::filesystem::file_size(dir / names[p])));
      CHECK(file->parts()[p].bytes <= 60'000);
      bytes += file->parts()[p].bytes;
    }
    CHECK(file->file_bytes() == bytes);
    same_content(*file, c);
  }
  // An extent larger than the limit has a file of its own; with room for all there is one file.
  REQUIRE(c.write(dir / "small", split(1)).ok());
  CHECK(std::filesystem::exists(dir / "small-00007-of-00007"));
  same_content(*PackFile::open(dir / "small-00003-of-00007"), c);
  REQUIRE(c.write(dir / "fits.dsv3", split(10'000'000)).ok());
  CHECK(slurp(dir / "fits.dsv3") == slurp(dir / "one.dsv3"));

  // The second file by offsets, as docs/format.md has them: a header, and zeros to its first extent.
  const std::string second = slurp(dir / names[1]), first = slurp(dir / names[0]);
  const auto number = [](const std::string& f, size_t at, size_t n) {
    uint64_t v = 0;
    for (size_t i = n; i-- > 0;) v = v << 8 | uint8_t(f.at(at + i));
    return v;
  };
  CHECK(second.substr(0, 8) == "DSV3PACK");
  CHECK(number(second, 16, 8) == second.size());
  CHECK(number(second, 24, 8) == 4096);
  CHECK(second.substr(40, 16) == first.substr(40, 16));
  CHECK(number(second, 56, 4) == 1);
  CHECK(number(second, 60, 4) == 4);
  for (size_t part = 0; part < 6; ++part) {
    CHECK(number(second, 64 + 16 * part, 8) == 256);
    CHECK(number(second, 72 + 16 * part, 8) == 0);
  }
  CHECK(second.substr(160, 4096 - 160) == std::string(4096 - 160, '\0'));
  const size_t extents = number(first, 112, 8);
  const auto second_begins = [&](size_t i) { return number(first, extents + 32 * i, 4) == 1; };
  size_t i = 0;
  while (!second_begins(i)) ++i;
  CHECK(number(first, extents + 32 * i + 8, 8) == 4096);
}

TEST_CASE("pack: files that are missing or of another model") {
  TempDir dir;
  REQUIRE(large().write(dir / "m.dsv3", split(60'000)).ok());
  REQUIRE(large(12).write(dir / "other.dsv3", split(60'000)).ok());
  const auto name = [&](const std::string& model, int i) {
    return dir / lite::str(model, "-0000", i, "-of-00004.dsv3");
  };
  const auto refused = [&](int opened, Code code, std::initializer_list<std::string> parts) {
    const auto file = PackFile::open(name("m", opened));
    REQUIRE(!file.ok());
    CHECK_MESSAGE(file.status().code() == code, file.status().message());
    for (const std::string& part : parts)
      CHECK_MESSAGE(file.status().message().find(part) != std::string::npos, file.status().message());
  };
  const auto with = [&](int i, const std::string& bytes, const std::function<void()>& look) {
    const std::string before = slurp(name("m", i));
    spill(name("m", i), bytes);
    look();
    spill(name("m", i), before);
    REQUIRE(PackFile::open(name("m", 2)).ok());
  };
  for (const int i : {1, 3, 4}) {
    std::filesystem::rename(name("m", i), dir / "away");
    refused(2, Code::NotFound,
            {"it is file 2 of 4", lite::str("m-0000", i, "-of-00004.dsv3"), "No such file"});
    std::filesystem::rename(dir / "away", name("m", i));
  }
  for (const int i : {1, 3}) {
    with(i, slurp(name("other", i)), [&] {
      refused(2, Code::Corrupt, {"belongs to another model", name("m", i)});
    });
    with(i, slurp(name("m", 4)), [&] { refused(2, Code::Corrupt, {"it is file 4, expected"}); });
    with(i, slurp(name("m", i)) + "x", [&] {
      refused(2, Code::Corrupt, {name("m", i), "something appended"});
    });
    std::string bad = slurp(name("m", i));
    bad[300] ^= 1;
    with(i, bad, [&] { refused(2, Code::Corrupt, {name("m", i), "checksum"}); });
  }
  std::string bad = slurp(name("m", 3));
  bad[5000] ^= 1;
  with(3, bad, [&] {
    const Status s = PackFile::open(name("m", 1))->verify();
    CHECK(s.code() == Code::Corrupt);
    CHECK_MESSAGE(s.message().find(name("m", 3)) != std::string::npos, s.message());
    CHECK(s.message().find("\"w5\"") != std::string::npos);
  });
  std::filesystem::copy(name("m", 2), dir / "renamed.dsv3");
  const auto renamed = PackFile::open(dir / "renamed.dsv3");
  CHECK_MESSAGE(renamed.status().message().find("must end in \"-00002-of-00004.dsv3\"") != std::string::npos,
                renamed.status().message());
}

TEST_CASE("pack: a file of several with every field changed") {
  TempDir dir;
  REQUIRE(large().write(dir / "m.dsv3", split(60'000)).ok());
  const std::string path = dir / "m-00002-of-00004.dsv3", good = slurp(path);
  std::mt19937_64 random(21);
  for (int round = 0; round < 300; ++round) {
    std::string bad = good;
    const size_t at = random() % 4096;
    const char byte = char(random());
    if (bad[at] == byte) continue;
    bad[at] = byte;
    pack::Header h;
    std::memcpy(&h, bad.data(), sizeof h);
    if (h.data_offset == 4096 && !(at >= 32 && at < 40)) {  // its checksum made right
      h.index_checksum = pack::index_checksum(std::as_bytes(std::span(bad)).first(4096));
      std::memcpy(bad.data(), &h, sizeof h);
    }
    spill(path, bad);
    CAPTURE(at);
    for (const char* opened : {"m-00001-of-00004.dsv3", "m-00002-of-00004.dsv3"})
      CHECK(!PackFile::open(dir / opened).ok());
  }
}

TEST_CASE("pack: extents in any order, from many threads") {
  TempDir dir;
  const Content c = large();
  REQUIRE(c.write(dir / "one").ok());
  for (const int64_t bytes : {0, 60'000}) {
    auto writer = create(c, dir / "m", split(bytes));
    REQUIRE(writer.ok());
    CHECK(writer->parts().size() == (bytes ? 4 : 1));
    std::vector<std::thread> threads;
    for (size_t i = c.extents.size(); i-- > 0;)
      threads.emplace_back([&writer, &c, i] { write_extent(&*writer, c, i); });
    for (std::thread& t : threads) t.join();
    for (size_t i = 0; i < c.extents.size(); ++i) CHECK(writer->finished(i));
    auto durable = writer->sync();
    REQUIRE(durable.ok());
    CHECK(durable->size() == 7);
    CHECK(writer->sync()->empty());
    PackWriter::Extent more = writer->begin(0);
    REQUIRE(writer->finish().ok());
  }
  CHECK(slurp(dir / "m") == slurp(dir / "one"));
  same_content(*PackFile::open(dir / "m-00001-of-00004"), c);
}

TEST_CASE("pack: an interrupted writer is gone on with") {
  for (const int64_t bytes : {0, 60'000}) {
    CAPTURE(bytes);
    TempDir dir;
    const Content c = large();
    REQUIRE(c.write(dir / "good.dsv3", split(bytes)).ok());
    const std::string first = bytes ? "m-00001-of-00004.dsv3" : "m.dsv3";
    const PackOptions options = split(bytes, "the key");
    {
      auto writer = create(c, dir / "m.dsv3", options);
      REQUIRE(writer.ok());
      CHECK(unfinished_key(dir / "m.dsv3") == "the key");
      for (const size_t i : {1, 4, 6}) write_extent(&*writer, c, i);
      REQUIRE(writer->sync()->size() == 3);
      write_extent(&*writer, c, 2);  // finished, but not durable
      PackWriter::Extent begun = writer->begin(3);
      REQUIRE(begun.write(std::span(c.bytes.at("w3").first).first(50)).ok());
      CHECK(create(c, dir / "m.dsv3", options).status().code() == Code::Busy);
    }
    CHECK(std::filesystem::exists(dir / (first + ".partial")));
    {
      // A torn record at the end, as of a writer that was killed, is no record.
      std::string torn = slurp(dir / "m.dsv3.journal");
      spill(dir / "m.dsv3.journal", torn + torn.substr(torn.size() - 24, 13));
      auto writer = create(c, dir / "m.dsv3", options);
      REQUIRE(writer.ok());
      for (size_t i = 0; i < 7; ++i) CHECK(writer->finished(i) == (i == 1 || i == 4 || i == 6));
      CHECK(writer->durable_bytes() > 0);
      for (const size_t i : {0, 2, 3, 5}) write_extent(&*writer, c, i);
      CHECK(writer->sync()->size() == 4);
      REQUIRE(writer->finish().ok());
    }
    for (int i = 1; i <= (bytes ? 4 : 1); ++i) {
      const std::string part = bytes ? lite::str("-0000", i, "-of-00004.dsv3") : ".dsv3";
      CHECK(slurp(dir / ("m" + part)) == slurp(dir / ("good" + part)));
    }
    CHECK(dir.names().size() == (bytes ? 8 : 2));  // no partial file, no journal
    CHECK(!unfinished_key(dir / "m.dsv3"));
  }
}

TEST_CASE("pack: another layout or key begins anew, and leaves no files of before") {
  const Content c = large();
  const auto interrupted = [&](const TempDir& dir, const PackOptions& options) {
    auto writer = create(c, dir / "m", options);
    REQUIRE(writer.ok());
    write_extent(&*writer, c, 0);
    REQUIRE(writer->sync().ok());
  };
  const auto begins_anew = [&](const TempDir& dir, const Content& content, const PackOptions& options) {
    {
      auto writer = create(content, dir / "m", options);
      REQUIRE(writer.ok());
      CHECK(writer->durable_bytes() == 0);
      CHECK(!writer->finished(0));
      for (size_t i = 0; i < content.extents.size(); ++i) write_extent(&*writer, content, i);
      REQUIRE(writer->finish().ok());
    }
    REQUIRE(content.write(dir / "n", split(options.split_bytes)).ok());
    CHECK(dir.names().size() == 2 * (options.split_bytes ? 4 : 1));
  };
  SUBCASE("another key") {
    TempDir dir;
    interrupted(dir, split(0, "a"));
    begins_anew(dir, c, split(0, "b"));
    CHECK(slurp(dir / "m") == slurp(dir / "n"));
  }
  SUBCASE("another tensor") {
    TempDir dir;
    interrupted(dir, split(0, "a"));
    Content other = c;
    std::mt19937_64 random(3);
    other.add({entry("more", DType::F32, {50})}, random);
    begins_anew(dir, other, split(0, "a"));
  }
  SUBCASE("other files") {
    TempDir dir;
    interrupted(dir, split(30'000, "a"));
    begins_anew(dir, c, split(60'000, "a"));
  }
  SUBCASE("no key") {
    TempDir dir;
    interrupted(dir, split(60'000, "a"));
    begins_anew(dir, c, {});
  }
  SUBCASE("a partial file that is gone") {
    TempDir dir;
    interrupted(dir, split(60'000, "a"));
    std::filesystem::remove(dir / "m-00001-of-00004.partial");
    begins_anew(dir, c, split(60'000, "a"));
  }
  SUBCASE("a damaged journal") {
    TempDir dir;
    interrupted(dir, split(0, "a"));
    std::string journal = slurp(dir / "m.journal");
    journal[20] ^= 1;
    spill(dir / "m.journal", journal);
    // It may have told that the partial file is the only copy.
    const std::string before = slurp(dir / "m.partial");
    const Status refused = create(c, dir / "m", split(0, "a")).status();
    CHECK(refused.code() == Code::Corrupt);
    CHECK(refused.message().find("m.journal is damaged") != std::string::npos);
    CHECK(slurp(dir / "m.partial") == before);
    CHECK(slurp(dir / "m.journal") == journal);
    // One that was being begun tells nothing.
    spill(dir / "m.journal", slurp(dir / "m.journal").substr(0, 48));
    begins_anew(dir, c, split(0, "a"));
  }
  SUBCASE("a damaged record in front of that of the only copy") {
    TempDir dir;
    {
      auto writer = create(c, dir / "m", split(0, "a"));
      REQUIRE(writer.ok());
      write_extent(&*writer, c, 0);
      REQUIRE(writer->sync().ok());
      REQUIRE(writer->hold_only_copy().ok());
    }
    std::string journal = slurp(dir / "m.journal");
    journal[journal.size() - 30] ^= 1;
    spill(dir / "m.journal", journal);
    CHECK(check_no_only_copy(dir / "m").code() == Code::InvalidArgument);
    { REQUIRE(create(c, dir / "m", split(0, "a")).ok()); }  // goes on, and tells it again
    CHECK(check_no_only_copy(dir / "m").code() == Code::InvalidArgument);
    CHECK(create(c, dir / "m", split(0, "b")).status().code() == Code::InvalidArgument);
  }
  SUBCASE("unless it must go on") {
    TempDir dir;
    interrupted(dir, split(0, "a"));
    const std::string before = slurp(dir / "m.partial");
    PackOptions options = split(0, "b");
    options.only_resume = true;
    CHECK(create(c, dir / "m", options).status().code() == Code::Corrupt);
    CHECK(slurp(dir / "m.partial") == before);
  }
  SUBCASE("nor over the only copy") {
    TempDir dir;
    {
      auto writer = create(c, dir / "m", split(0, "a"));
      REQUIRE(writer.ok());
      write_extent(&*writer, c, 0);
      REQUIRE(writer->sync().ok());
      for (int i = 0; i < 2; ++i) REQUIRE(writer->hold_only_copy().ok());
    }
    const std::string partial = slurp(dir / "m.partial"), journal = slurp(dir / "m.journal");
    for (const PackOptions& options : {split(0, "b"), split(60'000, "a"), PackOptions()}) {
      const Status refused = create(c, dir / "m", options).status();
      CHECK(refused.code() == Code::InvalidArgument);
      CHECK_MESSAGE(refused.message().find((dir / "m.partial") + " holds the only copy") != std::string::npos,
                    refused.message());
      CHECK(slurp(dir / "m.partial") == partial);
      CHECK(slurp(dir / "m.journal") == journal);
      CHECK(dir.names().size() == 2);
    }
    {
      auto writer = create(c, dir / "m", split(0, "a"));  // the same one goes on, and holds it still
      REQUIRE(writer.ok());
      CHECK(writer->finished(0));
      REQUIRE(writer->hold_only_copy().ok());
    }
    CHECK(slurp(dir / "m.journal") == journal);
    CHECK(!check_no_only_copy(dir / "m").ok());
    std::filesystem::remove(dir / "m.partial");
    std::filesystem::remove(dir / "m.journal");
    CHECK(c.write(dir / "m").ok());
  }
  SUBCASE("discarded") {
    TempDir dir;
    auto writer = create(c, dir / "m", split(60'000, "a"));
    write_extent(&*writer, c, 0);
    writer->discard();
    CHECK(dir.names().empty());
  }
}

TEST_CASE("pack: interrupted while the files get their names") {
  TempDir dir;
  const Content c = large();
  const PackOptions options = split(60'000, "a");
  REQUIRE(c.write(dir / "m", split(60'000)).ok());
  std::map<std::string, std::string> good;
  for (const std::string& name : dir.names()) good[name] = slurp(dir / name);
  // As it is after k of the four renames: the last file's comes first.
  for (int renamed = 0; renamed <= 4; ++renamed) {
    CAPTURE(renamed);
    for (const std::string& name : dir.names()) std::filesystem::remove(dir / name);
    {
      auto writer = create(c, dir / "m", options);
      for (size_t i = 0; i < c.extents.size(); ++i) write_extent(&*writer, c, i);
      REQUIRE(writer->sync().ok());
    }
    for (int i = 1; i <= 4; ++i) {
      const std::string name = lite::str("m-0000", i, "-of-00004");
      std::filesystem::remove(dir / (name + ".partial"));
      spill(dir / (name + (i > 4 - renamed ? "" : ".partial")), good[name]);
    }
    {
      auto content = pack::Journal::read(dir / "m.journal");
      REQUIRE(content);
      pack::Journal journal;
      REQUIRE(journal.resume(dir / "m.journal", *content).ok());
      REQUIRE(journal.add({{pack::Journal::kPublishing, 0, 0}}).ok());
    }
    bool called = false;
    {
      // Not while its writer is at it, nor with a file of another model.
      const std::string last = dir / (renamed ? "m-00004-of-00004" : "m-00004-of-00004.partial");
      const std::string one = dir / (renamed == 4 ? "m-00001-of-00004" : "m-00001-of-00004.partial");
      const int fd = open(one.c_str(), O_RDONLY);
      CHECK(flock(fd, LOCK_EX) == 0);
      CHECK(finish_naming(dir / "m").status().code() == Code::Busy);
      close(fd);
      for (const auto& [path, byte] : {std::pair(one, 300), std::pair(last, 50)}) {
        std::string bad = slurp(path);
        const std::string whole = bad;
        bad[size_t(byte)] ^= 1;
        spill(path, bad);
        CHECK(!*finish_naming(dir / "m"));
        spill(path, whole);
      }
    }
    const auto first = finish_naming(
        dir / "m", [&](const NamedLate&) { called = std::filesystem::exists(dir / "m.journal"); });
    REQUIRE_MESSAGE(first.ok(), first.status().message());
    CHECK((*first)->path == dir / "m-00001-of-00004");
    CHECK((*first)->key == "a");
    CHECK(!(*first)->only_copy);
    CHECK(called);
    CHECK(dir.names().size() == 4);
    for (const auto& [name, bytes] : good) CHECK(slurp(dir / name) == bytes);
    CHECK(!*finish_naming(dir / "m"));
  }
  // Not one that has data to write.
  {
    auto writer = create(c, dir / "n", options);
    write_extent(&*writer, c, 0);
    REQUIRE(writer->sync().ok());
  }
  CHECK(!*finish_naming(dir / "n"));
  CHECK(unfinished_key(dir / "n"));
}

TEST_CASE("pack: after a sync that failed nothing is durable any more") {
  TempDir dir;
  const Content c = large();
  {
    auto writer = create(c, dir / "m", split(0, "a"));
    REQUIRE(writer.ok());
    write_extent(&*writer, c, 0);
    REQUIRE(writer->sync().ok());
    write_extent(&*writer, c, 1);
    g_failing_syncs = 1;
    CHECK(writer->sync().status().code() == Code::Io);
    CHECK(g_failing_syncs == 0);
    write_extent(&*writer, c, 2);
    CHECK(writer->sync().status().code() == Code::Io);
    CHECK(writer->hold_only_copy().code() == Code::Io);
  }
  auto writer = create(c, dir / "m", split(0, "a"));
  REQUIRE(writer.ok());
  for (size_t i = 0; i < 7; ++i) CHECK(writer->finished(i) == (i == 0));
}

TEST_CASE("pack: of two writers in different numbers of files the second one is told") {
  TempDir dir;
  const Content c = large();
  for (const int64_t first_bytes : {0, 50'000}) {
    auto first =
        PackWriter::create(dir / "m.dsv3", c.json, c.sections, c.extents, c.aliases, split(first_bytes, "a"));
    REQUIRE_MESSAGE(first.ok(), first.status().message());
    write_extent(&*first, c, 0);
    REQUIRE(first->sync().ok());
    const auto before = dir.names();
    const auto second = PackWriter::create(dir / "m.dsv3", c.json, c.sections, c.extents, c.aliases,
                                           split(first_bytes ? 0 : 50'000, "b"));
    CHECK(second.status().code() == Code::Busy);
    CHECK(dir.names() == before);
    for (size_t i = 1; i < c.extents.size(); ++i) write_extent(&*first, c, i);
    CHECK(first->finish().ok());
    for (const std::string& name : dir.names()) std::filesystem::remove(dir / name);
  }
}

TEST_CASE("pack: disk space is asked for, less what the caller frees") {
  TempDir dir;
  Content c;  // 64 extents of 4 TiB: no disk has that, but one at a time and a lag it may have
  for (int i = 0; i < 64; ++i)
    c.extents.push_back({{entry("x" + std::to_string(i), DType::F32, {1ll << 20})}});
  PackOptions options;
  options.frees.assign(64, 4 << 20);
  CHECK(create(c, dir / "m", options).ok());
  for (PackExtent& e : c.extents) e.tensors[0].shape = {1ll << 40};
  options.frees.assign(64, 4ll << 40);
  const auto refused = create(c, dir / "m", options);
  CHECK(refused.status().code() == Code::Io);
  const std::string message = refused.status().message();
  CHECK_MESSAGE(message.find("it needs 43991202") != std::string::npos, message);
  CHECK(message.find("free ") != std::string::npos);
  CHECK(dir.names().empty());
}
