#include "model/parts.h"

namespace dsv3 {

PartBytes& PartBytes::operator+=(const PartBytes& other) {
  file += other.file;
  copied += other.copied;
  read += other.read;
  return *this;
}

namespace {

// The MTP layer's copies of embedding and head do what these do, and lie with them.
Role part_of(const TensorInfo& t) {
  if (t.role != Role::Mtp) return t.role;
  return t.output_head ? Role::Head : t.same_as.empty() ? Role::Mtp : Role::Embed;
}

}  // namespace

Parts::Parts(const Model& model) : roles_(model.config().layers.size() + 1) {
  const Config& c = model.config();
  for (const LayerConfig& l : c.layers) experts_.emplace_back(size_t(l.n_routed_experts));
  lite::PackExtent extent;  // of one expert: its tensors follow each other
  const auto& table = model.table();
  for (size_t i = 0; i < table.size(); ++i) {
    const TensorInfo& t = table[i];
    const lite::PackFile::Item* item = model.find(t);
    if (!item || item->alias_of >= 0) continue;
    const Role role = part_of(t);
    const double bytes = double(item->entry.data_bytes() + item->entry.scale_bytes());
    PartBytes part;
    part.copied = lite::copied_bytes(item->tensor);
    part.read = role == Role::Embed ? bytes / double(c.vocab_size) : bytes;  // one row
    extent.tensors.push_back(item->entry);
    if (t.expert >= 0) {
      const LayerConfig& l = c.layers[size_t(t.layer)];
      part.read *= double(l.num_experts_per_tok) / double(l.n_routed_experts);
    }
    const bool more = t.expert >= 0 && i + 1 < table.size() && table[i + 1].expert == t.expert &&
                      table[i + 1].layer == t.layer;
    if (!more) {
      part.file = *lite::extent_bytes(extent);  // every entry has been checked
      extent.tensors.clear();
    }
    roles_[size_t(t.layer + 1)][size_t(role)] += part;
    if (t.expert >= 0) experts_[size_t(t.layer)][size_t(t.expert)] += part;
    if (role == Role::Embed && t.layer < 0 && c.tie_word_embeddings) {
      tied_ = part.copied;
      roles_[0][size_t(Role::Head)].read += bytes;
    }
  }
}

}  // namespace dsv3
