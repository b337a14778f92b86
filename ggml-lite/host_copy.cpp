#include "ggml-lite/host_copy.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "ggml-lite/host.h"
#include "ggml-lite/machine.h"

namespace lite {

Result<HostCopy> HostCopy::read(const PackFile& file, std::span<const int> processors,
                                const std::function<bool(int64_t done, int64_t total)>& progress) {
  const std::vector<PackFile::ExtentInfo>& extents = file.extents();
  int64_t total = 0;
  std::vector<int64_t> place;
  for (const PackFile::ExtentInfo& extent : extents) {
    place.push_back(total);
    total += round_up(extent.bytes, 4096);
  }
  if (const int64_t limit = memory_limit(); total > limit)
    return out_of_memory("copy ", file.path(), ": its weights take ", total,
                         " bytes, and this process may use ", limit,
                         "; leave them in the file, which is read as it is needed");
  HostCopy copy;
  LITE_ASSIGN(copy.memory_, allocate_host(total));
  madvise(copy.memory_.get(), size_t(total), MADV_HUGEPAGE);  // refused: more misses, nothing else

  // Where an extent is mapped: its first tensor begins it.
  std::vector<const std::byte*> mapped(extents.size());
  struct Piece {
    int32_t extent;
    int64_t from, bytes;
  };
  std::vector<Piece> pieces;
  for (const PackFile::Item& item : file.items())
    if (item.alias_of < 0 && (!mapped[item.extent] || item.tensor.data < mapped[item.extent]))
      mapped[item.extent] = item.tensor.data;
  for (const PackFile::Item& item : file.items()) {
    if (item.alias_of >= 0) continue;
    const auto piece = [&](const std::byte* data, int64_t bytes) {
      if (bytes) pieces.push_back({item.extent, data - mapped[item.extent], bytes});
    };
    piece(item.tensor.data, item.entry.data_bytes());
    piece(item.tensor.scale.data, item.entry.scale_bytes());
  }
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return std::pair(a.extent, a.from) < std::pair(b.extent, b.from);
  });
  for (size_t e = 0; e < extents.size(); ++e)
    copy.moved_.push_back(copy.memory_.get() + place[e] - mapped[e]);

  std::atomic<int64_t> done = 0;
  std::atomic<size_t> running = processors.size();
  std::atomic<bool> stop = false;
  std::mutex failing;
  Status failed;
  const auto read_share = [&](size_t i) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processors[i], &one);
    sched_setaffinity(0, sizeof one, &one);  // refused: pages may lie elsewhere
    constexpr int64_t kMost = int64_t(4) << 20, kPage = 4096;
    const auto border = [&](const Piece& p, size_t share) {  // whole pages, as far as they go
      return std::min(p.bytes, round_up(p.bytes * int64_t(share) / int64_t(processors.size()), kPage));
    };
    for (const Piece& p : pieces)
      for (int64_t at = border(p, i), end = border(p, i + 1); at < end && !stop;) {
        const int64_t n = std::min(kMost, end - at);
        std::byte* const to = copy.memory_.get() + place[p.extent] + p.from + at;
        const Status status = file.read(p.extent, p.from + at, {to, size_t(n)});
        if (!status.ok()) {
          const std::lock_guard lock(failing);
          failed = status;
          stop = true;
        }
        at += n;
        done += n;
      }
    --running;
    running.notify_one();
  };
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < processors.size(); ++i) threads.emplace_back(read_share, i);
  bool cancelled = false;
  for (size_t left; (left = running) > 0;) {
    if (!progress) {
      running.wait(left);
      continue;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (!progress(std::min(done.load(), total), total)) cancelled = stop = true;
  }
  threads.clear();
  LITE_TRY(failed.in("copy " + file.path()));
  if (progress && !cancelled) cancelled = !progress(total, total);
  if (cancelled) return Status(Code::Cancelled, "copy " + file.path() + ": cancelled");
  return copy;
}

Tensor HostCopy::tensor(const PackFile::Item& item) const {
  Tensor t = item.tensor;
  const std::ptrdiff_t moved = moved_[size_t(item.extent)];
  t.data += moved;
  if (t.scale.data) t.scale.data += moved;
  return t;
}

}  // namespace lite
