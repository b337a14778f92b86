#include "model/model.h"

#include "ggml-lite/file.h"
#include "ggml-lite/machine.h"
#include "model/sections.h"

namespace dsv3 {

using lite::Tensor;

Model::Model(std::optional<lite::PackFile> file, Config config)
    : file_(std::move(file)), config_(std::move(config)), table_(tensor_table(config_)) {
  for (const LayerConfig& l : config_.layers) {
    const int64_t dim = config_.rotary_dim(l);
    if (!inv_freq_.contains(dim)) inv_freq_[dim] = config_.rope_inv_freq(dim);
  }
  items_.resize(table_.size());
  if (!file_) return;
  const lite::PackFile::Item* last =
      nullptr;  // an expert's tensors lie side by side in the file's table, too
  for (size_t i = 0; i < table_.size(); ++i) {
    items_[i] = file_->find(table_[i].name, last);
    for (const std::string& name : table_[i].also)
      if (!items_[i]) items_[i] = file_->find(name, last);
    if (items_[i]) last = items_[i];
  }
}

Status Model::copy_weights(const std::function<bool(int64_t done, int64_t total)>& progress) {
  LITE_ASSIGN(copy_, lite::HostCopy::read(*file_, lite::core_processors(), progress));
  return {};
}

const std::unordered_map<std::string_view, size_t>& Model::by_name() const {
  std::call_once(named_, [this] {
    by_name_.reserve(table_.size());  // the table's own names: a file cannot make them collide
    for (size_t i = 0; i < table_.size(); ++i) {
      by_name_.emplace(table_[i].name, i);
      for (const std::string& name : table_[i].also) by_name_.emplace(name, i);
    }
  });
  return by_name_;
}

Tensor Model::rope_inv_freq(int64_t dim) const {
  const std::vector<float>& values = inv_freq_.at(dim);
  Tensor t = Tensor::of(lite::DType::F32, {int64_t(values.size())});
  t.data = reinterpret_cast<std::byte*>(const_cast<float*>(values.data()));
  return t;
}

Result<Config> packed_config(const lite::PackFile& file, const std::string& what) {
  const Json* json = file.json().find("config");
  if (!json) return lite::corrupt(what, ": its JSON block has no \"config\"; convert again");
  auto config = Config::parse(*json);
  if (!config.ok()) return config.status().in(what);
  if (const int64_t fewest = fewest_tensors(*config); fewest > int64_t(file.items().size()))
    return lite::corrupt(what, ": it holds ", file.items().size(),
                         " tensors, but its configuration asks for at least ", fewest, "; convert again");
  return config;
}

Result<std::unique_ptr<Model>> Model::open(const std::string& path) {
  LITE_ASSIGN(lite::PackFile file, lite::PackFile::open(path));
  LITE_TRY(check_sections(file, "open " + path));
  LITE_ASSIGN(Config config, packed_config(file, "open " + path));
  auto model = std::unique_ptr<Model>(new Model(std::move(file), std::move(config)));
  LITE_TRY(model->check_tensors());
  return model;
}

namespace {

// How the converter stores a tensor of a checkpoint whose config.json says no more than this of its types.
Result<lite::PackEntry> expected_entry(const TensorInfo& info, const Json& json, Architecture architecture) {
  lite::PackEntry entry;
  entry.name = info.name;
  entry.shape = info.shape;
  entry.dtype = info.name.ends_with(".e_score_correction_bias") ? lite::DType::F32 : lite::DType::BF16;
  for (const char* key : {"torch_dtype", "dtype"})
    if (const Json* type = json.find(key); type && type->string() && *type->string() == "float32")
      entry.dtype = lite::DType::F32;
  const Json* quantization = json.find("quantization_config");
  const Json* method = quantization ? quantization->find("quant_method") : nullptr;
  if (!info.matrix || !method || !method->string() || *method->string() != "fp8") return entry;
  entry.dtype = lite::DType::F8_E4M3;
  entry.scaled = true;
  if (architecture == Architecture::Qwen3Moe) entry.scale_dtype = lite::DType::BF16;  // as released
  entry.block_rows = entry.block_cols = lite::kScaleBlock;
  if (const Json* block = quantization->find("weight_block_size"); block && !block->is_null()) {
    const Json::Array* sizes = block->array();
    if (!sizes || sizes->size() != 2 || !(*sizes)[0].integer() || !(*sizes)[1].integer())
      return lite::unsupported("quantization_config.weight_block_size: expected two integers");
    entry.block_rows = *(*sizes)[0].integer();
    entry.block_cols = *(*sizes)[1].integer();
  }
  return entry;
}

}  // namespace

Result<std::unique_ptr<Model>> Model::outline(const std::string& path) {
  constexpr int64_t kMostBytes = int64_t(1) << 24, kMostTensors = int64_t(1) << 20,
                    kLargest = int64_t(1) << 22, kMostWeights = int64_t(1) << 50;
  LITE_ASSIGN(const std::string text, lite::read_text(path, kMostBytes));
  LITE_ASSIGN(const Json json, Json::parse_file(text, path));
  auto config = Config::parse(json);
  if (!config.ok()) return config.status().in(path);
  int64_t tensors = 0;
  for (const LayerConfig& l : config->layers) tensors += 20 + 3 * l.n_routed_experts;
  if (tensors > kMostTensors)
    return lite::unsupported(path, ": it describes about ", tensors, " tensors, expected at most ",
                             kMostTensors);
  auto model = std::unique_ptr<Model>(new Model({}, std::move(*config)));
  int64_t address = 4096;
  for (const TensorInfo& info : model->table_) {
    if (info.optional) continue;  // as released: copies are aliases, a tied head is not there
    LITE_ASSIGN(lite::PackEntry entry, expected_entry(info, json, model->config_.architecture));
    LITE_TRY(entry.check().in(path));
    for (const int64_t size : entry.shape)
      if (size > kLargest)
        return lite::unsupported(path, ": tensor \"", info.name, "\" would have a dimension of ", size,
                                 ", expected at most ", kLargest);
    if (address > kMostWeights)
      return lite::unsupported(path, ": its weights would take more than ", kMostWeights, " bytes");
    const int64_t data = address, scales = data + entry.data_bytes();
    address = scales + entry.scale_bytes();
    lite::PackFile::Item item;
    item.tensor = entry.view(reinterpret_cast<std::byte*>(data), reinterpret_cast<std::byte*>(scales));
    item.entry = std::move(entry);
    model->items_[size_t(&info - model->table_.data())] = &model->outline_.emplace_back(std::move(item));
  }
  return model;
}

namespace {

std::string shape_text(const int64_t* shape, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += lite::str(i ? ", " : "", shape[i]);
  return text + "]";
}

}  // namespace

Status Model::check_tensors() const {
  for (const TensorInfo& t : table_) {
    const lite::PackFile::Item* item = find(t);
    if (!item) {
      if (t.optional) continue;
      return lite::corrupt("open ", file_->path(), ": tensor \"", t.name,
                           "\" is missing; convert the checkpoint again");
    }
    const std::vector<int64_t>& shape = item->entry.shape;
    if (shape != t.shape)
      return lite::corrupt("open ", file_->path(), ": tensor \"", t.name, "\": got shape ",
                           shape_text(shape.data(), shape.size()), ", expected ",
                           shape_text(t.shape.data(), t.shape.size()), "; convert again");
    if (!lite::info(item->entry.dtype).is_float)
      return lite::corrupt("open ", file_->path(), ": tensor \"", t.name, "\": got type ",
                           lite::info(item->entry.dtype).name, ", expected a float type; convert again");
  }
  return {};
}

Tensor Model::tensor(const std::string& name) const {
  const auto at = by_name().find(name);
  if (at == by_name().end()) return {};
  if (const lite::PackFile::Item* item = items_[at->second])
    return copy_ ? copy_->tensor(*item) : item->tensor;
  const std::string& same_as = table_[at->second].same_as;
  return same_as.empty() ? Tensor() : tensor(same_as);
}

int64_t Model::parameters() const {
  int64_t n = 0;
  for (const lite::PackFile::Item& item : file_->items())
    if (item.alias_of < 0) n += item.tensor.elements();
  return n;
}

int64_t Model::parameters_per_token() const {
  double parameters = 0;
  for (const TensorInfo& t : table_) {
    const lite::PackFile::Item* item = find(t);
    if (!item || t.layer < 0 || t.layer >= config_.num_hidden_layers) continue;
    const LayerConfig& l = config_.layers[t.layer];
    const double share =
        t.role == Role::RoutedExperts ? double(l.num_experts_per_tok) / double(l.n_routed_experts) : 1;
    parameters += share * double(item->tensor.elements());
  }
  return int64_t(parameters);
}

int64_t Model::bytes_per_token() const {
  double bytes = 0;
  for (const TensorInfo& t : table_) {
    if (t.layer >= config_.num_hidden_layers) continue;
    const lite::PackFile::Item* item = find(t);
    if (!item) continue;
    const double all = double(item->entry.data_bytes() + item->entry.scale_bytes());
    if (t.role == Role::Embed) {
      bytes += all / double(config_.vocab_size);  // one row
      if (config_.tie_word_embeddings) bytes += all;
    } else if (t.role == Role::RoutedExperts) {
      const LayerConfig& l = config_.layers[t.layer];
      bytes += all * double(l.num_experts_per_tok) / double(l.n_routed_experts);
    } else if (!(t.role == Role::Head && t.optional)) {
      bytes += all;
    }
  }
  return int64_t(bytes);
}

const std::string& Model::describe() {
  const std::lock_guard lock(describing_);
  if (!description_.empty()) return description_;

  Json::Array tensors;
  std::vector<std::map<std::string, int64_t>> bytes(config_.layers.size() + 1);  // [layer + 1][role]
  for (const TensorInfo& t : table_) {
    const lite::PackFile::Item* item = find(t);
    if (!item) continue;
    Json entry{Json::Object()};
    entry.set("name", item->entry.name);
    entry.set("role", role_name(t.role));
    if (t.layer >= 0) entry.set("layer", int64_t(t.layer));
    if (t.expert >= 0) entry.set("expert", int64_t(t.expert));
    entry.set("dtype", lite::info(item->entry.dtype).name);
    entry.set("shape", Json::Array(t.shape.begin(), t.shape.end()));
    if (item->entry.scaled) {
      entry.set("scale_dtype", lite::info(item->entry.scale_dtype).name);
      entry.set("scale_block", Json::Array{item->entry.block_rows, item->entry.block_cols});
    }
    const int64_t size = item->entry.data_bytes() + item->entry.scale_bytes();
    entry.set("bytes", size);
    if (item->alias_of >= 0)
      entry.set("alias_of", file_->items()[item->alias_of].entry.name);
    else
      bytes[t.layer + 1][role_name(t.role)] += size;
    tensors.push_back(std::move(entry));
  }

  const auto by_role = [](const std::map<std::string, int64_t>& roles) {
    Json out{Json::Object()};
    for (const auto& [role, size] : roles) out.set(role, size);
    return out;
  };
  Json::Array layers;
  for (size_t i = 0; i < config_.layers.size(); ++i) {
    const LayerConfig& l = config_.layers[i];
    Json layer{Json::Object()};
    layer.set("layer", int64_t(i));
    layer.set("kind", int64_t(i) >= config_.num_hidden_layers ? "mtp" : l.moe ? "moe" : "dense");
    layer.set("num_attention_heads", l.num_attention_heads);
    if (!config_.is_mla()) {
      layer.set("num_key_value_heads", l.num_key_value_heads);
      layer.set("head_dim", l.head_dim);
    }
    layer.set("cached_values", config_.cached_values(l));
    if (l.moe) {
      layer.set("moe_intermediate_size", l.moe_intermediate_size);
      layer.set("n_routed_experts", l.n_routed_experts);
      layer.set("num_experts_per_tok", l.num_experts_per_tok);
      layer.set("n_shared_experts", l.n_shared_experts);
      layer.set("n_group", l.n_group);
      layer.set("topk_group", l.topk_group);
    } else {
      layer.set("intermediate_size", l.intermediate_size);
    }
    layer.set("bytes", by_role(bytes[i + 1]));
    layers.push_back(std::move(layer));
  }

  Json all{Json::Object()};
  all.set("id", file_->model_id());
  all.set("file_bytes", file_->file_bytes());
  all.set("parameters", parameters());
  all.set("bytes_per_token", bytes_per_token());
  all.set("config", config_.effective);
  all.set("bytes", by_role(bytes[0]));
  all.set("layers", std::move(layers));
  all.set("sections", Json::Array(file_->section_names().begin(), file_->section_names().end()));
  if (const std::string_view* text = file_->section("provenance.json"))
    if (auto provenance = Json::parse(*text, "provenance.json"); provenance.ok() && provenance->object())
      all.set("provenance", *provenance);
  all.set("tensors", std::move(tensors));
  description_ = all.dump();
  return description_;
}

}  // namespace dsv3
