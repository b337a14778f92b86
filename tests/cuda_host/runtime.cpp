// The twin of cuda/runtime.cpp: two GPUs whose memory is the host's.
#include "cuda/runtime.h"

#include <cstring>

#include "ggml-lite/host.h"
#include "ggml-lite/machine.h"
#include "tests/cuda_host/queue.h"

namespace lite::cuda {

constexpr int kDevices = 2;

Result<int> device_count() {
  return kDevices;
}
Result<DeviceInfo> device_info(int device) {
  if (device < 0 || device >= kDevices)
    return not_found("GPU ", device, ": this machine has ", kDevices, ", numbered from 0");
  return DeviceInfo{"the host's processor", 8, 0, memory_limit()};
}

static std::atomic<int64_t> allocated_bytes[kDevices];

int64_t host::allocated(int device) {
  return allocated_bytes[device];
}

Result<Buffer> allocate(int device, int64_t bytes) {
  allocated_bytes[device] += bytes;
  return allocate_host(bytes);
}
Result<Buffer> allocate_pinned(int, int64_t bytes) {
  return allocate_host(bytes);
}
Status copy(int, std::byte* to, const std::byte* from, int64_t bytes) {
  std::memcpy(to, from, size_t(bytes));
  return {};
}

Result<Stream> Stream::create(int device) {
  return Stream(device, std::make_shared<host::Queue>());
}

Status Stream::begin_recording() {
  host::queue_of(*this).begin_recording();
  return {};
}
Result<Recording> Stream::end_recording() {
  return Recording(host::queue_of(*this).end_recording());
}
Status Stream::replay(const Recording& recording) {
  host::Queue::replay(std::static_pointer_cast<host::Recorded>(recording));
  return {};
}
Result<Mark> Stream::mark() {
  const auto passed = std::make_shared<host::Passed>();
  passed->recorded = host::queue_of(*this).recorded();
  host::queue_of(*this).give([passed] {
    ++passed->times;
    passed->times.notify_all();
  });
  return Mark(passed);
}
// Every replay passes the mark once, and waits for it once.
Status Stream::await(const Mark& mark) {
  const auto passed = std::static_pointer_cast<host::Passed>(mark);
  host::Queue& queue = host::queue_of(*this);
  if (auto recorded = passed->recorded.lock()) queue.record_with(std::move(recorded));
  queue.give([passed, waits = std::make_shared<int64_t>(0)] {
    ++*waits;
    for (int64_t times = passed->times; times < *waits; times = passed->times) passed->times.wait(times);
  });
  return {};
}
Status Stream::copy(std::byte* to, const std::byte* from, int64_t bytes) {
  host::queue_of(*this).give([=] { std::memcpy(to, from, size_t(bytes)); });
  return {};
}
Status Stream::poll() {
  return {};
}
Status Stream::wait() {
  host::queue_of(*this).wait();
  return {};
}

}  // namespace lite::cuda
