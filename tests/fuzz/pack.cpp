// ggml-lite/pack: the index of a packed file. The harness puts right what no random change would hit: lengths and
// places (bit 0 of the first byte), the two hashes (bit 1). The data, zeros, is as long as the extents say (up to 1 MiB).
#include "ggml-lite/pack.h"

#include <algorithm>
#include <cstring>

#include "ggml-lite/pack_format.h"
#include "tests/fuzz/fuzz.h"

using namespace lite;

namespace {

template <class Record>
Record read(const std::string& bytes, size_t at) {
  Record r = {};
  if (at <= bytes.size() && bytes.size() - at >= sizeof r) std::memcpy(&r, bytes.data() + at, sizeof r);
  return r;
}

// Whether every part lies within the index, so that it may be hashed and walked.
bool parts_fit(const pack::Header& h, size_t size) {
  for (const pack::Part& p : {h.json, h.names, h.tensors, h.extents, h.sections, h.section_data})
    if (p.offset > size || p.bytes > size - p.offset) return false;
  return h.data_offset <= size;
}

void place(pack::Header* h, std::string* bytes) {
  std::memcpy(h->magic, pack::kMagic.data(), sizeof h->magic);
  h->header_bytes = sizeof *h;
  for (pack::Part* p : {&h->json, &h->names, &h->tensors, &h->extents, &h->sections, &h->section_data})
    p->bytes = std::min<uint64_t>(p->bytes, 1 << 16);
  pack::place_parts(h);
  bytes->resize(std::max<size_t>(bytes->size(), h->data_offset));
}

void hash(pack::Header* h, std::string* bytes) {
  const auto all = std::as_bytes(std::span(*bytes));
  const std::string_view text = *bytes;
  size_t names = 0;
  for (size_t i = 0; i < h->tensors.bytes / sizeof(pack::TensorRecord); ++i)
    names += read<pack::TensorRecord>(*bytes, h->tensors.offset + i * sizeof(pack::TensorRecord)).name_bytes;
  const uint64_t whole_records = h->extents.bytes / sizeof(pack::ExtentRecord) * sizeof(pack::ExtentRecord);
  const auto id = pack::hash_model(text.substr(h->json.offset, h->json.bytes),
                                   all.subspan(h->tensors.offset, h->tensors.bytes),
                                   text.substr(h->names.offset, std::min<uint64_t>(names, h->names.bytes)),
                                   all.subspan(h->extents.offset, whole_records));
  std::copy(id.begin(), id.end(), h->model_id);
  std::memcpy(bytes->data(), h, sizeof *h);
  if (h->data_offset < sizeof *h) return;
  h->index_checksum = pack::index_checksum(all.first(h->data_offset));
  std::memcpy(bytes->data(), h, sizeof *h);
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::MemoryFile memory;
  if (size < 1 + sizeof(pack::Header)) return 0;
  std::string bytes(fuzz::text_of(data + 1, size - 1));
  auto header = read<pack::Header>(bytes, 0);
  if (data[0] & 1) place(&header, &bytes);
  size_t length = bytes.size();
  if (parts_fit(header, bytes.size())) {
    uint64_t end = header.data_offset;
    for (size_t i = 0; i < header.extents.bytes / sizeof(pack::ExtentRecord); ++i)
      end += std::min<uint64_t>(
          read<pack::ExtentRecord>(bytes, header.extents.offset + i * sizeof(pack::ExtentRecord)).bytes,
          1 << 20);
    length = std::max<size_t>(length, std::min<uint64_t>(end, 1 << 20));
    if (data[0] & 1) header.file_bytes = length;
    std::memcpy(bytes.data(), &header, sizeof header);
    if (data[0] & 2) hash(&header, &bytes);
  }
  memory.set(bytes, length);

  const auto file = PackFile::open(memory.path());
  fuzz::check(file.status());
  if (!file.ok()) return 0;
  for (const PackFile::Item& item : file->items()) {
    fuzz::touch(item.tensor.data, item.entry.data_bytes());
    if (item.entry.scaled) fuzz::touch(item.tensor.scale.data, item.entry.scale_bytes());
    fuzz::require(file->find(item.entry.name) == &item, "every tensor is found by its name");
  }
  for (const std::string& name : file->section_names()) {
    const std::string_view* section = file->section(name);
    fuzz::require(section != nullptr, "every section is found by its name");
    fuzz::touch(reinterpret_cast<const std::byte*>(section->data()), int64_t(section->size()));
  }
  for (size_t i = 0; i < file->extents().size(); ++i)
    fuzz::require(!file->tensors_of_extent(int32_t(i)).empty(), "every extent holds a tensor");
  return 0;
}
