#include "model/placement.h"

#include <charconv>
#include <numeric>
#include <set>

namespace dsv3 {

using lite::invalid_argument;
using lite::str;

std::string device_text(int device) {
  return device == 0 ? "cpu" : str("cuda:", device - 1);
}

Placement::Placement(const Config& config, int device)
    : roles_(config.layers.size() + 1), main_layers_(int(config.num_hidden_layers)) {
  for (auto& roles : roles_) roles.fill(device);
  for (const LayerConfig& l : config.layers) experts_.emplace_back(size_t(l.n_routed_experts), device);
}

int Placement::device(int layer, Role role) const {
  if (layer >= main_layers_ && (role == Role::Embed || role == Role::Head)) layer = -1;
  if (role == Role::RoutedExperts && layer >= 0 && !experts_[size_t(layer)].empty())
    return experts_[size_t(layer)][0];
  return roles_[size_t(layer + 1)][size_t(role)];
}

void Placement::put(int layer, Role role, int device) {
  roles_[size_t(layer + 1)][size_t(role)] = device;
  if (role == Role::RoutedExperts && layer >= 0)
    for (int& expert : experts_[size_t(layer)]) expert = device;
}

// ---- rules ------------------------------------------------------------------------------------------------

namespace {

constexpr Role kAllRoles[] = {Role::Embed,         Role::Attention,     Role::DenseFfn, Role::Router,
                              Role::SharedExperts, Role::RoutedExperts, Role::Mtp,      Role::Head};

bool has_part(const Config& c, int layer, Role role) {
  if (layer < 0) return role == Role::Embed || role == Role::Head;
  const LayerConfig& l = c.layers[size_t(layer)];
  switch (role) {
    case Role::Attention: return true;
    case Role::DenseFfn: return !l.moe;
    case Role::Router:
    case Role::RoutedExperts: return l.moe;
    case Role::SharedExperts: return l.moe && l.n_shared_experts > 0;
    case Role::Mtp: return layer >= c.num_hidden_layers;
    case Role::Embed:
    case Role::Head: return false;
  }
  return false;
}

// "7" or "3-20" in 0..limit - 1.
bool read_range(const std::string& text, int limit, int* first, int* last) {
  const char *at = text.data(), *const end = at + text.size();
  auto read = std::from_chars(at, end, *first);
  if (read.ec != std::errc()) return false;
  *last = *first;
  if (read.ptr != end && *read.ptr == '-') {
    at = read.ptr + 1;
    read = std::from_chars(at, end, *last);
  }
  return read.ec == std::errc() && read.ptr == end && *first >= 0 && *first <= *last && *last < limit;
}

// One rule, word by word.
class RuleReader {
 public:
  RuleReader(std::string_view text, const Config& config, int gpus) : c_(config), gpus_(gpus) {
    rule_ = {std::string(text), 0, int(config.layers.size()) - 1, true, {}, 0, -1, 0};
    std::string word;
    for (const char ch : text) {
      const bool space = ch == ' ' || ch == '\t';
      if (!space && ch != '=') word += ch;
      if ((space || ch == '=') && !word.empty()) words_.push_back(std::exchange(word, ""));
      if (ch == '=') words_.push_back("=");
    }
    if (!word.empty()) words_.push_back(word);
  }

  bool empty() const { return words_.empty(); }

  Result<PlaceRule> read() {
    if (is("layers") || is("layer")) {
      rule_.every_layer = false;
      LITE_TRY(range("layers", int(c_.layers.size()), &rule_.first_layer, &rule_.last_layer));
    }
    if (is("experts") || is("expert")) {
      rule_.role = Role::RoutedExperts;
      int64_t most = 0;
      for (const LayerConfig& l : c_.layers) most = std::max(most, l.n_routed_experts);
      LITE_TRY(range("experts", int(most), &rule_.first_expert, &rule_.last_expert));
    } else if (!at_end() && words_[next_] != "=") {
      LITE_TRY(role());
    }
    if (!is("=")) return expected();
    ++next_;
    LITE_TRY(device());
    if (!at_end()) return expected();
    if (rule_.every_layer && !rule_.role) return expected();
    for (int layer = rule_.every_layer ? -1 : rule_.first_layer; layer <= rule_.last_layer; ++layer)
      for (const Role r : kAllRoles)
        if ((!rule_.role || r == *rule_.role) && has_part(c_, layer, r)) return rule_;
    return invalid_argument("place \"", rule_.text, "\": the model has no such part in these layers");
  }

 private:
  bool at_end() const { return next_ == words_.size(); }
  bool is(const char* word) const { return !at_end() && words_[next_] == word; }

  Status expected() const {
    return invalid_argument(
        "place \"", rule_.text, "\": got ", at_end() ? "its end" : "\"" + words_[next_] + "\"",
        ", expected [layers A-B] and embed, attention, dense_ffn, router, shared_experts, "
        "routed_experts, mtp, head or experts A-B, then = and cpu, cuda or cuda:N");
  }

  Status range(const char* what, int limit, int* first, int* last) {
    if (++next_ < words_.size() && read_range(words_[next_], limit, first, last)) {
      ++next_;
      return {};
    }
    return invalid_argument("place \"", rule_.text, "\": ", what, ": got ",
                            at_end() ? "nothing" : "\"" + words_[next_] + "\"",
                            ", expected a number or A-B in 0..", limit - 1);
  }

  Status role() {
    for (const Role r : kAllRoles)
      if (words_[next_] == role_name(r)) {
        rule_.role = r;
        ++next_;
        return {};
      }
    if (words_[next_] == "kv")
      return invalid_argument("place \"", rule_.text,
                              "\": cached rows lie with their layer's attention; place attention");
    return expected();
  }

  Status device() {
    if (at_end()) return expected();
    const std::string& word = words_[next_];
    int number = 0;
    if (word.starts_with("cuda:")) {
      const char* end = word.data() + word.size();
      const auto [at, error] = std::from_chars(word.data() + 5, end, number);
      if (error != std::errc() || at != end || number < 0) return expected();
    } else if (word != "cpu" && word != "cuda") {
      return expected();
    }
    rule_.device = word == "cpu" ? 0 : number + 1;
    if (rule_.device > gpus_)
      return invalid_argument("place \"", rule_.text, "\": got GPU ", number, ", but there are ", gpus_,
                              " in use");
    ++next_;
    return {};
  }

  const Config& c_;
  int gpus_;
  PlaceRule rule_;
  std::vector<std::string> words_;
  size_t next_ = 0;
};

}  // namespace

Result<std::vector<PlaceRule>> parse_place(std::string_view text, const Config& config, int gpus) {
  std::vector<PlaceRule> rules;
  while (!text.empty()) {
    const size_t end = std::min(text.find_first_of(";\n"), text.size());
    RuleReader reader(text.substr(0, end), config, gpus);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (reader.empty()) continue;
    LITE_ASSIGN(PlaceRule rule, reader.read());
    rules.push_back(std::move(rule));
  }
  return rules;
}

// ---- choosing ---------------------------------------------------------------------------------------------

namespace {

constexpr int kFree = -1;  // nobody has said where

class Chooser {
 public:
  Chooser(const Config& config, const Parts& parts, const Demand& demand, int gpus)
      : c_(config), parts_(parts), demand_(demand), gpus_(gpus), room_(demand.room), p_(config, kFree) {
    layers_ = int(demand.mtp ? config.layers.size() : size_t(config.num_hidden_layers));
  }

  Result<Placement> choose(std::span<const PlaceRule> rules) {
    for (const PlaceRule& rule : rules) apply(rule);
    if (!room_.empty()) {
      LITE_TRY(take_named());
      find_homes();
      for (int layer = 0; layer < layers_; ++layer) place_common(layer);
      place(-1, Role::Head, gpus_);
      for (int layer = 0; layer < layers_; ++layer) place_experts(layer, home_[size_t(layer)]);
      for (int device = 1; device <= gpus_; ++device)  // what one GPU has left over helps out the others
        for (int layer = 0; layer < layers_; ++layer) place_experts(layer, device);
    }
    const int rest = room_.empty() ? std::min(gpus_, 1) : 0;
    for (int layer = -1; layer < int(c_.layers.size()); ++layer) {
      for (const Role role : kAllRoles)
        if (role != Role::RoutedExperts && p_.device(layer, role) == kFree) p_.put(layer, role, rest);
      for (int e = 0; e < experts(layer); ++e)
        if (p_.expert_device(layer, e) == kFree) p_.put_expert(layer, e, rest);
    }
    return p_;
  }
  const std::vector<int64_t>& left() const { return room_; }

 private:
  int experts(int layer) const { return layer < 0 ? 0 : int(c_.layers[size_t(layer)].n_routed_experts); }

  // With the cached rows that lie with them.
  int64_t bytes(int layer, Role role) const {
    int64_t n = parts_.of(layer, role).copied;
    if (role == Role::Attention) n += demand_.cache[size_t(layer)];
    if (role != Role::Head || layer >= 0) return n;
    n += parts_.tied();
    if (demand_.mtp) n += demand_.cache.back() + parts_.of(int(c_.num_hidden_layers), Role::Head).copied;
    return n;
  }

  void apply(const PlaceRule& rule) {
    for (int layer = rule.every_layer ? -1 : rule.first_layer; layer <= rule.last_layer; ++layer)
      for (const Role role : kAllRoles) {
        if ((rule.role && role != *rule.role) || !has_part(c_, layer, role)) continue;
        if (rule.last_expert < rule.first_expert)
          p_.put(layer, role, rule.device);
        else
          for (int e = rule.first_expert; e <= std::min(rule.last_expert, experts(layer) - 1); ++e)
            p_.put_expert(layer, e, rule.device);
      }
  }

  // The parts that rules have put somewhere come first.
  Status take_named() {
    for (int layer = -1; layer < layers_; ++layer) {
      for (const Role role : kAllRoles) {
        if (role == Role::RoutedExperts || !has_part(c_, layer, role)) continue;
        if (const int device = p_.device(layer, role); device > 0)
          room_[size_t(device)] -= bytes(layer, role);
      }
      for (int e = 0; e < experts(layer); ++e)
        if (const int device = p_.expert_device(layer, e); device > 0)
          room_[size_t(device)] -= parts_.expert(layer, e).copied;
    }
    for (int device = 1; device <= gpus_; ++device) {
      const int64_t left = room_[size_t(device)], named = demand_.room[size_t(device)] - left;
      if (left < 0 && named > 0)
        return lite::out_of_memory("place: the parts named for ", device_text(device), " take ", named,
                                   " bytes, ", -left,
                                   " more than driver and activations leave there; name fewer, or give "
                                   "more memory");
    }
    return {};
  }

  bool take(int device, int64_t n) {
    int64_t& room = room_[size_t(device)];
    if (room < n) return false;
    room -= n;
    return true;
  }

  // Consecutive layers for every GPU, in proportion to what it has room for.
  void find_homes() {
    double all = 0, room = 0, layers_before = 0, room_before = 0;
    for (int layer = 0; layer < layers_; ++layer) all += weight(layer);
    for (int device = 1; device <= gpus_; ++device)
      room += double(std::max<int64_t>(room_[size_t(device)], 0));
    int device = 1;
    for (int layer = 0; layer < layers_; ++layer) {
      const double middle = (layers_before + weight(layer) / 2) / all;
      const auto share = [&] { return double(std::max<int64_t>(room_[size_t(device)], 0)); };
      while (device < gpus_ && middle > (room_before + share()) / room) room_before += share(), ++device;
      home_.push_back(device);
      layers_before += weight(layer);
    }
  }
  double weight(int layer) const {
    int64_t n = 0;
    for (const Role role : kAllRoles) n += parts_.of(layer, role).copied;
    return double(n + demand_.cache[size_t(layer)]);
  }

  void place(int layer, Role role, int device) {
    if (p_.device(layer, role) == kFree && take(device, bytes(layer, role))) p_.put(layer, role, device);
  }

  // What every token reads of a layer, together or not at all: half a layer elsewhere costs two crossings.
  void place_common(int layer) {
    std::vector<Role> free;
    int64_t n = 0;
    for (const Role role : {Role::Attention, Role::Router, Role::SharedExperts, Role::DenseFfn, Role::Mtp}) {
      if (!has_part(c_, layer, role) || p_.device(layer, role) != kFree) continue;
      free.push_back(role);
      n += bytes(layer, role);
    }
    const int device = home_[size_t(layer)];
    if (!take(device, n)) return;
    for (const Role role : free) p_.put(layer, role, device);
  }

  void place_experts(int layer, int device) {
    for (int e = 0; e < experts(layer); ++e) {
      if (p_.expert_device(layer, e) != kFree) continue;
      if (!take(device, parts_.expert(layer, e).copied)) return;
      p_.put_expert(layer, e, device);
    }
  }

  const Config& c_;
  const Parts& parts_;
  const Demand& demand_;
  const int gpus_;
  int layers_;                 // that are used
  std::vector<int64_t> room_;  // what is left, by device
  std::vector<int> home_;      // by layer: its GPU
  Placement p_;
};

}  // namespace

Result<Placement> choose_placement(const Config& config, const Parts& parts, const Demand& demand,
                                   std::span<const PlaceRule> rules, int gpus, std::vector<int64_t>* left) {
  Chooser chooser(config, parts, demand, gpus);
  auto placement = chooser.choose(rules);
  if (left) *left = chooser.left();
  return placement;
}

std::vector<int64_t> weight_bytes(const Model& model, const Parts& parts, const Placement& p, bool mtp,
                                  int devices) {
  const Config& c = model.config();
  const int layers = int(mtp ? c.layers.size() : size_t(c.num_hidden_layers));
  std::vector<int64_t> bytes(size_t(devices), 0);
  const auto add = [&](int device, const PartBytes& part) {
    bytes[size_t(device)] += device == 0 ? part.file : part.copied;
  };
  std::set<std::pair<int, int64_t>> tables;  // of rotary frequencies: (device, dimension)
  for (int layer = -1; layer < layers; ++layer) {
    for (const Role role : kAllRoles)
      if (role != Role::RoutedExperts) add(p.device(layer, role), parts.of(layer, role));
    if (layer < 0) continue;
    const LayerConfig& l = c.layers[size_t(layer)];
    for (int e = 0; e < int(l.n_routed_experts); ++e) add(p.expert_device(layer, e), parts.expert(layer, e));
    tables.emplace(p.device(layer, Role::Attention), c.rotary_dim(l));
  }
  for (const auto& [device, dim] : tables)
    if (device > 0) bytes[size_t(device)] += lite::copied_bytes(model.rope_inv_freq(dim));
  const int head = p.device(-1, Role::Head);
  if (head > 0 && head != p.device(-1, Role::Embed)) bytes[size_t(head)] += parts.tied();
  return bytes;
}

}  // namespace dsv3
