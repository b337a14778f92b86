#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "text/json_fields.h"
#include "text/utf8.h"

namespace dsv3 {

using lite::Result;
using lite::Status;

namespace {

constexpr size_t kMaxProbes = 1000;  // as in vocabulary.cpp: no file may make searching slow
constexpr size_t kShort = 64;        // bytes; below, looking through all pairs beats a heap

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t(uint32_t(left)) << 32 | uint32_t(right);
}

}  // namespace

Bpe::Bpe(size_t n_merges) : merges_(std::bit_ceil(2 * n_merges + 2)) {
  byte_id_.fill(-1);
}

size_t Bpe::slot(uint64_t pair) const {
  uint64_t h =
      pair * 0x9E3779B97F4A7C15u;  // the finalizer of splitmix64: ids are small and regular, so mix well
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
  h ^= h >> 27;
  const size_t mask = merges_.size() - 1;
  size_t s = h & mask;
  for (size_t probes = 0; probes < kMaxProbes; ++probes, s = (s + 1) & mask)
    if (merges_[s].pair == pair || merges_[s].pair == kNoPair) return s;
  return merges_.size();
}

Status Bpe::add_merge(int32_t left, int32_t right, int32_t merged) {
  const uint64_t pair = pair_of(left, right);
  const size_t s = slot(pair);
  if (s == merges_.size()) return lite::corrupt("merges made to collide in a hash table");
  if (merges_[s].pair == pair) return lite::corrupt("the same pair as merge ", merges_[s].rank);
  merges_[s] = {pair, n_merges_++, merged};
  return {};
}

uint64_t Bpe::look_up(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  const size_t s = slot(pair);
  if (s == merges_.size() || merges_[s].pair != pair) return kNone;
  return uint64_t(merges_[s].rank) << 32 | uint32_t(merges_[s].merged);
}

void Bpe::set_character(uint32_t code_point, int32_t id) {
  if (code_point >= character_id_.size()) character_id_.resize(code_point + 1, -1);
  character_id_[code_point] = id;
}

// At most one symbol a byte. As the reference does it, an unknown waits for the next character that has a
// token: bytes that stand for a character in between come first.
Result<size_t> Bpe::symbols_of(std::string_view piece, Token* symbols) const {
  const bool characters = !character_id_.empty();
  size_t n = 0;
  uint32_t unknown = 0;  // bytes of the one that is due
  for (size_t at = 0; at < piece.size();) {
    const Decoded d = characters ? utf8_decode(piece.substr(at)) : Decoded{0, 0};
    const std::string_view symbol = piece.substr(at, std::max<size_t>(d.length, 1));
    at += symbol.size();
    if (d.length > 0 && character(d.code_point) >= 0) {
      if (unknown) symbols[n++] = {unknown_, std::exchange(unknown, 0)};
      symbols[n++] = {character(d.code_point), uint32_t(symbol.size())};
      continue;
    }
    const bool bytes =
        std::all_of(symbol.begin(), symbol.end(), [this](char b) { return byte_id_[uint8_t(b)] >= 0; });
    if (bytes) {
      if (!characters && unknown) symbols[n++] = {unknown_, std::exchange(unknown, 0)};
      for (const char b : symbol) symbols[n++] = {byte_id_[uint8_t(b)], 1};
    } else if (unknown_ >= 0) {
      if (unknown && !fuse_unknown_) symbols[n++] = {unknown_, std::exchange(unknown, 0)};
      unknown += uint32_t(symbol.size());
    } else {
      return lite::invalid_argument(
          "encode text: ", d.length > 0 ? quoted(symbol) : lite::str("byte ", int(uint8_t(symbol[0]))),
          " has no token in this vocabulary");
    }
  }
  if (unknown) symbols[n++] = {unknown_, unknown};
  return n;
}

Status Bpe::encode(std::string_view piece, std::vector<Token>* tokens) const {
  tokens->resize(piece.size());
  LITE_ASSIGN(const size_t n, symbols_of(piece, tokens->data()));
  tokens->resize(n <= kShort ? merge_short(n, tokens->data()) : merge_long(n, tokens->data()));
  return {};
}

size_t Bpe::merge_short(size_t n, Token* symbols) const {
  std::array<uint64_t, kShort> merge;  // [i]: of symbols i and i + 1
  for (size_t i = 0; i + 1 < n; ++i) merge[i] = look_up(symbols[i].id, symbols[i + 1].id);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i)
      if (merge[i] >> 32 < merge[best] >> 32) best = i;
    if (merge[best] == kNone) break;
    symbols[best] = {int32_t(uint32_t(merge[best])), symbols[best].n_bytes + symbols[best + 1].n_bytes};
    std::copy(symbols + best + 2, symbols + n, symbols + best + 1);
    --n;
    if (best + 1 < n) {
      std::copy(merge.data() + best + 2, merge.data() + n, merge.data() + best + 1);
      merge[best] = look_up(symbols[best].id, symbols[best + 1].id);
    }
    if (best > 0) merge[best - 1] = look_up(symbols[best - 1].id, symbols[best].id);
  }
  return n;
}

size_t Bpe::merge_long(size_t n, Token* symbols) const {
  // A doubly linked list of symbols, and a heap of candidates rank << 32 | position. A candidate is stale
  // when its position's pair has another rank by now.
  struct Node {
    uint32_t previous, next;  // n: none
    uint64_t merge;           // of this symbol and the next
  };
  std::vector<Node> nodes(n);
  std::vector<uint64_t> heap;
  const auto candidate = [](uint64_t merge, size_t at) { return (merge >> 32 << 32) | at; };
  for (size_t i = 0; i < n; ++i) {
    const uint64_t merge = i + 1 < n ? look_up(symbols[i].id, symbols[i + 1].id) : kNone;
    nodes[i] = {uint32_t(i == 0 ? n : i - 1), uint32_t(i + 1), merge};
    if (merge != kNone) heap.push_back(candidate(merge, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto renew = [&](size_t at) {
    const size_t next = nodes[at].next;
    nodes[at].merge = next < n ? look_up(symbols[at].id, symbols[next].id) : kNone;
    if (nodes[at].merge == kNone) return;
    heap.push_back(candidate(nodes[at].merge, at));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const uint64_t top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    const size_t at = uint32_t(top);
    Node& node = nodes[at];
    if (node.merge == kNone || node.merge >> 32 != top >> 32) continue;
    const size_t eaten = node.next;
    symbols[at] = {int32_t(uint32_t(node.merge)), symbols[at].n_bytes + symbols[eaten].n_bytes};
    node.next = nodes[eaten].next;
    if (node.next < n) nodes[node.next].previous = uint32_t(at);
    nodes[eaten].merge = kNone;
    renew(at);
    if (node.previous < n) renew(node.previous);
  }
  size_t kept = 0;
  for (size_t at = 0; at < n; at = nodes[at].next) symbols[kept++] = symbols[at];
  return kept;
}

}  // namespace dsv3
