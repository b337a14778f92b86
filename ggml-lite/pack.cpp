// What writer and reader of a packed file have in common: limits, placement and hashes.
#include "ggml-lite/pack.h"

#include <cstddef>
#include <cstdio>
#include <cstring>

#include "ggml-lite/pack_format.h"
#include "ggml-lite/printable.h"

namespace lite {

Status PackEntry::check() const {
  LITE_TRY(pack::check_name(name));
  return check_but_name();
}

Status PackEntry::check_but_name() const {
  const auto refuse = [&](const auto&... why) { return invalid_argument("tensor \"", name, "\": ", why...); };
  if (shape.empty() || shape.size() > size_t(Tensor::kMaxRank))
    return refuse("got ", shape.size(), " dimensions, expected 1 to ", Tensor::kMaxRank);
  int64_t bytes = size_of(dtype);
  for (const int64_t n : shape) {
    if (n < 1) return refuse("got a dimension of ", n, ", expected at least 1");
    if (!checked_mul(bytes, n, &bytes) || bytes > pack::kMaxBytes)
      return refuse("it is too large to be real");
  }
  if (!scaled) return {};
  if (shape.size() != 2 || !info(dtype).is_float) return refuse("block scales belong to a float matrix");
  if (!info(scale_dtype).is_float || scale_dtype == DType::F8_E4M3)
    return refuse("got scales of type ", info(scale_dtype).name, ", expected F32, BF16 or F16");
  if (block_rows < 1 || block_cols < 1 || block_rows > INT32_MAX || block_cols > INT32_MAX)
    return refuse("got scale blocks of ", block_rows, " x ", block_cols, ", expected at least 1 x 1");
  return {};
}

int64_t PackEntry::data_bytes() const {
  int64_t bytes = size_of(dtype);
  for (const int64_t n : shape) bytes *= n;
  return bytes;
}

int64_t PackEntry::scale_bytes() const {
  if (!scaled) return 0;
  return ceil_div(shape[0], block_rows) * ceil_div(shape[1], block_cols) * size_of(scale_dtype);
}

Tensor PackEntry::view(std::byte* data, std::byte* scales) const {
  Tensor t = Tensor::of(dtype, {1});
  t.rank = int(shape.size());
  std::copy(shape.begin(), shape.end(), t.shape.begin());
  int64_t stride = size_of(dtype);
  for (int d = Tensor::kMaxRank - 1; d >= 0; --d) {
    t.stride[d] = stride;
    stride *= t.shape[d];
  }
  t.data = data;
  if (!scaled) return t;
  t.scale.data = scales;
  t.scale.dtype = scale_dtype;
  t.scale.block_rows = block_rows;
  t.scale.block_cols = block_cols;
  t.scale.row_stride = ceil_div(shape[1], block_cols) * size_of(scale_dtype);
  return t;
}

Result<int64_t> extent_bytes(const PackExtent& extent) {
  if (extent.tensors.empty()) return invalid_argument("an extent holds no tensor, expected at least one");
  int64_t end = 0;
  for (const PackEntry& entry : extent.tensors) {
    LITE_TRY(entry.check());
    auto place = pack::place_in_extent(entry, &end);
    LITE_TRY(place.status());
  }
  const int64_t needed = round_up(end, pack::kPage);
  if (extent.stride == 0) return needed;
  if (extent.stride < needed || extent.stride % pack::kPage || extent.stride > pack::kMaxBytes)
    return invalid_argument("extent of tensor \"", extent.tensors[0].name, "\": got stride ", extent.stride,
                            ", expected a multiple of ", pack::kPage, " of at least ", needed);
  return extent.stride;
}

namespace pack {
namespace {

// Length of the UTF-8 sequence at the start of `s`, 0 when it is none (RFC 3629: shortest form, no
// surrogates).
size_t utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return i < s.size() ? uint8_t(s[i]) : uint8_t(0); };
  const auto in = [&](size_t i, uint8_t low, uint8_t high) { return byte(i) >= low && byte(i) <= high; };
  const uint8_t b = byte(0);
  if (b >= 0xC2 && b <= 0xDF) return in(1, 0x80, 0xBF) ? 2 : 0;
  if (b >= 0xE0 && b <= 0xEF)
    return in(1, b == 0xE0 ? 0xA0 : 0x80, b == 0xED ? 0x9F : 0xBF) && in(2, 0x80, 0xBF) ? 3 : 0;
  if (b >= 0xF0 && b <= 0xF4)
    return in(1, b == 0xF0 ? 0x90 : 0x80, b == 0xF4 ? 0x8F : 0xBF) && in(2, 0x80, 0xBF) && in(3, 0x80, 0xBF)
               ? 4
               : 0;
  return 0;
}

}  // namespace

Status check_name(std::string_view name) {
  if (name.empty() || int64_t(name.size()) > kMaxName)
    return invalid_argument("a name has ", name.size(), " bytes, expected 1 to ", kMaxName);
  for (size_t i = 0; i < name.size();) {
    const uint8_t b = uint8_t(name[i]);
    const size_t n = b >= 0x20 && b < 0x7F ? 1 : utf8_length(name.substr(i));
    if (n == 0 || (n > 1 && control_bytes(name.substr(i)) > 0))
      return invalid_argument("a name has byte ", int(b), " at ", i, ", expected printable UTF-8");
    i += n;
  }
  return {};
}

Status check_section_name(std::string_view name) {
  LITE_TRY(check_name(name));
  if (name.find('/') != std::string_view::npos || name == "." || name == "..")
    return invalid_argument("section \"", name, "\": its name is not that of a file");
  return {};
}

namespace {

std::string part_suffix(uint32_t index, uint32_t count) {
  char text[48];
  std::snprintf(text, sizeof text, "-%05u-of-%05u", index + 1, count);
  return text;
}

}  // namespace

std::string part_path(const std::string& path, uint32_t index, uint32_t count) {
  if (count == 1) return path;
  const bool ending = path.ends_with(kEnding);
  std::string name = ending ? path.substr(0, path.size() - kEnding.size()) : path;
  return name + part_suffix(index, count) + std::string(ending ? kEnding : "");
}

Result<std::string> base_path(const std::string& path, uint32_t index, uint32_t count) {
  if (count == 1) return path;
  const std::string_view ending = path.ends_with(kEnding) ? kEnding : "";
  std::string name = path.substr(0, path.size() - ending.size());
  const std::string suffix = part_suffix(index, count);
  if (!name.ends_with(suffix))
    return corrupt("it is file ", index + 1, " of ", count, " of a model, so its name must end in \"", suffix,
                   ending, "\": the others are found by it; rename it");
  name.resize(name.size() - suffix.size());
  return name + std::string(ending);
}

void place_parts(Header* header) {
  uint64_t end = sizeof(Header);
  for (Part* part : {&header->json, &header->names, &header->tensors, &header->extents, &header->sections,
                     &header->section_data}) {
    part->offset = uint64_t(round_up(int64_t(end), kAlign));
    end = part->offset + part->bytes;
  }
  header->data_offset = uint64_t(round_up(int64_t(end), kPage));
}

Result<Place> place_in_extent(const PackEntry& entry, int64_t* end) {
  Place place{round_up(*end, kAlign), 0};
  *end = place.data_offset + entry.data_bytes();
  if (entry.scaled) {
    place.scale_offset = round_up(*end, kAlign);
    *end = place.scale_offset + entry.scale_bytes();
  }
  if (*end > kMaxBytes)
    return invalid_argument("extent of tensor \"", entry.name, "\": it is too large to be real");
  return place;
}

uint64_t index_checksum(std::span<const std::byte> index) {
  constexpr size_t at = offsetof(Header, index_checksum);
  constexpr uint64_t zero = 0;
  Hash hash;
  hash.add(index.data(), at);
  hash.add(&zero, sizeof zero);
  hash.add(index.data() + at + sizeof zero, index.size() - at - sizeof zero);
  return hash.digest64();
}

std::array<uint8_t, 16> hash_model(std::string_view json, std::span<const std::byte> tensors,
                                   std::string_view tensor_names, std::span<const std::byte> extents) {
  Hash hash;
  hash.add(json.data(), json.size());
  hash.add(tensors.data(), tensors.size());
  hash.add(tensor_names.data(), tensor_names.size());
  for (size_t at = 0; at < extents.size(); at += sizeof(ExtentRecord)) {
    // Where an extent lies depends on the size of the sections; what it holds does not.
    constexpr size_t from = offsetof(ExtentRecord, bytes);
    hash.add(extents.data() + at + from, sizeof(ExtentRecord) - from);
  }
  return hash.digest128();
}

}  // namespace pack
}  // namespace lite
