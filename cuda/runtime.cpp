#include "cuda/runtime.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

namespace lite::cuda {
namespace {

Status device_error(int device, const char* what, cudaError_t error) {
  return Status(Code::Device, str("GPU ", device, ": ", what, ": ", cudaGetErrorString(error), " (",
                                  cudaGetErrorName(error), ")"));
}

// Runs `call` with `device` as the thread's current one.
template <class Call>
Status on_device(int device, const char* what, Call&& call) {
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = call();
  return error == cudaSuccess ? Status() : device_error(device, what, error);
}

// What is asked for outside of our streams may still be under way when the call returns, and our streams do not wait for it.
Status finish(int device) {
  return on_device(device, "copy", [] { return cudaStreamSynchronize(nullptr); });
}

}  // namespace

Result<int> device_count() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    return Status(Code::Device,
                  str("no GPU can be used: ", cudaGetErrorString(error), "; the driver is for CUDA ",
                      driver / 1000, ".", driver % 1000 / 10, " (0.0: there is none), this program for CUDA ",
                      CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10));
  }
  return count;
}

Result<DeviceInfo> device_info(int device) {
  LITE_ASSIGN(const int count, device_count());
  if (device < 0 || device >= count)
    return not_found("GPU ", device, ": this machine has ", count, ", numbered from 0");
  cudaDeviceProp properties;
  LITE_TRY(
      on_device(device, "read its properties", [&] { return cudaGetDeviceProperties(&properties, device); }));
  return DeviceInfo{properties.name, properties.major, properties.minor, int64_t(properties.totalGlobalMem)};
}

Result<Buffer> allocate(int device, int64_t bytes) {
  const auto alone = alone_with_driver();
  void* memory = nullptr;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaMalloc(&memory, size_t(std::max<int64_t>(bytes, 1)));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // this one is not to be found by the next launch
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return out_of_memory("GPU ", device, ": allocate ", bytes, " bytes: ", free, " of its ", total,
                         " are free");
  }
  if (error != cudaSuccess) return device_error(device, "allocate memory", error);
  Buffer buffer(static_cast<std::byte*>(memory), [device](std::byte* p) {
    const auto alone = alone_with_driver();
    cudaSetDevice(device);
    cudaFree(p);
  });
  LITE_TRY(on_device(device, "clear memory", [&] { return cudaMemset(memory, 0, size_t(bytes)); }));
  LITE_TRY(finish(device));
  return buffer;
}

Result<Buffer> allocate_pinned(int device, int64_t bytes) {
  const auto alone = alone_with_driver();
  void* memory = nullptr;
  const size_t size = size_t(std::max<int64_t>(bytes, 1));
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaHostAlloc(&memory, size, cudaHostAllocPortable | cudaHostAllocMapped);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return out_of_memory("allocate ", bytes, " bytes of the host's memory for GPU ", device,
                         ": the system has not got them, or may not keep so many in place");
  }
  if (error != cudaSuccess) return device_error(device, "allocate memory of the host", error);
  std::memset(memory, 0, size);
  return Buffer(static_cast<std::byte*>(memory), [](std::byte* p) {
    const auto alone = alone_with_driver();
    cudaFreeHost(p);
  });
}

Status copy(int device, std::byte* to, const std::byte* from, int64_t bytes) {
  LITE_TRY(on_device(device, "copy", [&] { return cudaMemcpy(to, from, size_t(bytes), cudaMemcpyDefault); }));
  return finish(device);
}

Result<Stream> Stream::create(int device) {
  const auto alone = alone_with_driver();
  cudaStream_t stream = nullptr;
  LITE_TRY(on_device(device, "make a stream",
                     [&] { return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking); }));
  return Stream(device, std::shared_ptr<void>(stream, [device](void* s) {
                  const auto alone = alone_with_driver();
                  cudaSetDevice(device);
                  cudaStreamDestroy(cudaStream_t(s));
                }));
}

Status Stream::begin_recording() {
  cudaGetLastError();  // an earlier one, of whoever shares the thread, is none of what is recorded
  return on_device(device_, "begin to record", [&] {
    return cudaStreamBeginCapture(cudaStream_t(handle()), cudaStreamCaptureModeThreadLocal);
  });
}

Result<Recording> Stream::end_recording() {
  const cudaError_t launched = cudaGetLastError();  // the first launch that was refused
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(cudaStream_t(handle()), &graph);
  const std::shared_ptr<void> captured(graph, [](void* g) {
    if (g) cudaGraphDestroy(cudaGraph_t(g));
  });
  if (launched != cudaSuccess) return device_error(device_, "record a kernel", launched);
  if (ended != cudaSuccess) return device_error(device_, "record", ended);
  cudaGraphExec_t ready = nullptr;
  LITE_TRY(
      on_device(device_, "make a recording ready", [&] { return cudaGraphInstantiate(&ready, graph, 0); }));
  return Recording(ready, [device = device_](void* g) {
    const auto alone = alone_with_driver();
    cudaSetDevice(device);
    cudaGraphExecDestroy(cudaGraphExec_t(g));
  });
}

Result<Mark> Stream::mark() {
  cudaEvent_t event = nullptr;
  LITE_TRY(on_device(device_, "mark a stream",
                     [&] { return cudaEventCreateWithFlags(&event, cudaEventDisableTiming); }));
  Mark mark(event, [](void* e) { cudaEventDestroy(cudaEvent_t(e)); });
  LITE_TRY(
      on_device(device_, "mark a stream", [&] { return cudaEventRecord(event, cudaStream_t(handle())); }));
  return mark;
}

Status Stream::await(const Mark& mark) {
  return on_device(device_, "wait for a stream",
                   [&] { return cudaStreamWaitEvent(cudaStream_t(handle()), cudaEvent_t(mark.get())); });
}

Status Stream::replay(const Recording& recording) {
  return on_device(device_, "run kernels",
                   [&] { return cudaGraphLaunch(cudaGraphExec_t(recording.get()), cudaStream_t(handle())); });
}

Status Stream::copy(std::byte* to, const std::byte* from, int64_t bytes) {
  return on_device(device_, "copy", [&] {
    return cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDefault, cudaStream_t(handle()));
  });
}

Status Stream::poll() {
  return on_device(device_, "run kernels", [&] {
    const cudaError_t error = cudaStreamQuery(cudaStream_t(handle()));
    if (error != cudaErrorNotReady) return error;
    cudaGetLastError();  // no error of a launch
    return cudaSuccess;
  });
}

Status Stream::wait() {
  return on_device(device_, "run kernels", [&] { return cudaStreamSynchronize(cudaStream_t(handle())); });
}

}  // namespace lite::cuda
