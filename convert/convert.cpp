// Conversion in three steps: match the checkpoint with the table of what the model needs (nothing is written
// until everything is known to fit), fix the file's layout, stream the tensors.
#include "convert/convert.h"

#include <algorithm>
#include <filesystem>
#include <new>
#include <unordered_map>
#include <unordered_set>

#include "convert/checkpoint.h"
#include "convert/layout.h"
#include "convert/recode.h"
#include "ggml-lite/pack.h"
#include "model/tensors.h"
#include "text/tokenizer.h"
#include "version.h"

namespace dsv3 {
namespace {

using lite::corrupt;
using lite::DType;
using lite::kScaleBlock;
using lite::not_found;
using lite::PackEntry;
using lite::unsupported;
namespace fs = std::filesystem;

// Bytes read at once; elements re-encoded at once, which is enough 128-row blocks for many cores.
constexpr int64_t kPiece = int64_t(4) << 20;
constexpr int64_t kRecodeElements = int64_t(8) << 20;

// Files of a checkpoint that are kept byte for byte.
constexpr const char* kSections[] = {"chat_template.jinja",    "chat_template.json",      "config.json",
                                     "generation_config.json", "special_tokens_map.json", "tiktoken.model",
                                     "tokenizer.json",         "tokenizer_config.json"};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += lite::str(i ? ", " : "", shape[i]);
  return text + "]";
}

// A tensor of the table with where it comes from and what it becomes.
struct Planned {
  const TensorInfo* info;
  Checkpoint::Tensor source;
  const Checkpoint::Tensor* scale;  // null: none
  DType dtype, scale_dtype;         // in the checkpoint
  PackEntry entry;                  // in the packed file
};

class Conversion {
 public:
  Conversion(const ConvertOptions& options, const ConvertCallbacks& callbacks)
      : options_(options), callbacks_(callbacks) {}

  Result<ConvertSummary> run();

 private:
  Status read_sections();
  const std::string_view* section(std::string_view name) const;
  Status check_tokenizer() const;
  Status match();
  void match_tensor(const TensorInfo& info);
  Status report_mismatches() const;
  void report_extras() const;
  Status find_aliases();
  Result<bool> same_bytes(const Planned& a, const Planned& b);
  Status stream(lite::PackWriter* writer);
  Status report_progress() const;
  Status read_piece(const Checkpoint::Tensor& t, DType dtype, int64_t from, std::span<std::byte> to);
  Status bad_element(const Checkpoint::Tensor& t, int64_t index, const std::string& why) const;
  Status read_scales(const Planned& t);
  Status copy(const Planned& t, lite::PackWriter* writer);
  Status recode_matrix(const Planned& t, lite::PackWriter* writer);
  void note(const std::string& text) const {
    if (callbacks_.note) callbacks_.note(text);
  }

  const ConvertOptions& options_;
  const ConvertCallbacks& callbacks_;
  std::vector<lite::PackSection> sections_;
  std::vector<std::string_view> section_texts_;  // of sections_
  Config config_;
  std::vector<TensorInfo> table_;
  Checkpoint checkpoint_;
  std::vector<Planned> planned_;  // what is stored, in the order of the table
  std::vector<lite::PackAlias> aliases_;
  std::unordered_set<std::string_view> used_;  // names of the checkpoint that have a meaning
  // Names for messages, by what is wrong with them.
  std::vector<std::string> missing_, ambiguous_, wrong_shape_, wrong_type_, missing_scale_, wrong_scale_;

  int64_t done_ = 0, total_ = 0;  // bytes read
  std::vector<std::byte> piece_, recoded_, scales_;
  std::vector<float> new_scales_, scratch_;
};

Result<ConvertSummary> Conversion::run() {
  if (options_.dtype && !lite::info(*options_.dtype).is_float)
    return lite::invalid_argument("convert ", options_.source, ": weights cannot be stored as ",
                                  lite::info(*options_.dtype).name);
  LITE_TRY(check_destination(options_.out, options_.force));
  LITE_TRY(read_sections());
  LITE_TRY(check_tokenizer());
  LITE_ASSIGN(checkpoint_, Checkpoint::open(options_.source));
  LITE_TRY(match());
  LITE_TRY(find_aliases());
  if (options_.f8_head &&
      std::none_of(planned_.begin(), planned_.end(), [](const Planned& t) { return t.info->output_head; }))
    return lite::invalid_argument("convert ", options_.source,
                                  ": it has no output head of its own that could be stored as F8_E4M3");

  Json json{Json::Object()};
  json.set("config", config_.effective);
  std::vector<Stored> stored;
  for (const Planned& t : planned_) stored.push_back({t.info, t.entry});
  LITE_ASSIGN(const std::vector<lite::PackExtent> extents, group_into_extents(stored));
  LITE_ASSIGN(lite::PackWriter writer,
              lite::PackWriter::create(options_.out, json, std::move(sections_), extents, aliases_));
  LITE_TRY(stream(&writer));
  LITE_TRY(writer.finish());
  return ConvertSummary{writer.file_bytes(), int64_t(planned_.size()), int64_t(aliases_.size())};
}

Status Conversion::read_sections() {
  const std::string& folder = options_.source;
  std::error_code error;
  const fs::file_status source = fs::status(folder, error);
  if (!fs::exists(source))
    return not_found("read ", folder,
                     ": there is no such folder; try to download the checkpoint first and give its folder");
  if (!fs::is_directory(source))
    return lite::invalid_argument("read ", folder,
                                  ": it is a file, expected the folder that holds config.json");
  for (const char* name : kSections) {
    LITE_ASSIGN(std::optional<std::string> text, read_checkpoint_text(folder, name));
    if (text) sections_.push_back({name, std::move(*text)});
  }
  Json provenance{Json::Object()};
  provenance.set("converter", "dsv3-convert " DSV3_VERSION_TEXT);
  provenance.set("dtype", options_.dtype ? lite::info(*options_.dtype).name : "keep");
  if (options_.f8_head) provenance.set("head", lite::info(DType::F8_E4M3).name);
  // A section and not a member of the JSON block: how a file was made does not belong to the model's id.
  sections_.push_back({"provenance.json", provenance.dump()});
  for (const lite::PackSection& s : sections_) section_texts_.push_back(s.bytes);
  const std::string_view* text = section("config.json");
  if (!text) return not_found("read ", folder, ": it has no config.json, expected a checkpoint's folder");
  LITE_ASSIGN(const Json config, Json::parse(*text, folder + "/config.json"));
  std::vector<std::string> unknown;
  LITE_ASSIGN(config_, Config::parse(config, &unknown));
  if (!unknown.empty()) note("config.json: these keys are not used: " + list_names(unknown));
  for (const lite::PackSection& s : sections_)
    if (s.name.ends_with(".json")) LITE_TRY(Json::parse(s.bytes, folder + "/" + s.name).status());
  return {};
}

const std::string_view* Conversion::section(std::string_view name) const {
  for (size_t i = 0; i < sections_.size(); ++i)
    if (sections_[i].name == name) return &section_texts_[i];
  return nullptr;
}

Status Conversion::check_tokenizer() const {
  const auto tokenizer = Tokenizer::open([this](std::string_view name) { return section(name); });
  if (!tokenizer.ok() && tokenizer.status().code() == lite::Code::NotFound) {
    note("no tokenizer in " + options_.source + ": the packed file will take token ids only");
    return {};
  }
  if (!tokenizer.ok()) return tokenizer.status().in("read the tokenizer of " + options_.source);
  // A lone layer has no vocabulary.
  if (config_.vocab_size > 0 && tokenizer->size() > config_.vocab_size)
    return corrupt("read the tokenizer of ", options_.source, ": its largest token id is ",
                   tokenizer->size() - 1, ", but the model's vocab_size is ", config_.vocab_size,
                   "; the tokenizer is another model's");
  return {};
}

Status Conversion::match() {
  const auto has_mtp = [&] {
    return std::any_of(table_.begin(), table_.end(), [&](const TensorInfo& t) {
      return t.layer >= config_.num_hidden_layers && checkpoint_.find(t.name);
    });
  };
  table_ = tensor_table(config_);
  if (config_.num_nextn_predict_layers > 0 && !has_mtp()) {
    note(
        "the checkpoint has no multi-token-prediction layer, although config.json says so; converting "
        "without it");
    config_ = config_.without_mtp();
    table_ = tensor_table(config_);
  }
  for (const TensorInfo& info : table_) match_tensor(info);
  LITE_TRY(report_mismatches());
  report_extras();
  return {};
}

// Finds the tensor in the checkpoint, checks type, shape and scales, and says what it becomes.
void Conversion::match_tensor(const TensorInfo& info) {
  const Checkpoint::Tensor* source = checkpoint_.find(info.name);
  for (const std::string& name : info.also) {
    const Checkpoint::Tensor* other = checkpoint_.find(name);
    if (source && other) ambiguous_.push_back(source->entry->name + " and " + name);
    if (!source) source = other;
  }
  if (!source) {
    if (!info.optional)
      missing_.push_back(info.name + (info.also.empty() ? "" : " (or " + info.also[0] + ")"));
    return;
  }
  const std::string& name = source->entry->name;
  used_.insert(name);
  const Checkpoint::Tensor* scale = checkpoint_.find(name + "_scale_inv");
  if (scale) used_.insert(scale->entry->name);

  const auto dtype = lite::dtype_from_name(source->entry->dtype);
  const bool is_f8 = dtype.ok() && *dtype == DType::F8_E4M3;
  if (!dtype.ok() || !lite::info(*dtype).is_float || (is_f8 && info.shape.size() != 2)) {
    wrong_type_.push_back(name + " (" + source->entry->dtype + ")");
    return;
  }
  if (source->entry->shape != info.shape) {
    wrong_shape_.push_back(name + ": got " + shape_text(source->entry->shape) + ", expected " +
                           shape_text(info.shape));
    return;
  }
  Planned t{&info, *source, scale, *dtype, DType::F32, {}};
  if (is_f8 && !scale) {
    missing_scale_.push_back(name + "_scale_inv");
    return;
  }
  if (scale) {
    if (!is_f8) {
      wrong_scale_.push_back(scale->entry->name + ": the weight is " + source->entry->dtype +
                             " and has no use for it");
      return;
    }
    const std::vector<int64_t> grid = {lite::ceil_div(info.shape[0], kScaleBlock),
                                       lite::ceil_div(info.shape[1], kScaleBlock)};
    const auto scale_dtype = lite::dtype_from_name(scale->entry->dtype);
    if (!scale_dtype.ok() || !lite::info(*scale_dtype).is_float || *scale_dtype == DType::F8_E4M3) {
      wrong_type_.push_back(scale->entry->name + " (" + scale->entry->dtype + ")");
      return;
    }
    if (scale->entry->shape != grid) {
      wrong_scale_.push_back(scale->entry->name + ": got " + shape_text(scale->entry->shape) + ", expected " +
                             shape_text(grid));
      return;
    }
    t.scale_dtype = *scale_dtype;
  }

  t.entry.name = name;
  t.entry.shape = info.shape;
  t.entry.dtype = info.matrix && options_.dtype          ? *options_.dtype
                  : info.output_head && options_.f8_head ? DType::F8_E4M3
                                                         : *dtype;
  t.entry.scaled = t.entry.dtype == DType::F8_E4M3;
  if (t.entry.scaled) {
    t.entry.scale_dtype = is_f8 ? t.scale_dtype : DType::F32;
    t.entry.block_rows = t.entry.block_cols = kScaleBlock;
  }
  planned_.push_back(std::move(t));
}

Status Conversion::report_mismatches() const {
  const std::string what = "convert " + options_.source + ": ";
  if (!missing_.empty())
    return not_found(what, missing_.size(), " of ", table_.size(),
                     " tensors are missing: ", list_names(missing_),
                     "; the checkpoint is incomplete, or config.json is another model's");
  if (!ambiguous_.empty())
    return corrupt(what, ambiguous_.size(), " tensors are there under two names: ", list_names(ambiguous_));
  if (!missing_scale_.empty())
    return not_found(what, missing_scale_.size(),
                     " FP8 weights have a missing scale: ", list_names(missing_scale_));
  if (!wrong_type_.empty())
    return unsupported(what, wrong_type_.size(),
                       " tensors have a type that is not supported there: ", list_names(wrong_type_),
                       "; expected F32, BF16 or F16, or F8_E4M3 for matrices: other quantisation is not "
                       "supported, try a BF16 or FP8 checkpoint of the model");
  if (!wrong_shape_.empty())
    return corrupt(what, wrong_shape_.size(), " tensors have a wrong shape: ", list_names(wrong_shape_),
                   "; config.json is another model's");
  if (!wrong_scale_.empty())
    return corrupt(what, wrong_scale_.size(), " scales do not fit their weights: ", list_names(wrong_scale_));
  return {};
}

void Conversion::report_extras() const {
  std::vector<std::string> extras;
  for (const auto& [name, tensor] : checkpoint_.tensors())
    // Old checkpoints store rotary frequencies, which follow from config.json.
    if (!used_.contains(name) && !name.ends_with(".rotary_emb.inv_freq")) extras.emplace_back(name);
  std::sort(extras.begin(), extras.end());
  if (!extras.empty())
    note(lite::str(extras.size(), " tensors of the checkpoint are not used: ", list_names(extras)));
}

// Tensors that repeat another one are stored once. Whether they do is in their bytes only, and the layout of
// the file depends on it, so they are compared first.
Status Conversion::find_aliases() {
  std::unordered_map<std::string_view, const Planned*> stored;
  for (const Planned& t : planned_) stored.emplace(t.info->name, &t);
  std::unordered_set<std::string_view> repeated;
  for (const Planned& t : planned_) {
    const auto target = stored.find(t.info->same_as);
    if (target == stored.end()) continue;
    LITE_ASSIGN(const bool same, same_bytes(t, *target->second));
    if (same) {
      aliases_.push_back({t.entry.name, target->second->entry.name});
      repeated.insert(t.info->name);
    } else {
      note(t.entry.name + " differs from " + t.info->same_as + " and is stored on its own");
    }
  }
  std::erase_if(planned_, [&](const Planned& t) { return repeated.contains(t.info->name); });
  for (const Planned& t : planned_) total_ += t.source.entry->bytes + (t.scale ? t.scale->entry->bytes : 0);
  return {};
}

Result<bool> Conversion::same_bytes(const Planned& a, const Planned& b) {
  if (a.dtype != b.dtype || a.info->shape != b.info->shape || a.scale || b.scale) return false;
  const int64_t bytes = a.source.entry->bytes;
  for (int64_t at = 0; at < bytes; at += kPiece) {
    LITE_TRY(report_progress());
    piece_.resize(size_t(std::min(kPiece, bytes - at)));
    recoded_.resize(piece_.size());
    LITE_TRY(a.source.file->read(*a.source.entry, at, piece_));
    LITE_TRY(b.source.file->read(*b.source.entry, at, recoded_));
    if (piece_ != recoded_) return false;
  }
  return true;
}

Status Conversion::stream(lite::PackWriter* writer) {
  for (const Planned& t : planned_) {
    LITE_TRY(read_scales(t));
    LITE_TRY(t.entry.dtype == t.dtype ? copy(t, writer) : recode_matrix(t, writer));
  }
  return report_progress();
}

Status Conversion::report_progress() const {
  if (callbacks_.progress && !callbacks_.progress(done_, total_))
    return {lite::Code::Cancelled, "convert " + options_.source + ": cancelled"};
  return {};
}

// The next piece of a tensor, with the progress it means, without NaN and infinity.
Status Conversion::read_piece(const Checkpoint::Tensor& t, DType dtype, int64_t from,
                              std::span<std::byte> to) {
  LITE_TRY(report_progress());
  LITE_TRY(t.file->read(*t.entry, from, to));
  done_ += int64_t(to.size());
  const int64_t size = lite::size_of(dtype);
  const int64_t found = first_non_finite(dtype, to.data(), int64_t(to.size()) / size);
  return found < 0 ? Status() : bad_element(t, from / size + found, "is NaN or infinite");
}

Status Conversion::bad_element(const Checkpoint::Tensor& t, int64_t index, const std::string& why) const {
  std::string place = lite::str("element ", index);
  if (const std::vector<int64_t>& shape = t.entry->shape; shape.size() == 2)
    place += lite::str(" (row ", index / shape[1], ", column ", index % shape[1], ")");
  return corrupt("convert ", t.file->path(), ": tensor \"", t.entry->name, "\": ", place, " ", why);
}

Status Conversion::read_scales(const Planned& t) {
  scales_.resize(t.scale ? size_t(t.scale->entry->bytes) : 0);
  return t.scale ? read_piece(*t.scale, t.scale_dtype, 0, scales_) : Status();
}

// As it is: elements, then scales.
Status Conversion::copy(const Planned& t, lite::PackWriter* writer) {
  const int64_t bytes = t.source.entry->bytes;
  for (int64_t at = 0; at < bytes; at += kPiece) {
    piece_.resize(size_t(std::min(kPiece, bytes - at)));
    LITE_TRY(read_piece(t.source, t.dtype, at, piece_));
    LITE_TRY(writer->write(piece_));
  }
  return writer->write(scales_);
}

// A matrix in another type, some multiple of 128 rows at a time.
Status Conversion::recode_matrix(const Planned& t, lite::PackWriter* writer) {
  const int64_t rows = t.info->shape[0], cols = t.info->shape[1];
  const DType to = t.entry.dtype;
  const int64_t step = std::max<int64_t>(1, kRecodeElements / cols / kScaleBlock) * kScaleBlock;
  const int64_t grid_row = lite::ceil_div(cols, kScaleBlock);
  new_scales_.resize(to == DType::F8_E4M3 ? size_t(lite::ceil_div(rows, kScaleBlock) * grid_row) : 0);
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t n = std::min(step, rows - row), first = row * cols, block = row / kScaleBlock * grid_row;
    piece_.resize(size_t(n * cols * lite::size_of(t.dtype)));
    recoded_.resize(size_t(n * cols * lite::size_of(to)));
    LITE_TRY(read_piece(t.source, t.dtype, first * lite::size_of(t.dtype), piece_));
    const std::byte* scales = t.scale ? scales_.data() + block * lite::size_of(t.scale_dtype) : nullptr;
    float* new_scales = new_scales_.empty() ? nullptr : new_scales_.data() + block;
    recode({t.dtype, n, cols, piece_.data(), scales, t.scale_dtype}, to, recoded_.data(), new_scales,
           &scratch_);
    const int64_t found = first_non_finite(to, recoded_.data(), n * cols);
    if (found >= 0)
      return bad_element(t.source, first + found,
                         lite::str("does not fit ", lite::info(to).name, "; try another --dtype"));
    LITE_TRY(writer->write(recoded_));
  }
  return writer->write(std::as_bytes(std::span(new_scales_)));
}

}  // namespace

Result<ConvertSummary> convert(const ConvertOptions& options, const ConvertCallbacks& callbacks) {
  try {
    return Conversion(options, callbacks).run();
  } catch (const std::bad_alloc&) {
    return lite::out_of_memory("convert ", options.source, ": the machine has no memory left");
  }
}

}  // namespace dsv3
