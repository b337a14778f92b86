// The few calls of the CUDA runtime that the backend makes. runtime.cpp has them over the CUDA runtime; tests/cuda_host has
// a twin of them on the host's processor, for machines without a GPU.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "ggml-lite/backend.h"
#include "ggml-lite/status.h"

namespace lite::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int64_t memory = 0;        // bytes
};

// While a GPU waits for the host in the middle of a step, the driver cannot take or give back memory, make a stream or load
// kernels; and while a thread waits for it to do so, no other can look at the GPU. So whoever lets a GPU wait holds this, and so does
// whoever does any of those, of all threads of the process. A thread may take it again.
inline std::unique_lock<std::recursive_mutex> alone_with_driver() {
  static std::recursive_mutex mutex;
  return std::unique_lock(mutex);
}

// How many GPUs there are. Device: none, or their driver cannot be used; with the driver's reason.
Result<int> device_count();
// Errors: those, and NotFound: not that many.
Result<DeviceInfo> device_info(int device);

Result<Buffer> allocate(int device, int64_t bytes);  // zeroed; OutOfMemory with the bytes free
// Zeroed memory of the host that every GPU reads and writes at the same address.
Result<Buffer> allocate_pinned(int device, int64_t bytes);
// Returns when done; either side may be this device's memory or the host's.
Status copy(int device, std::byte* to, const std::byte* from, int64_t bytes);

// What has been recorded on a stream, ready to be run any number of times.
using Recording = std::shared_ptr<void>;
// How far a stream has come.
using Mark = std::shared_ptr<void>;

// Work of one device, done in the order in which it was given. launch() of device.h adds kernels.
class Stream {
 public:
  static Result<Stream> create(int device);

  // Between the two, what is given to the stream is recorded instead of run.
  Status begin_recording();
  Result<Recording> end_recording();

  // What is given to this stream from now on begins when all has been done that the other was given so far. While the other
  // records, this one records with it; at the end the first must have waited for it.
  Status await(const Mark& mark);
  Result<Mark> mark();

  Status replay(const Recording& recording);  // returns at once
  // Either side may be this device's memory or pinned memory of the host; both must stay until it is done. Returns at once.
  Status copy(std::byte* to, const std::byte* from, int64_t bytes);
  Status poll();  // Ok, also while it works, or what went wrong
  Status wait();  // for everything given so far
  int device() const { return device_; }
  void* handle() const { return handle_.get(); }

 private:
  Stream(int device, std::shared_ptr<void> handle) : device_(device), handle_(std::move(handle)) {}

  int device_;
  std::shared_ptr<void> handle_;
};

}  // namespace lite::cuda
