// Comparing a packed file's data with its checksums. Workers take one extent after the other in the order of the
// file and read it from front to back, so that a disk sees a few sequential readers; the calling thread waits,
// and reports.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "ggml-lite/pack.h"
#include "ggml-lite/pack_format.h"

namespace lite {

namespace {

constexpr size_t kPiece = size_t(1) << 20;  // bytes read at once, by each worker: stays in its cache
constexpr unsigned kMostWorkers = 4;        // hashing by so many is faster than disks are
constexpr size_t kMostNames = 6;            // tensors named of one extent

// "extent 3 ("a", "b")"
std::string extent_name(const PackFile& file, int32_t extent) {
  const std::vector<std::string_view> tensors = file.tensors_of_extent(extent);
  std::string names;
  for (size_t i = 0; i < std::min(tensors.size(), kMostNames); ++i)
    names += str(i ? ", \"" : "\"", tensors[i], "\"");
  if (tensors.size() > kMostNames) names += str(" and ", tensors.size() - kMostNames, " more");
  return str("extent ", extent, " (", names, ")");
}

class Verification {
 public:
  explicit Verification(const PackFile& file) : file_(file) {
    for (const PackFile::ExtentInfo& e : file.extents()) {
      total_ += e.bytes;
      largest_ = std::max(largest_, size_t(e.bytes));
    }
  }

  Status run(const std::function<bool(int64_t, int64_t)>& progress,
             const std::function<void(const std::string&)>& damage) {
    std::vector<std::jthread> workers;  // stopped and joined wherever this function ends
    const size_t wanted = std::clamp(std::thread::hardware_concurrency(), 1u, kMostWorkers);
    workers.reserve(wanted);
    try {
      while (workers.size() < wanted)
        workers.emplace_back([this](const std::stop_token& stop) { work(stop); });
    } catch (const std::system_error&) {
      if (workers.empty()) return out_of_memory("no thread could be started");
    }

    std::unique_lock lock(mutex_);
    for (bool done = false; !done;) {
      changed_.wait_for(lock, std::chrono::milliseconds(50), [&] { return finished_ == workers.size(); });
      done = finished_ == workers.size();
      const std::vector<std::string> lines = std::move(lines_);
      lines_.clear();
      lock.unlock();
      for (const std::string& line : lines) {
        if (damaged_++ == 0) first_ = line;
        if (damage) damage(line);
      }
      if (progress && !progress(bytes_, total_)) return {Code::Cancelled, "cancelled"};
      lock.lock();
    }
    if (out_of_memory_) return out_of_memory("out of memory");
    if (damaged_ == 0) return {};
    return corrupt(
        damaged_ == 1 ? "" : str(damaged_, " of ", file_.extents().size(), " extents, one of them: "), first_,
        "; the file is damaged; get it or convert it again");
  }

 private:
  // No exception may leave a thread.
  void work(const std::stop_token& stop) noexcept {
    try {
      std::vector<std::byte> buffer(std::min(kPiece, largest_));
      for (size_t i = next_++; i < file_.extents().size() && !stop.stop_requested(); i = next_++) {
        std::string line = compare(int32_t(i), buffer, stop);
        if (line.empty()) continue;
        const std::lock_guard lock(mutex_);
        lines_.push_back(std::move(line));
      }
    } catch (const std::bad_alloc&) {
      out_of_memory_ = true;
      next_ = file_.extents().size();
    }
    const std::lock_guard lock(mutex_);
    ++finished_;
    changed_.notify_one();
  }

  // What is wrong with an extent; empty when nothing is, or when the work is to stop.
  std::string compare(int32_t extent, std::span<std::byte> buffer, const std::stop_token& stop) {
    const PackFile::ExtentInfo& e = file_.extents()[size_t(extent)];
    Hash hash;
    for (int64_t at = 0; at < e.bytes; at += int64_t(buffer.size())) {
      if (stop.stop_requested()) return {};
      const auto piece = buffer.first(size_t(std::min(int64_t(buffer.size()), e.bytes - at)));
      if (const Status s = file_.read(extent, at, piece); !s.ok()) {
        bytes_ += e.bytes - at;
        return str(name(extent), ": ", s.message());
      }
      hash.add(piece.data(), piece.size());
      bytes_ += int64_t(piece.size());
    }
    const uint64_t checksum = hash.digest64();
    if (checksum == e.checksum) return {};
    return str(name(extent), ": got checksum ", std::hex, checksum, ", expected ", e.checksum);
  }

  // Of several files, which one is in the name.
  std::string name(int32_t extent) const {
    const std::string in_model = extent_name(file_, extent);
    if (file_.parts().size() == 1) return in_model;
    return str(file_.parts()[file_.extents()[size_t(extent)].file].path, ": ", in_model);
  }

  const PackFile& file_;
  int64_t total_ = 0;
  size_t largest_ = 0;  // bytes of an extent
  size_t damaged_ = 0;  // extents reported
  std::string first_;   // of their lines

  std::atomic<size_t> next_ = 0;  // extent to be compared
  std::atomic<int64_t> bytes_ = 0;
  std::atomic<bool> out_of_memory_ = false;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  size_t finished_ = 0;             // workers
  std::vector<std::string> lines_;  // not yet reported
};

}  // namespace

Status PackFile::verify(const std::function<bool(int64_t, int64_t)>& progress,
                        const std::function<void(const std::string&)>& damage) const {
  return Verification(*this).run(progress, damage).in("verify " + path());
}

}  // namespace lite
