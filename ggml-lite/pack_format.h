// The bytes of a packed file's index and the rules its writer and its reader share; docs/format.md in C++.
// Internal to pack*.cpp.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "ggml-lite/hash.h"
#include "ggml-lite/pack.h"

namespace lite::pack {

static_assert(std::endian::native == std::endian::little,
              "the file is little-endian, and so are these structs");

constexpr std::string_view kMagic = "DSV3PACK";
constexpr std::string_view kEnding = ".dsv3";  // of a file's name; a number goes before it
constexpr uint32_t kVersion = 1;
constexpr int64_t kPage = 4096;     // data extents lie at multiples of this
constexpr int64_t kAlign = 64;      // index parts, sections, and parts of an extent at multiples of this
constexpr int64_t kMaxName = 1024;  // bytes of a tensor's or section's name
constexpr int64_t kMaxBytes = 1ll << 56;  // of a file and of anything in it: sums of a few never wrap
constexpr int64_t kMaxIndex = 1ll << 32;  // bytes of the index
constexpr uint32_t kMaxFiles = 99999;     // of one model
constexpr uint32_t kNoAlias = 0xFFFFFFFF;
constexpr uint8_t kScaled = 1;  // TensorRecord::flags

struct Part {
  uint64_t offset, bytes;
};

struct Header {
  char magic[8];
  uint32_t version, header_bytes;
  uint64_t file_bytes;
  uint64_t data_offset;
  uint64_t index_checksum;  // XXH3-64 of [0, data_offset) with this field zero
  uint8_t model_id[16];     // XXH3-128, canonical (big-endian) bytes
  uint32_t file_index, file_count;
  Part json, names, tensors, extents, sections, section_data;  // in this order in the file
  uint8_t reserved[96];
};
static_assert(sizeof(Header) == 256);

struct TensorRecord {
  uint64_t name_offset;  // in the names part
  uint32_t name_bytes;
  uint8_t dtype, rank, flags, scale_dtype;
  uint64_t shape[4];  // 1 beyond rank
  uint32_t block_rows, block_cols;
  uint32_t extent, alias_of;
  uint64_t data_offset, data_bytes, scale_offset, scale_bytes;  // offsets in the extent
};
static_assert(sizeof(TensorRecord) == 96);

struct ExtentRecord {
  uint32_t file, reserved;
  uint64_t offset, bytes, checksum;
};
static_assert(sizeof(ExtentRecord) == 32);

struct SectionRecord {
  uint64_t name_offset;  // in the names part, after the tensors' names
  uint32_t name_bytes, reserved;
  uint64_t offset, bytes;  // in the file
};
static_assert(sizeof(SectionRecord) == 32);

// 1..1024 bytes of UTF-8 without control characters, so that a name can be printed as it is.
Status check_name(std::string_view name);
// Also a plain file name: no '/', not "." or "..".
Status check_section_name(std::string_view name);

// The name of file `index` of `count`: "m-00002-of-00004.dsv3" for "m.dsv3"; that itself when it is one file.
std::string part_path(const std::string& path, uint32_t index, uint32_t count);
// The other way round: what part_path() made `path` from; Corrupt when it cannot have been.
Result<std::string> base_path(const std::string& path, uint32_t index, uint32_t count);

// Sets the offset of every part and data_offset from the parts' sizes. The caller has bounded the sizes.
void place_parts(Header* header);

// Where a tensor's parts lie in an extent whose parts so far end at *end; moves *end on.
struct Place {
  int64_t data_offset, scale_offset;  // scale_offset is 0 when there are no scales
};
Result<Place> place_in_extent(const PackEntry& entry, int64_t* end);

// XXH3-64 of the index with the checksum field taken as zero.
uint64_t index_checksum(std::span<const std::byte> index);
// XXH3-128 of JSON block, tensor table, names of the tensors, and each extent's length and checksum.
std::array<uint8_t, 16> hash_model(std::string_view json, std::span<const std::byte> tensors,
                                   std::string_view tensor_names, std::span<const std::byte> extents);

}  // namespace lite::pack
