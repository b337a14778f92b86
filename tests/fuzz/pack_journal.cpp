// ggml-lite/pack_journal: the journal that a killed writer left behind, for the next one to go on from. The harness puts
// right what no random change would hit: the head's check, layout and key (bit 0 of the first byte), each record's
// check (bit 1). The partial file is there in its full size.
#include "ggml-lite/pack_journal.h"

#include <cstring>

#include "ggml-lite/hash.h"
#include "ggml-lite/pack.h"
#include "tests/fuzz/fuzz.h"

using namespace lite;

namespace {

constexpr size_t kHead = 48, kRecord = 24, kCheck = 40;  // docs/format.md
constexpr size_t kExtents = 4;

Result<PackWriter> start_writer(const std::string& path) {
  std::vector<PackExtent> extents(kExtents);
  for (size_t i = 0; i < kExtents; ++i) {
    PackEntry& e = extents[i].tensors.emplace_back();
    e.name = str("t", i);
    e.shape = {int64_t(i) * 900 + 1};
  }
  PackOptions options;
  options.resume_key = "key";
  return PackWriter::create(path, Json(Json::Object()), {}, extents, {}, options);
}

uint64_t hash_of(std::string_view bytes) {
  Hash hash;
  hash.add(bytes.data(), bytes.size());
  return hash.digest64();
}

void put_check(std::string* bytes, size_t from, size_t n, std::string_view more = {}) {
  const uint64_t check = hash_of(std::string(bytes->substr(from, n)).append(more));
  std::memcpy(bytes->data() + from + n, &check, sizeof check);
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const TempDir folder(fuzz::kMemory);
  static const std::string path = folder.path() + "/m", journal = path + ".journal";
  static std::string partial;
  static const std::string own = [] {
    fuzz::check(start_writer(path).status());
    partial = slurp(path + ".partial");
    partial.resize(5 * 4096);
    return slurp(journal);
  }();
  if (size == 0) return 0;
  std::string bytes(fuzz::text_of(data + 1, size - 1));
  if (data[0] & 1) bytes = own + bytes;
  uint64_t key_bytes = 0;
  if (bytes.size() >= kHead) std::memcpy(&key_bytes, bytes.data() + 32, sizeof key_bytes);
  if (data[0] & 2 && bytes.size() >= kHead && key_bytes <= bytes.size() - kHead) {
    put_check(&bytes, 0, kCheck, std::string_view(bytes).substr(kHead, key_bytes));
    for (size_t at = kHead + key_bytes; bytes.size() - at >= kRecord; at += kRecord)
      put_check(&bytes, at, kRecord - sizeof(uint64_t));
  }
  spill(journal, bytes);

  const auto content = pack::Journal::read(journal);
  if (content) {
    fuzz::require(content->bytes <= int64_t(bytes.size()), "a journal is no longer than its file");
    fuzz::require(content->bytes == int64_t(kHead + content->key.size() + kRecord * content->records.size()),
                  "a journal is its head, its key and its records");
    fuzz::require(unfinished_key(path) == content->key, "the key is what the journal says");
  }
  if (content && content->file_count > 8) return 0;  // so many files are only looked for
  const auto named = finish_naming(path);
  fuzz::check(named.status());
  spill(path + ".partial", partial);
  const auto writer = start_writer(path);
  fuzz::check(writer.status());
  if (!writer.ok()) {
    const bool foreign = !pack::Journal::kMagic.starts_with(std::string_view(bytes).substr(0, 8));
    fuzz::require(
        foreign || (content ? content->only_copy : pack::Journal::is_unreadable(journal)),
        "only the journal of a sole copy, an unreadable one or somebody else's file stops a writer");
    return 0;
  }
  int64_t durable = 0;
  for (size_t i = 0; i < kExtents; ++i)
    durable += writer->finished(i) ? (i * 900 * 4 + 4 + 4095) / 4096 * 4096 : 0;
  fuzz::require(writer->durable_bytes() == durable, "each extent is counted once");
  std::filesystem::remove(path);
  return 0;
}
