// No bit of a packed file can change unnoticed: opening finds it in the index, verify() in the data.
#include <doctest/doctest.h>
#include <unistd.h>
#include <random>

#include "dsv3.h"
#include "tests/unit/pack_sample.h"
#include "tests/unit/temp_dir.h"

using namespace pack_test;

namespace {

// A file with single bits changed in place.
class Flipper {
 public:
  explicit Flipper(const std::string& path) : file_(path, std::ios::binary | std::ios::in | std::ios::out) {}
  void flip(int64_t at, int bit) {
    file_.seekg(at);
    const char byte = char(file_.get() ^ 1 << bit);
    file_.seekp(at);
    file_.put(byte).flush();
  }

 private:
  std::fstream file_;
};

std::vector<std::string> damage_of(const std::string& path, Status* status) {
  std::vector<std::string> lines;
  const auto file = PackFile::open(path);
  REQUIRE_MESSAGE(file.ok(), file.status().message());
  *status = file->verify({}, [&](const std::string& line) { lines.push_back(line); });
  std::sort(lines.begin(), lines.end());
  return lines;
}

}  // namespace

TEST_CASE("pack: any changed bit is found") {
  TempDir dir;
  const std::string path = dir / "m";
  REQUIRE(sample().write(path).ok());
  const int64_t index_bytes = PackFile::open(path)->extents()[0].offset,
                file_bytes = PackFile::open(path)->file_bytes();
  const uint64_t seed = 20251122;
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  Flipper flipper(path);
  for (int64_t at = 0; at < index_bytes; ++at) {
    const int bit = int(random() % 8);
    flipper.flip(at, bit);
    const auto file = PackFile::open(path);
    CHECK_MESSAGE(!file.ok(), "byte ", at, " of the index");
    flipper.flip(at, bit);
  }
  Status status;
  CHECK(damage_of(path, &status).empty());
  CHECK(status.ok());
  for (int i = 0; i < 200; ++i) {
    const int64_t at = index_bytes + int64_t(random() % uint64_t(file_bytes - index_bytes));
    const int bit = int(random() % 8);
    CAPTURE(at);
    flipper.flip(at, bit);
    CHECK(damage_of(path, &status).size() == 1);
    CHECK(status.code() == Code::Corrupt);
    flipper.flip(at, bit);
  }
}

TEST_CASE("pack: verify goes on after the first damage, and names what it finds") {
  TempDir dir;
  const std::string path = dir / "m";
  REQUIRE(sample().write(path).ok());
  const auto extents = PackFile::open(path)->extents();
  Flipper flipper(path);
  flipper.flip(extents[0].offset + 100, 0);
  flipper.flip(extents[2].offset + extents[2].bytes - 1, 7);  // padding
  Status status;
  const std::vector<std::string> lines = damage_of(path, &status);
  REQUIRE(lines.size() == 2);
  CHECK(lines[0].starts_with("extent 0 (\"layers.0.w\"): got checksum "));
  CHECK(lines[1].starts_with("extent 2 (\"layers.1.e.gate\", \"layers.1.e.up\"): got checksum "));
  CHECK(status.message().starts_with("verify " + path + ": 2 of 3 extents, one of them: extent "));
}

TEST_CASE("pack: what cannot be read while it is verified is damage, not a signal") {
  TempDir dir;
  const std::string path = dir / "m";
  REQUIRE(sample().write(path).ok());
  const auto file = PackFile::open(path);
  REQUIRE(file.ok());
  REQUIRE(truncate(path.c_str(), file->extents()[1].offset) == 0);
  std::vector<std::string> lines;
  int64_t last = 0;
  const Status status = file->verify(
      [&](int64_t done, int64_t) {
        last = done;
        return true;
      },
      [&](const std::string& line) { lines.push_back(line); });
  CHECK(status.code() == Code::Corrupt);
  CHECK(lines.size() == 2);
  for (const std::string& line : lines) CHECK(line.find("the file ends before byte") != std::string::npos);
  CHECK(last == file->file_bytes() - file->extents()[0].offset);
  std::byte byte;
  CHECK(file->read(0, file->extents()[0].bytes, {&byte, 1}).code() == Code::InvalidArgument);
}

TEST_CASE("pack: verification through the C API") {
  TempDir dir;
  const std::string path = dir / "m";
  REQUIRE(sample().write(path).ok());
  CHECK(dsv3_verify(path.c_str(), nullptr) == DSV3_OK);
  CHECK(dsv3_verify(nullptr, nullptr) == DSV3_INVALID_ARGUMENT);
  CHECK(dsv3_verify((dir / "none").c_str(), nullptr) == DSV3_NOT_FOUND);

  Flipper(path).flip(PackFile::open(path)->extents()[1].offset, 3);
  std::string lines;
  dsv3_verify_options options = {};
  options.struct_size = sizeof options;
  options.damage = [](void* to, dsv3_log_level level, const char* line) {
    CHECK(level == DSV3_LOG_WARNING);
    *static_cast<std::string*>(to) += line;
  };
  options.damage_user = &lines;
  CHECK(dsv3_verify(path.c_str(), &options) == DSV3_CORRUPT);
  CHECK(lines.starts_with("extent 1 (\"norm\")"));
  CHECK(std::string(dsv3_last_error()).find(lines) != std::string::npos);
  options.progress = [](void*, int64_t, int64_t) { return 1; };
  CHECK(dsv3_verify(path.c_str(), &options) == DSV3_CANCELLED);
}
