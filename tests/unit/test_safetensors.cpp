// Safetensors files and checkpoint folders: the rules of the format, and every way a download goes wrong.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <algorithm>

#include "convert/checkpoint.h"
#include "convert/safetensors.h"
#include "tests/unit/advice.h"
#include "tests/unit/safetensors_writer.h"
#include "tests/unit/temp_dir.h"

using namespace dsv3;
using lite::Code;

namespace {

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
         "}";
}

void refused(const std::string& bytes, const std::string& why, Code code = Code::Corrupt) {
  TempDir dir;
  spill(dir / "x.safetensors", bytes);
  const auto file = SafetensorsFile::open(dir / "x.safetensors");
  CAPTURE(bytes.substr(0, 200));
  REQUIRE(!file.ok());
  CHECK(file.status().code() == code);
  CHECK_MESSAGE(file.status().message().find(why) != std::string::npos, file.status().message());
  CHECK(file.status().message().find("x.safetensors") != std::string::npos);
  CHECK(file.status().message().find('\x1b') == std::string::npos);
  CHECK_MESSAGE(has_advice(file.status().message()), file.status().message());
}

// A header with these members and so many bytes of data.
void refused_header(const std::string& members, size_t data, const std::string& why,
                    Code code = Code::Corrupt) {
  refused(safetensors_of("{" + members + "}", std::string(data, 'd')), why, code);
}

std::vector<std::string> names_of(const SafetensorsFile& file) {
  std::vector<std::string> out;
  for (const SafetensorsEntry& e : file.entries()) out.push_back(e.name);
  return out;
}

}  // namespace

TEST_CASE("safetensors: valid files") {
  TempDir dir;
  const std::string path = dir / "x.safetensors";
  const std::string header = "{" + entry("b", "F32", "[2]", "[6,14]") +
                             ",\"__metadata__\":{\"format\":\"pt\"}," + entry("scalar", "U8", "[]", "[5,6]") +
                             "," + entry("empty", "F64", "[0,7]", "[5,5]") + "," +
                             entry("a", "F4", "[5,2]", "[0,5]") + "}  \n  ";
  spill(path, safetensors_of(header, "0123456789abcd"));
  const auto file = SafetensorsFile::open(path);
  REQUIRE_MESSAGE(file.ok(), file.status().message());
  CHECK(names_of(*file) == std::vector<std::string>{"a", "empty", "scalar", "b"});
  const SafetensorsEntry& b = file->entries()[3];
  CHECK(b.dtype == "F32");
  CHECK(b.shape == std::vector<int64_t>{2});
  CHECK(b.bytes == 8);
  std::string got(3, ' ');
  CHECK(file->read(b, 4, std::as_writable_bytes(std::span(got))).ok());
  CHECK(got == "abc");
  CHECK(file->read(b, 6, std::as_writable_bytes(std::span(got))).code() == Code::InvalidArgument);
  CHECK(file->read(b, -1, std::as_writable_bytes(std::span(got))).code() == Code::InvalidArgument);
  CHECK(file->read(b, 9, {}).code() == Code::InvalidArgument);
  CHECK(file->read(b, 8, {}).ok());

  for (const char* none : {"{}", "{\"__metadata__\":{}}"}) {
    spill(path, safetensors_of(none, ""));
    CHECK(SafetensorsFile::open(path).ok());
  }
  // Every type has its size.
  const std::pair<const char*, int64_t> types[] = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  for (const auto& known : types) {
    const auto& type = known.first;
    const auto& bits = known.second;
    CAPTURE(type);
    spill(path, safetensors_of("{" + entry("x", type, "[4]", "[0," + std::to_string(bits / 2) + "]") + "}",
                               std::string(size_t(bits / 2), 'x')));
    CHECK(SafetensorsFile::open(path).ok());
  }
}

TEST_CASE("safetensors: the rules of the format") {
  refused("", "got 0 bytes");
  refused("1234567", "got 7 bytes");
  refused("12345678", "is it a safetensors file");
  refused(std::string("\x01\0\0\x04\0\0\0\0", 8), "67108865 bytes, expected at most 67108864");
  refused(std::string("\0\0\0\x04\0\0\0\0", 8), "cut off");
  refused(std::string(8, '\xFF') + "{}", "18446744073709551615");
  refused(std::string("\0\0\0\0\0\0\0\x80", 8) + "{}", "is it a safetensors file");
  refused(std::string("\x03\0\0\0\0\0\0\0{}", 10), "cut off");
  refused(std::string(8, '\0'), "does not begin with {");
  for (const char* before : {" ", "\n", "\xEF\xBB\xBF", "["})
    refused(safetensors_of(std::string(before) + "{}", ""), "does not begin with {");
  refused(safetensors_of("{\"\xFF\":1}", ""), "not valid JSON");
  refused(safetensors_of("{", ""), "not valid JSON");
  refused(safetensors_of("[]", ""), "expected a JSON object; get the file again");
  refused(safetensors_of("{} {}", ""), "not valid JSON");
  refused("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull");

  const std::string x = entry("x", "F32", "[2]", "[0,8]");
  refused_header(x + "," + x, 8, "appears twice");
  refused_header(x, 7, "cut off");
  refused_header(x, 9, "appended");
  refused_header("\"__metadata__\":[]", 0, "__metadata__");
  refused_header("\"__metadata__\":{\"a\":1}", 0, "expected a string");
  refused_header("\"x\":1", 0, "expected an object");
  refused_header("\"x\":{}", 0, "no dtype");
  refused_header("\"x\\u001b[31m\":{}", 0, "control characters");
  for (const char* character : {"0080", "009b", "202a", "202e", "2066", "2069"})
    refused_header(lite::str("\"x\\u", character, "\":{}"), 0, "control characters");
  for (const char* character : {"00a0", "00e9", "2029", "202f", "2065", "206a"})
    refused_header(lite::str("\"x\\u", character, "\":{}"), 0, "it has no dtype");
  refused_header("\"x\":{\"dtype\":1,\"shape\":[],\"data_offsets\":[0,4]}", 4, "no dtype");
  refused_header("\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}", 4, "its shape");
  refused_header("\"x\":{\"dtype\":\"F32\",\"shape\":[]}", 4, "data_offsets");
  refused_header(entry("x", "F128", "[1]", "[0,16]"), 16, "unknown element type \"F128\"", Code::Unsupported);
  refused_header(entry("x", "f32", "[1]", "[0,4]"), 4, "unknown element type", Code::Unsupported);
  refused_header(entry("x", "F32", "[-1]", "[0,4]"), 4, "its shape");
  refused_header(entry("x", "F32", "[1.0]", "[0,4]"), 4, "its shape");
  refused_header(entry("x", "F32", "[\"1\"]", "[0,4]"), 4, "its shape");
  refused_header(entry("x", "F32", "2", "[0,8]"), 8, "its shape");
  refused_header(entry("x", "F32", "[18446744073709551615]", "[0,4]"), 4, "does not fit 64 bits");
  refused_header(entry("x", "F32", "[9223372036854775807]", "[0,4]"), 4, "too large to be real");
  refused_header(entry("x", "F32", "[4294967296,4294967296]", "[0,0]"), 0, "too large to be real");
  refused_header(entry("x", "F32", "[4294967296,4294967296,0]", "[0,0]"), 0, "too large to be real");
  refused_header(entry("x", "F32", "[3]", "[0,8]"), 8, "take 96 bits");
  refused_header(entry("x", "F4", "[3]", "[0,1]"), 1, "take 12 bits");
  refused_header(entry("x", "F32", "[2]", "[8,0]"), 8, "data_offsets");
  refused_header(entry("x", "F32", "[2]", "[0,8,8]"), 8, "data_offsets");
  refused_header(entry("x", "F32", "[2]", "[-8,0]"), 8, "data_offsets");
  refused_header(entry("x", "F32", "[2]", "[4,12]"), 12, "expected 0");
  refused_header(entry("x", "F32", "[2]", "[0,8]") + "," + entry("y", "F32", "[2]", "[12,20]"), 20,
                 "leave a hole");
  refused_header(entry("x", "F32", "[2]", "[0,8]") + "," + entry("y", "F32", "[2]", "[4,12]"), 12, "overlap");
  refused_header(entry("x", "F32", "[2]", "[0,8]") + "," + entry("y", "F32", "[2]", "[0,8]"), 8, "overlap");
  refused_header(entry("x", "U8", "[9223372036854775807]", "[0,9223372036854775807]"), 8,
                 "too large to be real");
  refused_header(entry("x", "U8", "[1152921504606846975]", "[0,1152921504606846975]"), 8, "cut off");

  std::string overlaps;
  for (int i = 0; i < 100'000; ++i)
    overlaps += (i ? "," : "") + entry(std::to_string(i), "U8", "[8]", "[0,8]");
  refused_header(overlaps, 8, "overlap");
}

TEST_CASE("safetensors: a file that shrinks while it is read is an error") {
  TempDir dir;
  const std::string path = dir / "x.safetensors";
  spill(path,
        safetensors_of("{" + entry("x", "U8", "[100000]", "[0,100000]") + "}", std::string(100'000, 'x')));
  const auto file = SafetensorsFile::open(path);
  REQUIRE(file.ok());
  REQUIRE(truncate(path.c_str(), 50'000) == 0);
  std::vector<std::byte> to(100'000);
  const lite::Status s = file->read(file->entries()[0], 0, to);
  CHECK(s.code() == Code::Corrupt);
  CHECK(s.message().find("the file ends before byte ") != std::string::npos);
}

TEST_CASE("safetensors: what is no file") {
  TempDir dir;
  CHECK(SafetensorsFile::open(dir / "none").status().code() == Code::NotFound);
  CHECK(SafetensorsFile::open(dir.path()).status().code() == Code::InvalidArgument);
  REQUIRE(mkfifo((dir / "pipe").c_str(), 0600) == 0);
  CHECK(SafetensorsFile::open(dir / "pipe").status().code() == Code::InvalidArgument);  // and does not wait
}

namespace {

constexpr const char* kIndex = "model.safetensors.index.json";

RawTensors of_bytes(std::initializer_list<std::string> names) {
  RawTensors out;
  for (const std::string& name : names) out[name] = {"U8", {2}, "xy"};
  return out;
}

std::string index_of(const std::string& map) {
  return "{\"metadata\":{\"total_size\":1},\"weight_map\":{" + map + "}}";
}

void refused_folder(const TempDir& dir, Code code, std::initializer_list<std::string> parts) {
  const auto checkpoint = Checkpoint::open(dir.path());
  REQUIRE(!checkpoint.ok());
  CHECK(checkpoint.status().code() == code);
  CHECK_MESSAGE(has_advice(checkpoint.status().message()), checkpoint.status().message());
  for (const std::string& part : parts)
    CHECK_MESSAGE(checkpoint.status().message().find(part) != std::string::npos,
                  checkpoint.status().message());
}

}  // namespace

TEST_CASE("checkpoint: one file, or shards with an index") {
  TempDir dir;
  spill(dir / "model.safetensors", safetensors_of(of_bytes({"a", "b"})));
  auto checkpoint = Checkpoint::open(dir.path());
  REQUIRE(checkpoint.ok());
  CHECK(checkpoint->tensors().size() == 2);
  CHECK(checkpoint->find("c") == nullptr);

  TempDir sharded;
  spill(sharded / "1.safetensors", safetensors_of(of_bytes({"a", "c"})));
  spill(sharded / "2.safetensors", safetensors_of(of_bytes({"b"})));
  spill(sharded / kIndex, index_of(R"("a":"1.safetensors","b":"2.safetensors","c":"1.safetensors")"));
  checkpoint = Checkpoint::open(sharded.path());
  REQUIRE_MESSAGE(checkpoint.ok(), checkpoint.status().message());
  REQUIRE(checkpoint->find("b"));
  CHECK(checkpoint->find("b")->file().path() == sharded / "2.safetensors");
  CHECK(checkpoint->find("b")->entry->name == "b");

  // As in the Hugging Face cache: links to files elsewhere.
  TempDir cache;
  std::filesystem::create_symlink(dir / "model.safetensors", cache / "model.safetensors");
  CHECK(Checkpoint::open(cache.path()).ok());
}

TEST_CASE("checkpoint: no weights, and what is there instead") {
  TempDir dir;
  refused_folder(dir, Code::NotFound, {"no model.safetensors", "get the weights again"});
  spill(dir / "pytorch_model-00001-of-00002.bin", "");
  spill(dir / "consolidated.pt", "");
  refused_folder(dir, Code::NotFound, {"consolidated.pt, pytorch_model-00001-of-00002.bin", "never opened"});
  spill(dir / "model-00001-of-00002.safetensors", "");
  refused_folder(dir, Code::NotFound, {"only model-00001-of-00002.safetensors"});
  spill(dir / "model.safetensors", "version https://git-lfs.github.com/spec/v1\n");
  refused_folder(dir, Code::Corrupt, {"model.safetensors", "git lfs pull"});
  std::filesystem::remove(dir / "model.safetensors");
  std::filesystem::create_symlink(dir / "gone", dir / "model.safetensors");
  refused_folder(dir, Code::NotFound, {"model.safetensors: it is a link to ", ", and nothing is there"});
  spill(dir / kIndex, "{}");
  refused_folder(dir, Code::Corrupt, {"both model.safetensors and model.safetensors.index.json"});
}

TEST_CASE("checkpoint: index and shards must agree") {
  TempDir dir;
  spill(dir / kIndex, "{");
  refused_folder(dir, Code::Corrupt, {kIndex, "not valid JSON"});
  spill(dir / kIndex, "version https://git-lfs.github.com/spec/v1\n");
  refused_folder(dir, Code::Corrupt, {"git lfs pull"});
  spill(dir / kIndex, "{\"weight_map\":[]}");
  refused_folder(dir, Code::Corrupt, {"no object \"weight_map\""});
  spill(dir / kIndex, index_of(R"("a":"1.safetensors","a":"1.safetensors")"));
  refused_folder(dir, Code::Corrupt, {"appears twice"});
  for (const char* bad : {"../1.safetensors", "/etc/1.safetensors", "a/1.safetensors", "..", "", "model.bin",
                          "a\\\\1.safetensors"}) {
    CAPTURE(bad);
    spill(dir / kIndex, index_of(std::string("\"a\":\"") + bad + "\""));
    refused_folder(dir, Code::Corrupt, {"\"a\": got shard", "of the same folder"});
  }
  spill(dir / kIndex, index_of("\"a\":7"));
  refused_folder(dir, Code::Corrupt, {"got shard 7"});

  const std::string map = R"("a":"1.safetensors","b":"2.safetensors","c":"3.safetensors")";
  spill(dir / kIndex, index_of(map));
  spill(dir / "2.safetensors", safetensors_of(of_bytes({"b"})));
  refused_folder(dir, Code::NotFound, {"2 of 3 shards", "1.safetensors, 3.safetensors"});
  spill(dir / "1.safetensors", safetensors_of(of_bytes({"a"})));
  spill(dir / "3.safetensors", safetensors_of(of_bytes({"c"})));
  CHECK(Checkpoint::open(dir.path()).ok());

  const std::string whole = slurp(dir / "3.safetensors");
  spill(dir / "3.safetensors", whole.substr(0, whole.size() - 1));
  refused_folder(dir, Code::Corrupt, {"3.safetensors", "got 1 bytes of data, expected 2", "cut off"});
  spill(dir / "2.safetensors", "");
  refused_folder(dir, Code::Corrupt, {"2.safetensors: got 0 bytes", "also bad: 3.safetensors"});
  spill(dir / "3.safetensors", whole);

  spill(dir / "2.safetensors", safetensors_of(of_bytes({"x"})));
  refused_folder(dir, Code::Corrupt, {"names 1 tensors that are not in their shard: \"b\" in 2.safetensors"});
  spill(dir / "2.safetensors", safetensors_of(of_bytes({"b", "x"})));
  refused_folder(dir, Code::Corrupt, {"does not name 1 tensors of its shards: x"});
  spill(dir / "2.safetensors", safetensors_of(of_bytes({"b", "a"})));
  refused_folder(dir, Code::Corrupt, {"\"a\" is both in", "1.safetensors", "2.safetensors"});
  spill(dir / "1.safetensors", safetensors_of(of_bytes({"b"})));
  spill(dir / "2.safetensors", safetensors_of(of_bytes({"a"})));
  refused_folder(dir, Code::Corrupt, {"names 2 tensors that are not in their shard: \"a\" in 1.safetensors"});
}

TEST_CASE("checkpoint: long lists are cut") {
  CHECK(list_names({}) == "");
  CHECK(list_names({"a", "b"}) == "a, b");
  std::vector<std::string> names(37, "x");
  const std::string text = list_names(names);
  CHECK(std::count(text.begin(), text.end(), 'x') == 20);
  CHECK(text.ends_with(" and 17 more"));
  CHECK(list_names({"y" + std::string(200, 'x'), "b"}) == "y" + std::string(199, 'x') + "..., b");
  CHECK(list_names({std::string(199, 'x') + "\u00e9"}) == std::string(199, 'x') + "...");
}
