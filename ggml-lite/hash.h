// A running XXH3 hash: the checksums of every file that the project writes.
#pragma once

#define XXH_STATIC_LINKING_ONLY  // the running state as a value
#include <xxhash.h>
#include <array>
#include <cstddef>
#include <cstdint>

namespace lite {

class Hash {
 public:
  Hash() { reset(); }
  void reset() { XXH3_128bits_reset(&state_); }
  void add(const void* bytes, size_t n) { XXH3_128bits_update(&state_, bytes, n); }
  uint64_t digest64() const { return XXH3_64bits_digest(&state_); }
  std::array<uint8_t, 16> digest128() const {  // canonical: the bytes that xxh128sum prints
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state_));
    return std::to_array(canonical.digest);
  }

 private:
  XXH3_state_t state_;  // one state serves both widths
};

}  // namespace lite
