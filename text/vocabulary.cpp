#include "text/vocabulary.h"

#include <bit>
#include <functional>

namespace dsv3 {

using lite::Status;

namespace {
// Longest search in a hash table: honest files need a few dozen steps, one made to collide shall not take for
// ever.
constexpr size_t kMaxProbes = 1000;
}  // namespace

Vocabulary::Vocabulary(size_t n_tokens)
    : max_id_(4 * n_tokens + 65536), index_(std::bit_ceil(2 * n_tokens + 2), -1) {}

Status Vocabulary::add(int64_t id, std::string_view text, bool spoken) {
  if (id < 0 || id > INT32_MAX) return lite::corrupt("id ", id, " is not in 0..2^31-1");
  if (size_t(id) > max_id_)
    return lite::corrupt("id ", id, " is far beyond what the number of tokens explains (", max_id_, ")");
  if (contains(int32_t(id))) return lite::corrupt("id ", id, " names two tokens");
  Part part;
  LITE_TRY(keep(text, &part));
  if (size_t(id) >= tokens_.size()) tokens_.resize(size_t(id) + 1);
  tokens_[size_t(id)] = {part, part, true, false};
  if (!spoken) return {};
  const size_t s = slot(text);
  if (s == index_.size()) return lite::corrupt("tokens made to collide in a hash table");
  if (index_[s] >= 0) return lite::corrupt("ids ", index_[s], " and ", id, " name the same token");
  index_[s] = int32_t(id);
  return {};
}

Status Vocabulary::set_bytes(int32_t id, std::string_view bytes) {
  Token& token = tokens_[size_t(id)];
  return bytes == view(token.text) ? Status() : keep(bytes, &token.bytes);
}

Status Vocabulary::keep(std::string_view text, Part* part) {
  if (text_.size() + text.size() > UINT32_MAX) return lite::unsupported("tokens of more than 4 GiB together");
  *part = {uint32_t(text_.size()), uint32_t(text.size())};
  text_ += text;
  return {};
}

std::string_view Vocabulary::text(int32_t id) const {
  return contains(id) ? view(tokens_[size_t(id)].text) : std::string_view();
}

std::string_view Vocabulary::bytes(int32_t id) const {
  return contains(id) ? view(tokens_[size_t(id)].bytes) : std::string_view();
}

int32_t Vocabulary::find(std::string_view text) const {
  const size_t s = slot(text);
  return s == index_.size() ? -1 : index_[s];
}

size_t Vocabulary::slot(std::string_view text) const {
  const size_t mask = index_.size() - 1;
  size_t s = std::hash<std::string_view>()(text) & mask;
  for (size_t probes = 0; probes < kMaxProbes; ++probes, s = (s + 1) & mask)
    if (index_[s] < 0 || this->text(index_[s]) == text) return s;
  return index_.size();
}

}  // namespace dsv3
