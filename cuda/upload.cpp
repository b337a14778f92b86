#include "cuda/upload.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "ggml-lite/machine.h"

namespace lite::cuda {
namespace {

constexpr int64_t kMostThreads = 8;

// What belongs in [first, end) of the device's memory, to `to`.
void fill(std::byte* to, int64_t first, int64_t end, std::span<const Piece> pieces) {
  auto p = std::partition_point(pieces.begin(), pieces.end(),
                                [&](const Piece& piece) { return piece.place + piece.bytes <= first; });
  for (; p != pieces.end() && p->place < end; ++p) {
    const int64_t from = std::max(first, p->place), until = std::min(end, p->place + p->bytes);
    std::memcpy(to + (from - first), p->from + (from - p->place), size_t(until - from));
  }
}

void fill_by_threads(std::byte* to, int64_t first, int64_t end, std::span<const Piece> pieces) {
  const int64_t n = std::clamp<int64_t>(int64_t(core_processors().size()), 1, kMostThreads);
  std::vector<std::jthread> threads;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t mine = (end - first) * i / n, next = (end - first) * (i + 1) / n;
    threads.emplace_back([=] { fill(to + mine, first + mine, first + next, pieces); });
  }
}

}  // namespace

Status upload(int device, std::byte* to, std::span<const Piece> pieces, int64_t part) {
  if (pieces.empty()) return {};
  const int64_t all = pieces.back().place + pieces.back().bytes;
  part = std::min(part, all);
  struct Half {
    Buffer memory;
    Stream stream;  // what it was given last has left the memory when it has been waited for
  };
  std::vector<Half> halves;
  for (int i = 0; i < 2; ++i) {
    LITE_ASSIGN(Buffer memory, allocate_pinned(device, part));
    LITE_ASSIGN(Stream stream, Stream::create(device));
    halves.push_back({std::move(memory), std::move(stream)});
  }
  for (int64_t first = 0, turn = 0; first < all; first += part, ++turn) {
    Half& half = halves[size_t(turn % 2)];
    const int64_t end = std::min(first + part, all);
    LITE_TRY(half.stream.wait());
    fill_by_threads(half.memory.get(), first, end, pieces);
    LITE_TRY(half.stream.copy(to + first, half.memory.get(), end - first));
  }
  for (Half& half : halves) LITE_TRY(half.stream.wait());
  return {};
}

}  // namespace lite::cuda
