// dsv3 dump: logits, hidden states and routing of given token ids, in one safetensors file.
//
// Several sequences are evaluated together, their tokens interleaved in every call. What each tensor holds is
// fixed by the shape of the model, so the file is laid out first and filled row by row.
#include <algorithm>
#include <numeric>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/tensor_file.h"

namespace tools {
namespace {

using nlohmann::json;

struct DumpOptions {
  std::string model, ids, out, routing, logits_to_keep = "0";
  int32_t chunk = 0;  // 0: see kCallTokens
  bool mtp = false;
  ComputeOptions compute;
  std::string phase = "prompt";
};

// Tokens of one call, unless --chunk says otherwise: their logits are all in memory.
constexpr int64_t kCallTokens = 512;

struct Sequence {
  std::string name;  // "": the only one, its tensors have bare names
  std::vector<int32_t> ids;
  std::vector<int32_t> router_ids = {};  // --routing: as dsv3_batch takes them

  int64_t length() const { return int64_t(ids.size()); }
  std::string key(const std::string& tensor) const { return name.empty() ? tensor : name + "/" + tensor; }
};

// A layer with experts.
struct RoutedLayer {
  int64_t layer, n_routed_experts, num_experts_per_tok;
  bool mtp;  // its row i belongs to token i + 1
};

std::vector<Sequence> read_sequences(const std::string& given) {
  if (given.find_first_not_of("0123456789-, ") == std::string::npos)
    return {{"", ids_of(parse_json("[" + given + "]", "--ids"), "--ids")}};
  const json all = parse_json(read_file(given), given);
  if (!all.is_object()) return {{"", ids_of(all, given)}};
  std::vector<Sequence> sequences;
  for (const auto& [name, ids] : all.items()) {
    if (name.empty()) fail(given, ": a sequence without a name");
    sequences.push_back({name, ids_of(ids, given + ": \"" + name + "\"")});
  }
  return sequences;
}

void check_sequences(const DumpOptions& o, const std::vector<Sequence>& sequences, int32_t vocab_size) {
  if (sequences.empty()) fail(o.ids, ": no sequences");
  for (const Sequence& s : sequences) {
    const std::string what = s.name.empty() ? o.ids : o.ids + ": \"" + s.name + "\"";
    if (s.ids.empty()) fail("--ids ", what, ": an empty list, expected at least one token id");
    for (size_t i = 0; i < s.ids.size(); ++i)
      if (s.ids[i] >= vocab_size)
        fail("--ids ", what, ": item ", i, ": got ", s.ids[i], ", expected 0..", vocab_size - 1,
             ", the ids of ", o.model);
  }
}

// Positions of a sequence whose logits are written, in the order of the file: --logits-to-keep, transformers' argument.
std::vector<int64_t> kept_positions(const DumpOptions& o, const Sequence& s) {
  const std::string what = "--logits-to-keep";
  const json given = parse_json(o.logits_to_keep, what);
  std::vector<int64_t> positions;
  if (given.is_array()) {
    for (const json& position : given) {
      const int64_t p = position.is_number_integer() ? position.get<int64_t>() : INT64_MAX;
      if (p < -s.length() || p >= s.length())
        fail(what, ": got position ", position.dump(), ", expected ", -s.length(), "..", s.length() - 1,
             ", as ", s.name.empty() ? o.ids : "\"" + s.name + "\"", " has ", s.length(), " tokens");
      positions.push_back(p < 0 ? p + s.length() : p);
    }
    if (positions.empty()) fail(what, ": an empty list, expected at least one position");
    return positions;
  }
  if (!given.is_number_integer() || given < 0)
    fail(what, ": got ", o.logits_to_keep, ", expected 0 for all positions, n for the last n, or a list");
  const int64_t last = given.get<int64_t>();
  positions.resize(size_t(last == 0 ? s.length() : std::min(last, s.length())));
  std::iota(positions.begin(), positions.end(), s.length() - int64_t(positions.size()));
  return positions;
}

std::vector<RoutedLayer> routed_layers(const Model& model, bool mtp) {
  const char* description = nullptr;
  check(dsv3_model_describe(model.get(), &description));
  std::vector<RoutedLayer> routed;
  const json all = json::parse(description);
  for (const json& layer : all["layers"]) {
    const bool is_mtp = layer["kind"] == "mtp";
    if (layer.contains("n_routed_experts") && (mtp || !is_mtp))
      routed.push_back({layer["layer"], layer["n_routed_experts"], layer["num_experts_per_tok"], is_mtp});
  }
  return routed;
}

// --routing: the router_ids.L of an earlier dump of the same ids, token by token.
void read_routing(const DumpOptions& o, const std::vector<RoutedLayer>& routed, int64_t most, Sequence* s) {
  int64_t layers = 0, i = 0;
  for (const RoutedLayer& r : routed) layers += !r.mtp;
  s->router_ids.assign(size_t(s->length() * layers * most), 0);
  for (const RoutedLayer& r : routed) {
    if (r.mtp) continue;
    const std::string name = s->key(text("router_ids.", r.layer));
    const TensorValues t = read_tensor(o.routing, name);
    if (t.shape != std::vector<int64_t>{s->length(), r.num_experts_per_tok})
      fail("--routing ", o.routing, ": ", name, ": got shape ", shape_text(t.shape), ", expected ",
           shape_text({s->length(), r.num_experts_per_tok}));
    for (int64_t token = 0; token < s->length(); ++token)
      for (int64_t j = 0; j < r.num_experts_per_tok; ++j)
        s->router_ids[size_t((token * layers + i) * most + j)] =
            int32_t(t.values[size_t(token * r.num_experts_per_tok + j)]);
    ++i;
  }
}

class Dump {
 public:
  Dump(const DumpOptions& options, std::vector<Sequence> sequences, const Model& model)
      : o_(options),
        sequences_(std::move(sequences)),
        info_(get_info(model)),
        routed_(routed_layers(model, options.mtp)),
        file_(options.out) {
    for (const Sequence& s : sequences_) {
      kept_.push_back(kept_positions(o_, s));
      wanted_.emplace_back(size_t(s.length()));
      for (const int64_t position : kept_.back()) wanted_.back()[size_t(position)] = 1;
    }
    if (!o_.routing.empty())
      for (Sequence& s : sequences_) read_routing(o_, routed_, info_.n_experts_per_token, &s);
    session_ = open_session(model);
  }

  void write() {
    for (size_t i = 0; i < sequences_.size(); ++i) announce(sequences_[i], kept_[i]);
    file_.create();
    evaluate();
    file_.finish();
  }

 private:
  // Tokens of each sequence in one call.
  int64_t chunk() const {
    return o_.chunk ? o_.chunk : std::max<int64_t>(1, kCallTokens / int64_t(sequences_.size()));
  }

  Session open_session(const Model& model) const {
    int64_t longest = 0, call = 0;
    for (const Sequence& s : sequences_) {
      longest = std::max(longest, s.length());
      call += std::min(s.length(), chunk());
    }
    if (longest > info_.max_position_embeddings)
      fail("--ids ", o_.ids, ": ", longest, " tokens in a sequence, expected at most ",
           info_.max_position_embeddings, ", the limit of ", o_.model);
    dsv3_session_options options = o_.compute.session_options();
    options.context = int32_t(longest);
    options.max_seqs = int32_t(sequences_.size());
    int64_t wanted = 0;
    for (const std::vector<uint8_t>& of_sequence : wanted_)
      wanted += std::count(of_sequence.begin(), of_sequence.end(), 1);
    options.max_batch_tokens = int32_t(std::min<int64_t>(call, INT32_MAX));
    options.max_logits = int32_t(std::min<int64_t>(wanted, options.max_batch_tokens));
    options.keep = DSV3_KEEP_HIDDEN | DSV3_KEEP_ROUTING;
    options.mtp = o_.mtp;
    options.given_routing = !o_.routing.empty();
    return new_session(model, options);
  }

  void announce(const Sequence& s, const std::vector<int64_t>& kept) {
    using Type = TensorFile::Type;
    const int64_t n_tokens = s.length();
    file_.add(s.key("logits"), Type::F32, {int64_t(kept.size()), info_.vocab_size});
    file_.add(s.key("hidden"), Type::F32, {info_.n_layers + 1, n_tokens, info_.hidden_size});
    file_.add(s.key("final"), Type::F32, {n_tokens, info_.hidden_size});
    if (o_.mtp)
      file_.add(s.key("mtp_logits"), Type::F32,
                {int64_t(kept.size()) - std::count(kept.begin(), kept.end(), 0), info_.vocab_size});
    for (const RoutedLayer& r : routed_) {
      const int64_t rows = n_tokens - r.mtp;
      file_.add(s.key(text("router_ids.", r.layer)), Type::I64, {rows, r.num_experts_per_tok});
      file_.add(s.key(text("router_weights.", r.layer)), Type::F32, {rows, r.num_experts_per_tok});
      file_.add(s.key(text("router_logits.", r.layer)), Type::F32, {rows, r.n_routed_experts});
    }
  }

  // One call: up to chunk() tokens of every sequence from position `start` on, token by token in turn.
  void evaluate() {
    const int64_t total = std::accumulate(sequences_.begin(), sequences_.end(), int64_t(0),
                                          [](int64_t sum, const Sequence& s) { return sum + s.length(); });
    Progress progress("dump", false);
    std::vector<int32_t> token, seq, router_ids;
    std::vector<uint8_t> want_logits;
    int64_t done = 0;
    for (int64_t start = 0; done < total; start += chunk()) {
      token.clear();
      seq.clear();
      want_logits.clear();
      router_ids.clear();
      for (int64_t t = start; t < start + chunk(); ++t)
        for (size_t i = 0; i < sequences_.size(); ++i)
          if (t < sequences_[i].length()) {
            token.push_back(sequences_[i].ids[size_t(t)]);
            seq.push_back(int32_t(i));
            want_logits.push_back(wanted_[i][size_t(t)]);
            const std::vector<int32_t>& all = sequences_[i].router_ids;
            const int64_t row = int64_t(all.size()) / sequences_[i].length();
            router_ids.insert(router_ids.end(), all.begin() + t * row, all.begin() + (t + 1) * row);
          }
      dsv3_batch batch = {};
      batch.struct_size = sizeof batch;
      batch.n = int32_t(token.size());
      batch.token = token.data();
      batch.seq = seq.data();
      batch.want_logits = want_logits.data();
      batch.router_ids = o_.routing.empty() ? nullptr : router_ids.data();
      batch.phase = o_.phase == "decode" ? DSV3_PHASE_DECODE : DSV3_PHASE_PROMPT;
      check(dsv3_eval(session_.get(), &batch));

      std::vector<int64_t> position(sequences_.size(), start);
      for (int32_t i = 0; i < batch.n; ++i) write_token(i, size_t(seq[i]), position[size_t(seq[i])]++);
      progress.show(done += batch.n, total);
    }
  }

  // Everything about token i of the last call, token t of sequence `index`.
  void write_token(int32_t i, size_t index, int64_t t) {
    const Sequence& s = sequences_[index];
    if (wanted_[index][size_t(t)]) write_logits(i, s, kept_[index], t);
    for (int64_t layer = 0; layer <= info_.n_layers; ++layer)
      write_kept(i, text("hidden.", layer), s.key("hidden"), layer * s.length() + t);
    write_kept(i, "final", s.key("final"), t);
    for (const RoutedLayer& r : routed_) {
      if (t < r.mtp) continue;
      for (const char* kind : {"router_ids.", "router_weights.", "router_logits."}) {
        const std::string name = text(kind, r.layer);
        write_kept(i, name, s.key(name), t - r.mtp);
      }
    }
  }

  // Every row of the file that is for token t; MTP logits are there for the kept positions beyond the first.
  void write_logits(int32_t i, const Sequence& s, const std::vector<int64_t>& kept, int64_t t) {
    const float *logits = nullptr, *mtp_logits = nullptr;
    check(dsv3_logits(session_.get(), i, &logits));
    const bool mtp = o_.mtp && t > 0;
    if (mtp) check(dsv3_mtp_logits(session_.get(), i, &mtp_logits));
    int64_t mtp_row = 0;
    for (size_t row = 0; row < kept.size(); ++row) {
      if (kept[row] == t) {
        file_.write_row(s.key("logits"), int64_t(row), logits, info_.vocab_size);
        if (mtp) file_.write_row(s.key("mtp_logits"), mtp_row, mtp_logits, info_.vocab_size);
      }
      mtp_row += kept[row] > 0;
    }
  }

  void write_kept(int32_t i, const std::string& name, const std::string& key, int64_t row) {
    dsv3_dtype dtype = DSV3_F32;
    const void* values = nullptr;
    int32_t n = 0;
    check(dsv3_kept(session_.get(), name.c_str(), i, &dtype, &values, &n));
    if (dtype == DSV3_F32) {
      file_.write_row(key, row, static_cast<const float*>(values), n);
    } else {
      const auto* ids = static_cast<const int32_t*>(values);
      file_.write_row(key, row, std::vector<int64_t>(ids, ids + n).data(), n);
    }
  }

  const DumpOptions& o_;
  std::vector<Sequence> sequences_;
  const dsv3_model_info info_;
  const std::vector<RoutedLayer> routed_;
  std::vector<std::vector<int64_t>> kept_;    // [sequence] positions, see kept_positions
  std::vector<std::vector<uint8_t>> wanted_;  // [sequence][position]
  TensorFile file_;
  Session session_;
};

void dump(const DumpOptions& o) {
  catch_signals();
  std::vector<Sequence> sequences = read_sequences(o.ids);
  const Model model = open_model(o.model, o.compute);
  check_sequences(o, sequences, get_info(model).vocab_size);
  Dump(o, std::move(sequences), model).write();
}

}  // namespace

void add_dump(CLI::App* program) {
  const auto o = std::make_shared<DumpOptions>();
  CLI::App* command =
      program->add_subcommand("dump", "Write logits, hidden states and routing of given token ids");
  command->add_option("MODEL", o->model, "packed file")->required();
  command
      ->add_option(
          "--ids", o->ids,
          "1,2,3, or a JSON file: a list of ids, or an object {name: list}, whose sequences are evaluated "
          "together and whose tensors are called name/...")
      ->required();
  command->add_option("--out", o->out, "safetensors file to write")->required();
  command
      ->add_option("--chunk", o->chunk,
                   "most tokens of a sequence in one call (default: 512 tokens of all together); results do "
                   "not depend on it")
      ->check(number(1, INT32_MAX))
      ->type_name("N");
  command
      ->add_option(
          "--logits-to-keep", o->logits_to_keep,
          "positions whose logits are written: 0 all (default), n the last n, or a list: [0,5,-1], negative "
          "ones from the end")
      ->type_name("N");
  command->add_option(
      "--routing", o->routing,
      "send tokens to the experts that an earlier dump of the same ids recorded (router_ids.L)");
  command->add_flag("--mtp", o->mtp, "evaluate the multi-token-prediction layer, too");
  o->compute.backend = "ref";
  o->compute.attention = "absorbed";
  o->compute.add_to(command);
  command->add_option("--phase", o->phase, "which kernels compute the tokens")
      ->check(CLI::IsMember({"prompt", "decode"}))
      ->capture_default_str();
  command->callback([o] { dump(*o); });
}

}  // namespace tools
