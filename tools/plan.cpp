// dsv3 plan: what goes where, what that takes and how fast it can be, before anything is loaded.
#include <cmath>
#include <cstdio>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/table.h"

namespace tools {
namespace {

using json = nlohmann::ordered_json;

struct PlanOptions {
  std::string model;
  int64_t host_memory = 0;
  int32_t n_gpus = 0, context = 0;
  double host_GBps = 0, gpu_GBps = 0, pcie_GBps = 0;
  bool mtp = false, json = false;
  ComputeOptions compute;
};

// In the units of --gpu-memory.
std::string memory_text(const json& bytes) {
  const double n = bytes.get<double>();
  if (n == 0) return "0";
  if (n < 1 << 20) return decimal(n / (1 << 10), 3) + " KiB";
  return n < 1 << 30 ? decimal(n / (1 << 20), 3) + " MiB" : decimal(n / (1 << 30), 3) + " GiB";
}

// "3", "3-60"
std::string range_text(const json& range) {
  return range[0] == range[1] ? range[0].dump() : range[0].dump() + "-" + range[1].dump();
}

std::string parts_text(const json& plan) {
  Table table({"layers", "part", "experts", "device", "size"});
  for (const json& part : plan["parts"])
    table.add({part.contains("layers") ? range_text(part["layers"]) : "-", part["role"].get<std::string>(),
               part.contains("experts") ? range_text(part["experts"]) : "", part["device"].get<std::string>(),
               memory_text(part["bytes"])});
  return table.str();
}

std::string devices_text(const json& plan) {
  Table table({"device", "weights", "cache", "activations", "driver (estimated)", "total", "of",
               "read per token", "at"});
  for (const json& d : plan["devices"])
    table.add({d["device"].get<std::string>(), memory_text(d["weights"]), memory_text(d["cache"]),
               memory_text(d["activations"]), memory_text(d["driver_estimate"]), memory_text(d["total"]),
               d.contains("memory") ? memory_text(d["memory"]) : "-",
               size_text(d["read_per_token"].get<int64_t>()),
               decimal(d["GBps"].get<double>(), 0) + " GB/s " + d["GBps_from"].get<std::string>()});
  return table.str();
}

std::string speed_text(const json& plan) {
  std::string out =
      text("At best ", decimal(plan["tokens_per_second"].get<double>(), 2), " tok/s with an empty context, ",
           decimal(plan["tokens_per_second_full"].get<double>(), 2), " with ", plan["context"].get<int64_t>(),
           " tokens");
  if (plan["crossed_per_token"].get<int64_t>() > 0)
    out += text("; ", plan["crossings_per_token"].get<int64_t>(), " crossings a token between devices, ",
                size_text(plan["crossed_per_token"].get<int64_t>()), " at ",
                decimal(plan["pcie_GBps"].get<double>(), 0), " GB/s ",
                plan["pcie_GBps_from"].get<std::string>());
  return out + "\n";
}

struct FreePlan {
  void operator()(dsv3_plan* plan) const { dsv3_plan_free(plan); }
};

void plan(const PlanOptions& o) {
  dsv3_session_options session = o.compute.session_options();
  session.context = o.context;
  session.mtp = o.mtp;
  dsv3_plan_options options = {};
  options.struct_size = sizeof options;
  options.n_gpus = o.n_gpus;
  options.host_memory = o.host_memory;
  options.host_GBps = o.host_GBps;
  options.gpu_GBps = o.gpu_GBps;
  options.pcie_GBps = o.pcie_GBps;
  options.session = &session;
  dsv3_plan* made = nullptr;
  check(dsv3_plan_new(o.model.c_str(), &options, &made));
  const std::unique_ptr<dsv3_plan, FreePlan> owner(made);
  const char* description = dsv3_plan_json(made);
  const json p = json::parse(description);
  if (o.json)
    write_stdout(std::string(description) + "\n");
  else
    write_stdout(parts_text(p) + "\n" + devices_text(p) + "\n" + speed_text(p));
  const json &host = p["devices"][0], &machine = p["machine_memory"];
  if (host["total"] > machine)
    note(text("dsv3: warning: the host's part takes ", memory_text(host["total"]), ", and this machine has ",
              memory_text(machine), ": here weights would be read from the disk again and again"));
}

}  // namespace

void add_plan(CLI::App* program) {
  const auto o = std::make_shared<PlanOptions>();
  CLI::App* command = program->add_subcommand(
      "plan",
      "Show what would go where, what that takes and how fast it can be; needs no GPU, reads no weights");
  command->add_option("MODEL", o->model, "packed file, or a checkpoint's config.json")->required();
  o->compute.add_session_to(command);
  o->compute.add_batch_to(command);
  command->add_option("--gpus", o->n_gpus, "GPUs, each with that memory (default: 1 if it is given)")
      ->check(number(1, 64))
      ->type_name("N");
  add_memory_option(command, "--host-memory", &o->host_memory,
                    "memory of the host that may be used; exit code 1 if its part does not fit");
  command
      ->add_option("-c,--context", o->context,
                   "most tokens of a sequence (default: the model's limit, at most 4096)")
      ->check(number(1, INT32_MAX))
      ->type_name("N");
  command->add_flag("--mtp", o->mtp, "with the multi-token-prediction layer");
  const struct {
    const char* name;
    double* value;
    const char* what;
  } bandwidths[] = {{"--host-bandwidth", &o->host_GBps, "GB/s of the host's memory (default: measured here)"},
                    {"--gpu-bandwidth", &o->gpu_GBps, "GB/s of a GPU's memory (default: 1000, assumed)"},
                    {"--pcie-bandwidth", &o->pcie_GBps, "GB/s between host and GPU (default: 25, assumed)"}};
  for (const auto& b : bandwidths)
    command->add_option(b.name, *b.value, b.what)->check(number(0.001, 1e6))->type_name("GB/s");
  command->add_flag("--exact", o->compute.exact, "as in run: cached values are f32");
  command->add_flag("--json", o->json, "everything as one JSON object");
  command->callback([o] { plan(*o); });
}

}  // namespace tools
