// dsv3 info: what a packed file holds, for reading or as JSON.
#include <algorithm>
#include <map>
#include <set>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/table.h"

namespace tools {
namespace {

using json = nlohmann::ordered_json;

struct InfoOptions {
  std::string model;
  bool as_json = false;
};

// A string without quotes, anything else as JSON.
std::string value_text(const json& value) {
  return printable(value.is_string() ? value.get<std::string>() : value.dump());
}

std::string dtype_text(const json& tensor) {
  std::string text = tensor.value("dtype", "");
  if (tensor.contains("scale_dtype"))
    text += "/" + tensor["scale_dtype"].get<std::string>() + " " + tensor["scale_block"].dump();
  return text;
}

// "model.layers.3.mlp.experts.17.up_proj.weight" -> "model.layers.*.mlp.experts.*.up_proj.weight"
std::string pattern_of(const std::string& name) {
  std::string pattern;
  size_t begin = 0;
  while (begin <= name.size()) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    pattern += (begin ? "." : "") + (number ? "*" : part);
    begin = end + 1;
  }
  return pattern;
}

// Tensors that differ in the numbers of their names alone: by pattern, type or what they are an alias of, shape.
struct Group {
  std::string dtype;
  int64_t count = 0, bytes = 0;
};
using Groups = std::map<std::array<std::string, 3>, Group>;

Groups groups_of(const json& tensors) {
  Groups groups;
  for (const json& tensor : tensors) {
    const bool alias = tensor.contains("alias_of");
    const std::string dtype = dtype_text(tensor);
    Group& group = groups[{printable(pattern_of(tensor["name"])),
                           alias ? "= " + value_text(tensor["alias_of"]) : dtype, tensor["shape"].dump()}];
    group.dtype = dtype;
    ++group.count;
    if (!alias) group.bytes += tensor["bytes"].get<int64_t>();
  }
  return groups;
}

std::string identity(const dsv3_model_info& info, const Groups& groups) {
  std::set<std::string> dtypes;
  for (const auto& [key, group] : groups) dtypes.insert(group.dtype);
  std::string kinds;
  for (const std::string& dtype : dtypes) kinds += (kinds.empty() ? "" : ", ") + dtype;
  Table table;
  table.add({"architecture", info.architecture});
  table.add({"model_type", printable(info.model_type)});
  table.add({"id", info.id});
  table.add({"file", text(size_text(info.file_bytes), " (", info.file_bytes, " bytes)")});
  table.add({"parameters", text(info.n_parameters)});
  table.add({"types", kinds});
  table.add({"layers", text(info.n_layers, " + ", info.n_mtp_layers, " for multi-token prediction")});
  table.add({"read per token", size_text(info.bytes_per_token)});
  table.add({"cached per token", text(info.kv_values_per_token, " values")});
  return table.str();
}

std::string keys_and_values(const json& object) {
  Table table;
  for (const auto& [key, value] : object.items()) table.add({printable(key), value_text(value)});
  return table.str();
}

std::string sizes_by_role(const json& d) {
  std::map<std::string, int64_t> bytes;
  const auto sum = [&bytes](const json& roles) {
    for (const auto& [role, size] : roles.items()) bytes[role] += size.get<int64_t>();
  };
  sum(d["bytes"]);
  for (const json& layer : d["layers"]) sum(layer["bytes"]);
  Table table;
  for (const auto& [role, size] : bytes) table.add({role, size_text(size)});
  return table.str();
}

std::string layer_table(const json& d) {
  const json& layers = d["layers"];
  std::set<std::string> roles;
  for (const json& layer : layers)
    for (const auto& role : layer["bytes"].items()) roles.insert(role.key());
  struct Column {
    const char *head, *key, *or_key = "";  // the first of the keys that a layer has
  };
  std::vector<Column> columns = {{"layer", "layer"},
                                 {"kind", "kind"},
                                 {"heads", "num_attention_heads"},
                                 {"key heads", "num_key_value_heads"},
                                 {"head size", "head_dim"},
                                 {"experts", "n_routed_experts"},
                                 {"per token", "num_experts_per_tok"},
                                 {"shared", "n_shared_experts"},
                                 {"width", "moe_intermediate_size", "intermediate_size"},
                                 {"cached", "cached_values"}};
  std::erase_if(columns, [&layers](const Column& c) {
    return std::none_of(layers.begin(), layers.end(), [&c](const json& layer) {
      return layer.contains(c.key) || layer.contains(c.or_key);
    });
  });
  std::vector<std::string> head;
  for (const Column& c : columns) head.push_back(c.head);
  head.insert(head.end(), roles.begin(), roles.end());
  Table table(head);
  for (const json& layer : layers) {
    std::vector<std::string> cells;
    for (const Column& c : columns) {
      const char* key = layer.contains(c.key) ? c.key : c.or_key;
      cells.push_back(layer.contains(key) ? value_text(layer[key]) : "-");
    }
    for (const std::string& role : roles)
      cells.push_back(layer["bytes"].contains(role) ? size_text(layer["bytes"][role]) : "-");
    table.add(std::move(cells));
  }
  return table.str();
}

std::string tensor_table(const Groups& groups) {
  Table table({"tensor", "type", "shape", "count", "bytes"});
  for (const auto& [key, group] : groups)
    table.add({key[0], key[1], key[2], text(group.count), size_text(group.bytes)});
  return table.str();
}

std::string section_list(const json& d) {
  std::string out;
  for (const json& name : d["sections"]) out += "  " + value_text(name) + "\n";
  return out;
}

void info(const InfoOptions& o) {
  const Model model = open_model(o.model);
  const char* description = nullptr;
  check(dsv3_model_describe(model.get(), &description));
  if (o.as_json) return write_stdout(std::string(description) + "\n");
  const json d = json::parse(description);
  const Groups groups = groups_of(d["tensors"]);
  std::string out = printable(o.model) + "\n" + identity(get_info(model), groups);
  out += "\nConfiguration\n" + keys_and_values(d["config"]);
  out += "\nSizes\n" + sizes_by_role(d);
  out += "\nLayers\n" + layer_table(d);
  out += "\nTensors\n" + tensor_table(groups);
  out += "\nSections, kept as they came\n" + section_list(d);
  if (d.contains("provenance")) out += "\nProvenance\n" + keys_and_values(d["provenance"]);
  write_stdout(out);
}

}  // namespace

void add_info(CLI::App* program) {
  const auto o = std::make_shared<InfoOptions>();
  CLI::App* command =
      program->add_subcommand("info", "Show what a packed file holds: configuration, sizes, layers, tensors");
  command->add_option("MODEL", o->model, "packed file")->required();
  command->add_flag("--json", o->as_json, "everything, every tensor by name, as one JSON object");
  command->callback([o] { info(*o); });
}

}  // namespace tools
