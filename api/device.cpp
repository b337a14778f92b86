#include "api/device.h"

#include "ggml-lite/cpu/cpu.h"

#ifdef DSV3_CUDA
#include <charconv>

#include "cuda/cuda.h"
#endif

namespace dsv3::api {
namespace {

std::string usable_isas() {
  std::string all;
  for (int i = 0; i < lite::kIsas; ++i)
    if (lite::isa_usable(lite::Isa(i))) all += lite::str(i ? " " : "", lite::isa_name(lite::Isa(i)));
  return all;
}

#ifdef DSV3_CUDA
constexpr char kBackends[] = "cpu ref cuda", kCuda[] = "built in";

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
  device->gpus.push_back([number](bool exact) { return lite::make_cuda_backend(number, exact); });
  return device->gpus[0](true).status();
}
lite::Result<std::unique_ptr<lite::Backend>> make_planner(bool) {
  return lite::make_cuda_planner();
}
constexpr bool kPlansExactly = true;
#else
constexpr char kBackends[] = "cpu ref", kCuda[] = "not built in";

constexpr bool kPlansExactly = false;  // scratch on a GPU is about what it is on the host
lite::Result<std::unique_ptr<lite::Backend>> make_planner(bool) {
  return lite::make_cpu_backend({1, lite::best_isa(), true});
}

lite::Status read_gpu(const std::string&, Device*) {
  return {};
}
#endif

}  // namespace

std::string describe_devices() {
  return lite::str("backends: ", kBackends, "\ninstruction sets: ", usable_isas(), "\nCUDA: ", kCuda);
}

lite::Result<Device> read_device(const dsv3_model_options& o) {
  const std::string backend = o.backend ? o.backend : "cpu", isa = o.isa ? o.isa : "auto";
  Device device;
  device.reference = backend == "ref";
  device.isa = lite::best_isa();
  LITE_TRY(read_gpu(backend, &device).in("open model: backend \"" + backend + "\""));
  if (backend != "cpu" && !device.reference && device.gpus.empty())
    return lite::unsupported("open model: backend \"", backend, "\": this build has: ", kBackends);
  if (isa == "auto") return device;
  const lite::Result<lite::Isa> named = lite::isa_from_name(isa);
  if (!named.ok()) return lite::unsupported("open model: ", named.status().message());
  device.isa = *named;
  if (!lite::isa_usable(device.isa))
    return lite::unsupported("open model: instruction set \"", isa, "\": this machine has: ", usable_isas());
  return device;
}

bool plans_exactly() {
  return kPlansExactly;
}

Device planning_device(int gpus) {
  Device device;
  device.isa = lite::best_isa();
  device.gpus.assign(size_t(gpus), make_planner);
  return device;
}

}  // namespace dsv3::api
