// Weights on their way to a GPU.
#pragma once

#include "cuda/runtime.h"

namespace lite::cuda {

// Copies pieces (Backend::upload) through two parts of pinned memory of at most `part` bytes: several threads fill one, reading
// the pages of a mapped file as they go, while the GPU empties the other. So it is as fast as the slower of disk and bus.
Status upload(int device, std::byte* to, std::span<const Piece> pieces, int64_t part = int64_t(64) << 20);

}  // namespace lite::cuda
