// convert/safetensors: the header of a shard. The first byte says whether the rest is a whole file, or a header to
// which the harness adds its length and as many bytes of data as it asks for (up to 1 MiB).
#include "convert/safetensors.h"

#include <algorithm>

#include "ggml-lite/json.h"
#include "tests/fuzz/fuzz.h"

namespace {

// The largest number in any data_offsets.
size_t data_length(std::string_view header) {
  const auto json = lite::Json::parse(header, "header");
  int64_t end = 0;
  if (json.ok() && json->object())
    for (const auto& [name, value] : *json->object())
      if (const lite::Json* offsets = value.find("data_offsets"); offsets && offsets->array())
        for (const lite::Json& offset : *offsets->array())
          if (offset.integer()) end = std::max(end, *offset.integer());
  return size_t(std::min<int64_t>(end, 1 << 20));
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::MemoryFile file;
  if (size == 0) return 0;
  const std::string_view text = fuzz::text_of(data + 1, size - 1);
  if (data[0] & 1) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += char(text.size() >> (8 * i));
    bytes += text;
    file.set(bytes, bytes.size() + data_length(text));
  } else {
    file.set(text, text.size());
  }
  const auto shard = dsv3::SafetensorsFile::open(file.path());
  fuzz::check(shard.status());
  if (!shard.ok()) return 0;
  std::byte last;
  for (const dsv3::SafetensorsEntry& e : shard->entries()) {
    fuzz::require(e.offset >= 8 && e.bytes >= 0, "an entry lies in the file");
    if (e.bytes > 0) fuzz::require(shard->read(e, e.bytes - 1, {&last, 1}).ok(), "every byte can be read");
    fuzz::require(!shard->read(e, e.bytes, {&last, 1}).ok(),
                  "nothing beyond an entry can be read through it");
  }
  return 0;
}
