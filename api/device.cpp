#include "api/device.h"

#ifdef DSV3_CUDA
#include <charconv>
#endif

#include "cuda/cuda.h"
#include "ggml-lite/cpu/cpu.h"

namespace dsv3::api {
namespace {

std::string usable_isas() {
  std::string all;
  for (int i = 0; i < lite::kIsas; ++i)
    if (lite::isa_usable(lite::Isa(i))) all += lite::str(i ? " " : "", lite::isa_name(lite::Isa(i)));
  return all;
}

#ifdef DSV3_CUDA
constexpr char kBackends[] = "cpu ref cuda auto", kCuda[] = "built in";

Gpu gpu_of(int number) {
  return {[number](bool exact) { return lite::make_cuda_backend(number, exact); },
          [number] { return lite::make_cuda_meter(number); }};
}

// The GPU of "cuda" or "cuda:N", if that is what the backend is called.
lite::Status read_gpu(const std::string& backend, Device* device) {
  if (backend != "cuda" && !backend.starts_with("cuda:")) return {};
  int number = 0;
  if (backend != "cuda") {
    const char* end = backend.data() + backend.size();
    const auto [at, error] = std::from_chars(backend.data() + 5, end, number);
    if (error != std::errc() || at != end)
      return lite::invalid_argument("expected cuda, or cuda:N with the number of a GPU");
  }
  device->gpus.push_back(gpu_of(number));
  return device->gpus[0].backend(true).status();
}

// The first GPU that can be used, whatever keeps us from those before it.
std::string choose_gpu(Device* device) {
  const lite::Result<int> count = lite::count_cuda_gpus();
  if (!count.ok()) return lite::str("cpu; ", count.status().message());
  std::string why;
  for (int number = 0; number < *count; ++number) {
    const auto gpu = lite::make_cuda_backend(number, true);
    if (gpu.ok()) {
      device->gpus.push_back(gpu_of(number));
      return lite::str((*gpu)->name(), ", the first GPU that can be used", why);
    }
    why += lite::str("; ", gpu.status().message());
  }
  return "cpu" + why;
}
#else
constexpr char kBackends[] = "cpu ref auto", kCuda[] = "not built in";

lite::Status read_gpu(const std::string&, Device*) {
  return {};
}
std::string choose_gpu(Device*) {
  return "cpu; this build has no CUDA";
}
#endif

}  // namespace

std::string describe_devices() {
  return lite::str("backends: ", kBackends, "\ninstruction sets: ", usable_isas(), "\nCUDA: ", kCuda);
}

lite::Result<Device> read_device(const dsv3_model_options& o, std::string* chosen) {
  const std::string backend = o.backend ? o.backend : "cpu", isa = o.isa ? o.isa : "auto";
  Device device;
  device.reference = backend == "ref";
  device.isa = lite::best_isa();
  *chosen = backend;
  if (backend == "auto") *chosen = "auto, which is " + choose_gpu(&device);
  LITE_TRY(read_gpu(backend, &device).in("open model: backend \"" + backend + "\""));
  if (backend != "cpu" && backend != "auto" && !device.reference && device.gpus.empty())
    return lite::unsupported("open model: backend \"", backend, "\": this build has: ", kBackends);
  if (isa == "auto") return device;
  const lite::Result<lite::Isa> named = lite::isa_from_name(isa);
  if (!named.ok()) return lite::unsupported("open model: ", named.status().message());
  device.isa = *named;
  if (!lite::isa_usable(device.isa))
    return lite::unsupported("open model: instruction set \"", isa, "\": this machine has: ", usable_isas());
  return device;
}

Device planning_device(int gpus) {
  Device device;
  device.isa = lite::best_isa();
  const auto planner = [](bool exact) {
    return lite::Result<std::unique_ptr<lite::Backend>>(lite::make_cuda_planner(exact));
  };
  device.gpus.assign(size_t(gpus), {planner, nullptr});
  return device;
}

}  // namespace dsv3::api
