#include "convert/match.h"

#include <algorithm>
#include <unordered_set>

namespace dsv3 {
namespace {

using lite::corrupt;
using lite::DType;
using lite::kScaleBlock;
using lite::not_found;
using lite::unsupported;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += lite::str(i ? ", " : "", shape[i]);
  return text + "]";
}

// Names for a message, each once, in the order in which they came.
class Names {
 public:
  void add(const std::string& text) {
    if (seen_.insert(text).second) texts_.push_back(text);
  }
  bool empty() const { return texts_.empty(); }
  size_t size() const { return texts_.size(); }
  std::string list() const { return list_names(texts_); }

 private:
  std::unordered_set<std::string> seen_;
  std::vector<std::string> texts_;
};

class Matcher {
 public:
  Matcher(const Checkpoint& checkpoint, std::optional<DType> dtype, bool f8_head)
      : checkpoint_(checkpoint), dtype_(dtype), f8_head_(f8_head) {}

  Result<Match> run(const Config& config, const std::function<void(const std::string&)>& note);

 private:
  bool has_mtp() const;
  bool has_layer(size_t layer) const;
  bool has_fused_experts(size_t layer) const;
  Status list(const Config& config);
  void match(const TensorInfo& info);
  std::optional<DType> check_type(const Checkpoint::Tensor& tensor, bool scale);
  bool check_scale(const Planned& t, const Checkpoint::Tensor& scale, bool fused);
  Status report() const;

  const Checkpoint& checkpoint_;
  const std::optional<DType> dtype_;
  const bool f8_head_;
  Match out_;
  std::unordered_set<std::string_view> used_;  // names of the checkpoint that have a meaning
  Names missing_, ambiguous_, wrong_shape_, wrong_type_, missing_scale_, wrong_scale_, uncut_;
};

bool Matcher::has_mtp() const {
  return std::any_of(out_.table.begin(), out_.table.end(), [&](const TensorInfo& t) {
    return t.layer >= out_.config.num_hidden_layers && checkpoint_.find(t.name);
  });
}

// Whether the checkpoint has any tensor of that layer.
bool Matcher::has_layer(size_t layer) const {
  const std::string prefix = lite::str("model.layers.", layer, ".");
  const auto first = checkpoint_.tensors().lower_bound(prefix);
  return first != checkpoint_.tensors().end() && first->first.starts_with(prefix);
}

bool Matcher::has_fused_experts(size_t layer) const {
  TensorInfo info;
  info.layer = int(layer);
  info.fused = "down_proj";
  const Checkpoint::Tensor* found = checkpoint_.find(info.fused_name());
  return found && !found->entry->shape.empty() &&
         found->entry->shape[0] == out_.config.layers[layer].n_routed_experts;
}

// Sets configuration and table. A few words in config.json can ask for any number of layers and experts: of more than
// real models have, nothing is listed that the checkpoint cannot have. Else the names of what is missing say more.
Status Matcher::list(const Config& config) {
  constexpr int64_t kReal = 1 << 16;
  out_.config = config;
  int64_t fewest = fewest_tensors(config);
  if (fewest > kReal)
    for (size_t i = 0; i < config.layers.size(); ++i)
      if (has_fused_experts(i)) fewest -= 2 * config.layers[i].n_routed_experts;
  if (fewest > std::max(kReal, int64_t(checkpoint_.tensors().size())))
    return not_found("convert ", checkpoint_.folder(), ": it has ", checkpoint_.tensors().size(),
                     " tensors, but its config.json asks for at least ", fewest,
                     "; the checkpoint is incomplete, or config.json is another model's: get both again");
  out_.table = tensor_table(config);
  return {};
}

Result<Match> Matcher::run(const Config& config, const std::function<void(const std::string&)>& note) {
  bool complete = config.num_nextn_predict_layers == 0 || has_layer(size_t(config.num_hidden_layers));
  if (complete) {
    LITE_TRY(list(config));
    complete = config.num_nextn_predict_layers == 0 || has_mtp();
  }
  if (!complete) {
    note(
        "the checkpoint has no multi-token-prediction layer, although config.json says so; converting "
        "without it");
    LITE_TRY(list(config.without_mtp()));
  }
  for (const TensorInfo& info : out_.table) match(info);
  LITE_TRY(report());
  std::vector<std::string> extras;
  for (const auto& [name, tensor] : checkpoint_.tensors())
    if (!used_.contains(name)) out_.dropped.emplace_back(name);
  std::sort(out_.dropped.begin(), out_.dropped.end());
  std::copy_if(
      out_.dropped.begin(), out_.dropped.end(), std::back_inserter(extras), [](const std::string& name) {
        return !name.ends_with(".rotary_emb.inv_freq");  // of old checkpoints; they follow from config.json
      });
  if (!extras.empty())
    note(lite::str(extras.size(), " tensors of the checkpoint are not used: ", list_names(extras)));
  return std::move(out_);
}

// Finds the tensor in the checkpoint, checks type, shape and scales, and says what it becomes.
void Matcher::match(const TensorInfo& info) {
  const Checkpoint::Tensor* source = nullptr;
  bool fused = false;
  const auto consider = [&](const std::string& name, bool is_fused) {
    const Checkpoint::Tensor* found = name.empty() ? nullptr : checkpoint_.find(name);
    if (!found) return;
    used_.insert(found->entry->name);
    if (source) return ambiguous_.add(source->entry->name + " and " + name);
    source = found;
    fused = is_fused;
  };
  consider(info.name, false);
  for (const std::string& name : info.also) consider(name, false);
  consider(info.fused_name(), true);
  if (!source) {
    std::string names = info.name;
    if (!info.also.empty()) names += " (or " + info.also[0] + ")";
    if (!info.optional) missing_.add(names);
    return;
  }
  const std::string& name = source->entry->name;
  const Checkpoint::Tensor* scale = checkpoint_.find(name + kScaleSuffix);
  if (scale) used_.insert(scale->entry->name);

  const std::vector<int64_t> shape = fused ? info.fused_shape() : info.shape;
  const std::optional<DType> dtype = check_type(*source, false);
  if (!dtype) return;
  const bool is_f8 = *dtype == DType::F8_E4M3;
  if (is_f8 && info.shape.size() != 2) return wrong_type_.add(name + " (F8_E4M3)");
  if (source->entry->shape != shape)
    return wrong_shape_.add(name + ": got " + shape_text(source->entry->shape) + ", expected " +
                            shape_text(shape));
  if (is_f8 && !scale) return missing_scale_.add(name + kScaleSuffix);
  if (scale && !is_f8)
    return wrong_scale_.add(scale->entry->name + ": the weight is " + source->entry->dtype +
                            " and has no use for it");

  const int64_t cols = info.shape.size() == 2 ? info.shape[1] : 1, size = lite::size_of(*dtype);
  Planned t{&info, {*source, *dtype, 0, source->entry->bytes}, {}, {}};
  if (fused) {
    if (out_.fused.empty() || out_.fused.back() != name)
      if (std::find(out_.fused.begin(), out_.fused.end(), name) == out_.fused.end())
        out_.fused.push_back(name);
    t.data.from = (info.expert * shape[1] + info.fused_row) * cols * size;
    t.data.bytes = info.shape[0] * cols * size;
  }
  if (scale && !check_scale(t, *scale, fused)) return;
  if (scale) {
    const DType scale_dtype = *check_type(*scale, true);
    t.scale = Slice{*scale, scale_dtype, 0, scale->entry->bytes};
    if (fused) {
      const int64_t row = lite::ceil_div(cols, kScaleBlock) * lite::size_of(scale_dtype);
      t.scale->from =
          (info.expert * lite::ceil_div(shape[1], kScaleBlock) + info.fused_row / kScaleBlock) * row;
      t.scale->bytes = lite::ceil_div(info.shape[0], kScaleBlock) * row;
    }
  }

  t.entry.name = fused ? info.name : name;
  t.entry.shape = info.shape;
  t.entry.dtype = info.matrix && dtype_ ? *dtype_ : info.output_head && f8_head_ ? DType::F8_E4M3 : *dtype;
  t.entry.scaled = t.entry.dtype == DType::F8_E4M3;
  if (t.entry.scaled) {
    t.entry.scale_dtype = is_f8 ? t.scale->dtype : DType::F32;
    t.entry.block_rows = t.entry.block_cols = kScaleBlock;
  }
  out_.tensors.push_back(std::move(t));
}

// The element type of weights or scales, if it may be that.
std::optional<DType> Matcher::check_type(const Checkpoint::Tensor& tensor, bool scale) {
  const auto dtype = lite::dtype_from_name(tensor.entry->dtype);
  if (dtype.ok() && lite::info(*dtype).is_float && !(scale && *dtype == DType::F8_E4M3)) return *dtype;
  wrong_type_.add(tensor.entry->name + " (" + tensor.entry->dtype + ")");
  return {};
}

bool Matcher::check_scale(const Planned& t, const Checkpoint::Tensor& scale, bool fused) {
  if (!check_type(scale, true)) return false;
  std::vector<int64_t> grid = fused ? t.info->fused_shape() : t.info->shape;
  for (size_t i = fused ? 1 : 0; i < grid.size(); ++i) grid[i] = lite::ceil_div(grid[i], kScaleBlock);
  if (scale.entry->shape != grid) {
    wrong_scale_.add(scale.entry->name + ": got " + shape_text(scale.entry->shape) + ", expected " +
                     shape_text(grid));
    return false;
  }
  if (fused && t.info->fused_row % kScaleBlock) {
    uncut_.add(t.data.tensor.entry->name);
    return false;
  }
  return true;
}

Status Matcher::report() const {
  const std::string what = "convert " + checkpoint_.folder() + ": ";
  if (!missing_.empty())
    return not_found(what, missing_.size(), " of ", out_.table.size(),
                     " tensors are missing: ", missing_.list(),
                     "; the checkpoint is incomplete, or config.json is another model's: get both again");
  if (!ambiguous_.empty())
    return corrupt(what, ambiguous_.size(), " tensors are there under two names: ", ambiguous_.list(),
                   "; keep the shards of one version of the checkpoint only");
  if (!missing_scale_.empty())
    return not_found(what, missing_scale_.size(),
                     " FP8 weights have a missing scale: ", missing_scale_.list(),
                     "; the checkpoint is incomplete: get it again");
  if (!wrong_type_.empty())
    return unsupported(what, wrong_type_.size(),
                       " tensors have a type that is not supported there: ", wrong_type_.list(),
                       "; expected F32, BF16 or F16, or F8_E4M3 for matrices: other quantisation is not "
                       "supported, try a BF16 or FP8 checkpoint of the model");
  if (!wrong_shape_.empty())
    return corrupt(what, wrong_shape_.size(), " tensors have a wrong shape: ", wrong_shape_.list(),
                   "; config.json is another model's: get it again");
  if (!wrong_scale_.empty())
    return corrupt(
        what, wrong_scale_.size(), " scales do not fit their weights: ", wrong_scale_.list(),
        "; expected one for each 128 x 128 block of an FP8 matrix: try another checkpoint of the model");
  if (!uncut_.empty())
    return unsupported(what, uncut_.size(),
                       " tensors hold gate and up in one scale block of 128 rows, so that they cannot be "
                       "told apart: ",
                       uncut_.list(), "; try a checkpoint with a tensor for each expert");
  return {};
}

}  // namespace

Result<Match> match_checkpoint(const Checkpoint& checkpoint, const Config& config, std::optional<DType> dtype,
                               bool f8_head, const std::function<void(const std::string&)>& note) {
  return Matcher(checkpoint, dtype, f8_head).run(config, note);
}

}  // namespace dsv3
