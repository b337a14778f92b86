// The C API of planning: what a session would be, of a packed file or of a configuration alone.
#include <sys/stat.h>

#include <cmath>

#include "api/device.h"
#include "api/handles.h"
#include "ggml-lite/cpu/ceilings.h"
#include "ggml-lite/machine.h"
#include "ggml-lite/pack.h"

using namespace dsv3::api;
using dsv3::Placement;
using dsv3::Result;
using dsv3::Role;
using dsv3::Status;
using lite::Json;

struct dsv3_plan {
  std::string json;
};

namespace {

constexpr double kAssumedGpu = 1000, kAssumedLink = 25;  // GB/s: a card of the middle, PCIe 4
constexpr int kMostGpus = 64;

// Where a bandwidth comes from.
struct Bandwidth {
  double GBps;
  const char* from;
};

Result<Bandwidth> bandwidth(const char* name, double given, double assumed) {
  if (!std::isfinite(given) || given < 0)
    return lite::invalid_argument("dsv3_plan_options: ", name, ": got ", given,
                                  ", expected a number above 0");
  return given > 0 ? Bandwidth{given, "stated"} : Bandwidth{assumed, "assumed"};
}

Result<Bandwidth> host_bandwidth(double given, int n_threads) {
  LITE_ASSIGN(Bandwidth host, bandwidth("host_GBps", given, 0));
  if (given > 0) return host;
  LITE_ASSIGN(const auto meter, lite::make_cpu_meter(n_threads, lite::best_isa()));
  LITE_ASSIGN(const lite::Ceilings ceilings, meter->measure());
  return Bandwidth{ceilings.read_GBps, "measured"};
}

// Equal consecutive layers become one line.
class PartLines {
 public:
  void add(Role role, const char* name, int layer, std::pair<int, int> experts, int device, int64_t bytes) {
    if (bytes == 0) return;
    for (Line& line : lines_)
      if (line.role == role && line.name == name && line.device == device && line.experts == experts &&
          line.last == layer - 1 && layer > 0) {
        line.last = layer;
        line.bytes += bytes;
        return;
      }
    lines_.push_back({role, name, layer, layer, experts, device, bytes});
  }

  Json json() const {
    Json::Array out;
    for (const Line& line : lines_) {
      Json part{Json::Object()};
      part.set("role", line.name);
      if (line.first >= 0) part.set("layers", Json::Array{int64_t(line.first), int64_t(line.last)});
      if (line.experts.second >= 0)
        part.set("experts", Json::Array{int64_t(line.experts.first), int64_t(line.experts.second)});
      part.set("device", dsv3::device_text(line.device));
      part.set("bytes", line.bytes);
      out.push_back(std::move(part));
    }
    return out;
  }

 private:
  struct Line {
    Role role;
    std::string name;
    int first, last;
    std::pair<int, int> experts;  // second < 0: all
    int device;
    int64_t bytes;
  };
  std::vector<Line> lines_;
};

Json part_lines(const dsv3::Config& c, const dsv3::SessionPlan& plan, bool mtp) {
  const Placement& p = plan.placement;
  const int layers = int(mtp ? c.layers.size() : size_t(c.num_hidden_layers));
  const std::pair<int, int> all(0, -1);
  PartLines lines;
  const auto bytes_of = [](const dsv3::PartBytes& part, int device) {
    return device == 0 ? part.file : part.copied;
  };
  const auto add = [&](int layer, Role role) {
    const int device = p.device(layer, role);
    lines.add(role, role_name(role), layer, all, device, bytes_of(plan.parts.of(layer, role), device));
  };
  const auto add_experts = [&](int layer) {
    const int n = int(c.layers[size_t(layer)].n_routed_experts);
    for (int first = 0, e = 0; first < n; first = e) {
      const int device = p.expert_device(layer, first);
      int64_t bytes = 0;
      for (e = first; e < n && p.expert_device(layer, e) == device; ++e)
        bytes += bytes_of(plan.parts.expert(layer, e), device);
      const bool whole = first == 0 && e == n;
      lines.add(Role::RoutedExperts, role_name(Role::RoutedExperts), layer,
                whole ? all : std::pair(first, e - 1), device, bytes);
    }
  };
  for (int layer = -1; layer < layers; ++layer) add(layer, Role::Embed);
  for (const Role role : {Role::Attention, Role::DenseFfn, Role::Router, Role::SharedExperts, Role::Mtp})
    for (int layer = 0; layer < layers; ++layer) add(layer, role);
  for (int layer = 0; layer < layers; ++layer) add_experts(layer);
  for (int layer = -1; layer < layers; ++layer) add(layer, Role::Head);
  for (int layer = 0; layer < layers; ++layer)
    lines.add(Role::Attention, "kv", layer, all, p.device(layer, Role::Attention), plan.cache[size_t(layer)]);
  if (mtp) lines.add(Role::Head, "kv", -1, all, p.device(-1, Role::Head), plan.cache.back());
  return lines.json();
}

// A packed file, a config.json, or the folder of a checkpoint.
Result<std::unique_ptr<dsv3::Model>> open(const std::string& path) {
  struct stat about;
  if (stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode))
    return dsv3::Model::outline(path + "/config.json");
  return path.ends_with(".json") ? dsv3::Model::outline(path) : dsv3::Model::open(path);
}

Result<std::string> make_plan(const std::string& path, const dsv3_plan_options& o) {
  dsv3_session_options session;
  LITE_TRY(read_options("dsv3_session_options", o.session, &session));
  LITE_TRY(in_range("dsv3_plan_options", "n_gpus", o.n_gpus, 0, kMostGpus));
  LITE_TRY(in_range("dsv3_plan_options", "host_memory", o.host_memory, 0, INT64_MAX));
  const bool divides = session.gpu_memory > 0 || (session.place && *session.place);
  const int gpus = o.n_gpus ? o.n_gpus : divides ? 1 : 0;
  if (gpus > 1 && session.gpu_memory == 0)
    return lite::invalid_argument(
        "dsv3_plan_options: ", gpus,
        " GPUs: say in gpu_memory how much each has; without a limit one takes all");
  dsv3_model m;
  LITE_ASSIGN(m.model, open(path));
  m.device = planning_device(gpus);
  session.struct_size = sizeof session;
  LITE_ASSIGN(const dsv3::SessionOptions options, session_options(m, &session));
  LITE_ASSIGN(const auto planned, dsv3::Session::plan(*m.model, options));
  const dsv3::SessionPlan& plan = planned->layout();
  const int64_t on_host = plan.memory[0].total();
  if (o.host_memory && on_host > o.host_memory)
    return lite::out_of_memory("plan ", path, ": the host's part takes ", on_host, " bytes, ",
                               on_host - o.host_memory,
                               " more than host_memory; place more on GPUs, or try a smaller context");

  LITE_ASSIGN(const Bandwidth host, host_bandwidth(o.host_GBps, options.n_threads));
  LITE_ASSIGN(const Bandwidth gpu, bandwidth("gpu_GBps", o.gpu_GBps, kAssumedGpu));
  LITE_ASSIGN(const Bandwidth link, bandwidth("pcie_GBps", o.pcie_GBps, kAssumedLink));
  std::vector<double> bytes_per_second(plan.memory.size(), 1e9 * gpu.GBps);
  bytes_per_second[0] = 1e9 * host.GBps;
  const auto speed = [&](int64_t context) {
    return planned->decode_speed(context, bytes_per_second, 1e9 * link.GBps);
  };
  const dsv3::DecodeSpeed empty = speed(0), full = speed(options.context);

  Json::Array devices;
  for (size_t device = 0; device < plan.memory.size(); ++device) {
    const dsv3::MemoryUse& use = plan.memory[device];
    Json d{Json::Object()};
    d.set("device", dsv3::device_text(int(device)));
    d.set("weights", use.weights);
    d.set("cache", use.cache);
    d.set("activations", use.activations);
    d.set("driver_estimate", use.other);
    d.set("total", use.total());
    if (const int64_t memory = device == 0 ? o.host_memory : options.gpu_memory) d.set("memory", memory);
    d.set("read_per_token", int64_t(empty.read[device]));
    d.set("read_per_token_full", int64_t(full.read[device]));
    d.set("GBps", device == 0 ? host.GBps : gpu.GBps);
    d.set("GBps_from", device == 0 ? host.from : gpu.from);
    devices.push_back(std::move(d));
  }
  Json all{Json::Object()};
  all.set("context", int64_t(options.context));
  all.set("mtp", options.mtp);
  all.set("devices", std::move(devices));
  all.set("parts", part_lines(m.model->config(), plan, options.mtp));
  all.set("crossings_per_token", empty.crossings);
  all.set("crossed_per_token", int64_t(empty.crossed));
  all.set("pcie_GBps", link.GBps);
  all.set("pcie_GBps_from", link.from);
  all.set("tokens_per_second", 1 / empty.seconds);
  all.set("tokens_per_second_full", 1 / full.seconds);
  all.set("machine_memory", lite::memory_limit());
  return all.dump();
}

}  // namespace

dsv3_status dsv3_plan_new(const char* path, const dsv3_plan_options* options, dsv3_plan** plan) {
  return call([&]() -> Status {
    if (!path) return null_argument("dsv3_plan_new", "path");
    if (!plan) return null_argument("dsv3_plan_new", "plan");
    dsv3_plan_options o;
    LITE_TRY(read_options("dsv3_plan_options", options, &o));
    LITE_ASSIGN(std::string json, make_plan(path, o));
    *plan = new dsv3_plan{std::move(json)};
    return {};
  });
}

void dsv3_plan_free(dsv3_plan* plan) {
  delete plan;
}

const char* dsv3_plan_json(const dsv3_plan* plan) {
  return plan ? plan->json.c_str() : nullptr;
}
