#include "convert/plan.h"

#include <algorithm>
#include <filesystem>
#include <unordered_map>

#include "convert/hub_cache.h"
#include "convert/layout.h"
#include "convert/provenance.h"
#include "model/sections.h"
#include "text/chat_template.h"
#include "text/generation_config.h"
#include "text/tokenizer.h"

namespace dsv3 {
namespace {

using lite::corrupt;
using lite::not_found;
using lite::PackAlias;
namespace fs = std::filesystem;

constexpr int64_t kPiece = int64_t(1) << 20;  // bytes compared at once

}  // namespace

Result<Plan> Plan::make(const ConvertOptions& options, const ConvertCallbacks& callbacks) {
  Plan plan(options, callbacks);
  LITE_ASSIGN(const std::string folder, find_checkpoint(options.source, options.hub_cache));
  plan.checkpoint_ = Checkpoint(folder);
  Config config;
  LITE_TRY(plan.read_sections(&config));
  LITE_TRY(plan.check_tokenizer(config));
  LITE_TRY(plan.check_generation());
  LITE_ASSIGN(plan.checkpoint_, Checkpoint::open(folder));
  LITE_ASSIGN(plan.match_, match_checkpoint(plan.checkpoint_, config, options.dtype, options.f8_head,
                                            [&](const std::string& text) { plan.note(text); }));
  const std::vector<Planned>& tensors = plan.match_.tensors;
  if (options.f8_head &&
      std::none_of(tensors.begin(), tensors.end(), [](const Planned& t) { return t.info->output_head; }))
    return lite::invalid_argument("convert ", folder,
                                  ": it has no output head of its own that could be stored as F8_E4M3; leave "
                                  "--head out");
  plan.add_provenance();
  return plan;
}

Status Plan::read_sections(Config* config) {
  std::error_code error;
  if (!fs::is_directory(folder(), error))
    return lite::invalid_argument("read ", folder(),
                                  ": it is a file, expected a folder; give the one that holds config.json");
  LITE_ASSIGN(auto texts, read_checkpoint_texts(folder()));
  for (auto& [path, bytes] : texts) sections_.push_back({section_of_path(path), std::move(bytes)});
  for (const lite::PackSection& s : sections_) section_texts_.push_back(s.bytes);
  const std::string_view* text = section("config.json");
  if (!text)
    return not_found("read ", folder(), ": it has no config.json; get it, or give a checkpoint's folder");
  LITE_ASSIGN(const Json json, Json::parse_file(*text, folder() + "/config.json"));
  std::vector<std::string> unknown;
  auto parsed = Config::parse(json, &unknown);
  if (!parsed.ok()) return parsed.status().in(folder());
  *config = std::move(*parsed);
  if (!unknown.empty()) note("config.json: these keys are not used: " + list_names(unknown));
  for (const lite::PackSection& s : sections_) {
    if (!s.name.ends_with(".json")) continue;
    LITE_ASSIGN(const Json content, Json::parse_file(s.bytes, folder() + "/" + s.name));
    if (!content.object())
      return corrupt("read ", folder(), "/", s.name, ": got ", content.type_name(),
                     ", expected an object; get the file again, or correct it");
  }
  return {};
}

const std::string_view* Plan::section(std::string_view name) const {
  for (size_t i = 0; i < sections_.size(); ++i)
    if (sections_[i].name == name) return &section_texts_[i];
  return nullptr;
}

Status Plan::check_tokenizer(const Config& config) {
  const auto tokenizer = Tokenizer::open([this](std::string_view name) { return section(name); });
  if (!tokenizer.ok() && tokenizer.status().code() == lite::Code::NotFound) {
    note("no tokenizer in " + folder() + ": the packed file will take token ids only");
    return {};
  }
  if (!tokenizer.ok()) return tokenizer.status().in("read the tokenizer of " + folder());
  // A lone layer has no vocabulary.
  if (config.vocab_size > 0 && tokenizer->size() > config.vocab_size)
    return corrupt("read the tokenizer of ", folder(), ": its largest token id is ", tokenizer->size() - 1,
                   ", but the model's vocab_size is ", config.vocab_size,
                   "; the tokenizer is another model's: get its files again");
  has_tokenizer_ = true;
  return {};
}

// A model whose chat template this version cannot read still goes on from a prompt.
Status Plan::check_generation() {
  if (const std::string_view* text = section("generation_config.json"))
    LITE_TRY(read_generation_config(*text).status().in(folder()));
  const auto chat_template = ChatTemplate::open([this](std::string_view name) { return section(name); });
  if (!chat_template.ok() && chat_template.status().code() != lite::Code::NotFound)
    note("the chat template of " + folder() + " cannot be used: " + chat_template.status().message() +
         "; the packed file will take prompts, but no chats without another template");
  return {};
}

// A section and not a member of the JSON block: how a file was made does not belong to the model's id.
void Plan::add_provenance() {
  const Provenance provenance{options_->dtype, options_->f8_head, match_.fused, match_.dropped};
  sections_.push_back({std::string(kProvenance), provenance.json().dump()});
}

Json Plan::json() const {
  Json json{Json::Object()};
  json.set("config", match_.config.effective);
  return json;
}

Result<bool> Plan::same_bytes(const Slice& a, const Slice& b) const {
  if (a.dtype != b.dtype || a.bytes != b.bytes) return false;
  std::vector<std::byte> left, right;
  for (int64_t at = 0; at < a.bytes; at += kPiece) {
    if (callbacks_->progress && !callbacks_->progress(0, 0))
      return Status(lite::Code::Cancelled, "convert " + options_->source + ": cancelled");
    left.resize(size_t(std::min(kPiece, a.bytes - at)));
    right.resize(left.size());
    LITE_TRY(a.read(at, left));
    LITE_TRY(b.read(at, right));
    if (left != right) return false;
  }
  return true;
}

Result<bool> Plan::same_tensor(const Planned& a, const Planned& b) const {
  if (a.info->shape != b.info->shape || a.scale.has_value() != b.scale.has_value()) return false;
  LITE_ASSIGN(const bool same, same_bytes(a.data, b.data));
  return same && a.scale ? same_bytes(*a.scale, *b.scale) : Result<bool>(same);
}

Status Plan::lay_out(const std::vector<PackAlias>* known) {
  std::unordered_map<std::string_view, const Planned*> stored;
  for (const Planned& t : match_.tensors) stored.emplace(t.info->name, &t);
  if (known) aliases_ = *known;
  for (const Planned& t : match_.tensors) {
    const auto target = stored.find(t.info->same_as);
    if (known || target == stored.end()) continue;
    LITE_ASSIGN(const bool same, same_tensor(t, *target->second));
    if (same)
      aliases_.push_back({t.entry.name, target->second->entry.name});
    else
      note(t.entry.name + " differs from " + t.info->same_as + " and is stored on its own");
  }
  return group();
}

Status Plan::group() {
  std::unordered_map<std::string_view, std::string_view> target_of;
  for (const PackAlias& a : aliases_) target_of.emplace(a.name, a.target);
  const std::vector<Planned>& tensors = match_.tensors;
  std::vector<Stored> stored;
  std::vector<size_t> index;  // of a stored tensor, in `tensors`
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (target_of.contains(tensors[i].entry.name)) continue;
    stored.push_back({tensors[i].info, tensors[i].entry});
    index.push_back(i);
  }
  LITE_ASSIGN(extents_, group_into_extents(stored));
  extent_of_.resize(tensors.size());
  std::unordered_map<std::string_view, size_t> extent_of_name;
  auto next = index.begin();
  for (const lite::PackExtent& extent : extents_) {
    tensors_of_.emplace_back(next, next + std::ptrdiff_t(extent.tensors.size()));
    next += std::ptrdiff_t(extent.tensors.size());
    for (const size_t i : tensors_of_.back()) {
      extent_of_[i] = tensors_of_.size() - 1;
      extent_of_name.emplace(tensors[i].entry.name, extent_of_[i]);
    }
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto alias = target_of.find(tensors[i].entry.name);
    if (alias == target_of.end()) continue;
    const auto at = extent_of_name.find(alias->second);
    if (at == extent_of_name.end())
      return lite::internal_error("alias of ", alias->second, ", which is not stored");
    extent_of_[i] = at->second;
  }
  return {};
}

int64_t Plan::source_bytes(size_t extent) const {
  int64_t bytes = 0;
  for (const size_t i : tensors_of_[extent]) {
    const Planned& t = match_.tensors[i];
    bytes += t.data.bytes + (t.scale ? t.scale->bytes : 0);
  }
  return bytes;
}

}  // namespace dsv3
