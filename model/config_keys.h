// Reads config.json's keys strictly, and records what they came to.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "model/config.h"

namespace dsv3 {

constexpr size_t kMostKeys = 1000;  // of one object: keys are looked for one by one, for each layer
constexpr int64_t kMostLayers = 1000;
constexpr int64_t kLargestSize = 1 << 24;  // of any dimension: products of two sizes stay far below 2^63

// Reads the keys of one object. What is read, or taken from a default, is recorded under its key in
// `effective`; the first error is kept, so that a list of reads needs one check at its end. Until then every value is
// in its range, also one that was refused: the caller may divide by it.
class Keys {
 public:
  // With `over`, an object whose members take the place of those of `object`. `advice` is what to try when a value is
  // not supported.
  Keys(const Json& object, std::string where, const Json* over = nullptr,
       const char* advice = "try a newer version, or the checkpoint of a supported model")
      : object_(object), over_(over), where_(std::move(where)), advice_(advice) {
    if (object.object() && object.object()->size() > kMostKeys)
      fail(lite::invalid_argument(where_, ": got ", object.object()->size(), " keys, expected at most ",
                                  kMostKeys));
  }

  int64_t size(const char* key) { return integer(key, nullptr, 1, kLargestSize); }
  int64_t size(const char* key, int64_t fallback, int64_t smallest = 0) {
    return integer(key, &fallback, smallest, kLargestSize);
  }
  int64_t count(const char* key, int64_t largest) { return integer(key, nullptr, 1, largest); }
  double number(const char* key, const double* fallback, double smallest, double largest) {
    const Json* v = get(key, fallback != nullptr);
    double value = fallback ? *fallback : smallest;
    if (v && (!v->number(&value) || !(value >= smallest && value <= largest))) {
      fail(key, *v, lite::str("a number from ", smallest, " to ", largest));
      value = smallest;
    }
    effective_.set(key, value);
    return value;
  }
  bool boolean(const char* key, bool fallback) {
    const Json* v = get(key, true);
    if (v && !v->boolean()) fail(key, *v, "true or false");
    const bool value = v && v->boolean() ? *v->boolean() : fallback;
    effective_.set(key, value);
    return value;
  }
  // The index of the value among `choices`; a null `fallback` makes the key required.
  int choice(const char* key, const char* fallback, const std::vector<const char*>& choices) {
    const Json* v = get(key, fallback != nullptr);
    std::string value = fallback ? fallback : "", expected;
    if (v && v->string()) value = *v->string();
    for (size_t i = 0; i < choices.size(); ++i) {
      if (value == choices[i] && !(v && !v->string())) {
        effective_.set(key, value);
        return int(i);
      }
      expected += lite::str(i ? ", \"" : "\"", choices[i], "\"");
    }
    if (v) fail(key, *v, "one of " + expected, true);
    return 0;
  }
  // Token ids: null, one, or a list.
  std::vector<int64_t> ids(const char* key) {
    const Json* v = get(key, true);
    std::vector<int64_t> out;
    if (v && v->integer()) out.push_back(*v->integer());
    if (v && v->array())
      for (const Json& item : *v->array())
        if (item.integer()) out.push_back(*item.integer());
    const bool whole = !v || v->integer() || (v->array() && v->array()->size() == out.size());
    if (!whole || std::any_of(out.begin(), out.end(), [](int64_t id) { return id < 0 || id > INT32_MAX; }))
      fail(key, *v, "a token id or a list of token ids");
    if (v) effective_.set(key, *v);
    return out;
  }
  // An object, or null when the key is absent or null.
  const Json* object(const char* key) {
    const Json* v = get(key, true);
    if (v && !v->object()) fail(key, *v, "an object");
    return v && v->object() ? v : nullptr;
  }
  // Null counts as absent, as in the released files.
  const Json* get(const char* key, bool optional) {
    read_.insert(key);
    const Json* v = over_ ? over_->find(key) : nullptr;
    if (!v) v = object_.find(key);
    if (v && v->is_null()) v = nullptr;
    if (!v && !optional && status_.ok())
      status_ = lite::invalid_argument(where_, ": key \"", key, "\" is missing");
    return v;
  }
  void fail(const char* key, const Json& got, const std::string& expected, bool unknown_value = false) {
    if (!status_.ok()) return;
    const std::string text =
        lite::str(where_, ": key \"", key, "\": got ", got.dump().substr(0, 100), ", expected ", expected);
    status_ = unknown_value ? lite::unsupported(text) : lite::invalid_argument(text);
  }
  void fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  // Keys of the object that nothing has read.
  std::vector<std::string> unread() const {
    std::vector<std::string> out;
    for (const auto& [key, value] : *object_.object())
      if (!read_.contains(key)) out.push_back(key);
    return out;
  }
  void refuse_unread() {
    for (const std::string& key : unread())
      fail(lite::unsupported(where_, ": unknown key \"", key, "\": it may change what the model computes"));
  }
  const std::set<std::string, std::less<>>& keys_read() const { return read_; }
  // The first error, with what to try.
  Status status() const {
    const bool is_unsupported = status_.code() == lite::Code::Unsupported;
    return status_.with_advice(is_unsupported ? advice_ : "get the file again, or correct it");
  }
  Status refuse(Status status) {
    fail(std::move(status));
    return this->status();
  }
  const std::string& where() const { return where_; }
  Json& effective() { return effective_; }

 private:
  int64_t integer(const char* key, const int64_t* fallback, int64_t smallest, int64_t largest) {
    const Json* v = get(key, fallback != nullptr);
    const int64_t value = v && v->integer() ? *v->integer() : fallback ? *fallback : smallest;
    if (v && (!v->integer() || value < smallest || value > largest)) {
      fail(key, *v, lite::str("an integer from ", smallest, " to ", largest));
      return smallest;  // what the caller computes with it before it looks at status() stays defined
    }
    effective_.set(key, value);
    return value;
  }

  const Json& object_;
  const Json* over_;
  std::string where_;
  const char* advice_;
  std::set<std::string, std::less<>> read_;
  Json effective_{Json::Object()};
  Status status_;
};

// One layer's own view of config.json: {**config, **layer_config[i]}.
class LayerKeys {
 public:
  // Reads config.json's "layer_config": decimal layer indices, each with some of `sizes`, which the architecture has,
  // or `ignored`, which it has not but checkpoints may carry.
  static Result<LayerKeys> parse(Keys& config, const Json& json, int64_t layers,
                                 const std::set<std::string_view>& sizes,
                                 const std::set<std::string_view>& ignored = {});
  // Calls parse_layer(keys, i) for every layer with that layer's keys; the first error ends it.
  template <class ParseLayer>
  Status each(Keys& config, const ParseLayer& parse_layer) const {
    std::set<std::string, std::less<>> read(sizes_.begin(), sizes_.end());
    for (size_t i = 0; i < overrides_.size(); ++i) {
      if (!overrides_[i]) {
        parse_layer(config, int64_t(i));
        LITE_TRY(config.status());
        continue;
      }
      Keys keys(json_, lite::str(config.where(), ": layer_config \"", i, "\""), overrides_[i]);
      parse_layer(keys, int64_t(i));
      LITE_TRY(keys.status());
      read.insert(keys.keys_read().begin(), keys.keys_read().end());
    }
    // What layers may read of config.json must be in `effective`, even where all of them have their own.
    for (const std::string& key : read)
      if (const Json* v = config.get(key.c_str(), true); v && !config.effective().find(key))
        config.effective().set(key, *v);
    return {};
  }

 private:
  LayerKeys(const Json& json, const std::set<std::string_view>& sizes) : json_(json), sizes_(sizes) {}
  const Json& json_;
  std::set<std::string_view> sizes_;
  std::vector<const Json*> overrides_;  // [layers] or null
};

// rope_theta with rope_scaling or rope_parameters, and quantization_config, which all architectures share.
Status parse_rope(Keys& keys, double default_theta, Config* config);
Status parse_quantization(Keys& keys, Config* config);

// One per family of architectures: everything but model_type. `json` is what `keys` reads.
Status parse_deepseek(Keys& keys, const Json& json, Config* config);
Status parse_gqa(Keys& keys, const Json& json, Config* config);
Status parse_moe_transformer(Keys& keys, const Json& json, Config* config);

// Keys that every architecture with a vocabulary has.
void parse_common(Keys& keys, double default_eps, Config* config);

}  // namespace dsv3
