// Everything about a conversion that is known before the first weight is read: what the checkpoint holds, and the
// content and layout of the packed file that comes of it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "convert/convert.h"
#include "convert/match.h"

namespace dsv3 {

class Plan {
 public:
  // Finds the checkpoint, reads its text files and the headers of its shards, and matches them with the model.
  static Result<Plan> make(const ConvertOptions& options, const ConvertCallbacks& callbacks);

  // Tensors that repeat another one are stored once. Whether they do is in their bytes, which are compared here,
  // unless `known` (the aliases of an interrupted conversion of this checkpoint) tells. Then the layout is fixed.
  Status lay_out(const std::vector<lite::PackAlias>* known);

  const std::string& folder() const { return checkpoint_.folder(); }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  Checkpoint& checkpoint() { return checkpoint_; }
  const Match& match() const { return match_; }
  const std::vector<lite::PackSection>& sections() const { return sections_; }
  bool has_tokenizer() const { return has_tokenizer_; }
  lite::Json json() const;  // the packed file's JSON block

  // After lay_out(): extents, and the tensors of each (indices into match().tensors).
  const std::vector<lite::PackExtent>& extents() const { return extents_; }
  const std::vector<std::vector<size_t>>& tensors_of() const { return tensors_of_; }
  const std::vector<lite::PackAlias>& aliases() const { return aliases_; }
  int64_t source_bytes(size_t extent) const;  // what is read for it
  Role role_of(size_t extent) const { return match_.tensors[tensors_of_[extent][0]].info->role; }
  // Extent that holds the bytes of tensor `i` of the match, under this or another name.
  size_t extent_of(size_t i) const { return extent_of_[i]; }

 private:
  Plan(const ConvertOptions& options, const ConvertCallbacks& callbacks)
      : options_(&options), callbacks_(&callbacks) {}
  Status read_sections(Config* config);
  Status check_tokenizer(const Config& config);
  Status check_generation();
  const std::string_view* section(std::string_view name) const;
  void add_provenance();
  Result<bool> same_bytes(const Slice& a, const Slice& b) const;
  Result<bool> same_tensor(const Planned& a, const Planned& b) const;
  Status group();
  void note(const std::string& text) const {
    if (callbacks_->note) callbacks_->note(text);
  }

  const ConvertOptions* options_;
  const ConvertCallbacks* callbacks_;
  std::vector<lite::PackSection> sections_;
  std::vector<std::string_view> section_texts_;  // of sections_, while they are read
  bool has_tokenizer_ = false;
  Checkpoint checkpoint_;
  Match match_;
  std::vector<lite::PackAlias> aliases_;
  std::vector<lite::PackExtent> extents_;
  std::vector<std::vector<size_t>> tensors_of_;
  std::vector<size_t> extent_of_;
};

}  // namespace dsv3
