#include "model/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace dsv3 {

using lite::invalid_argument;

Session::Session(Model& model, const SessionOptions& options)
    : model_(model), options_(options), sequences_(options.max_seqs, options.context) {
  for (const LayerConfig& l : model.config().layers)
    if (l.moe) most_experts_ = std::max(most_experts_, l.num_experts_per_tok);
}

// Bytes of experts that are brought to a GPU at once: a quarter of a layer's, so that one is computed while the next is on its
// way, and never more than half a GiB.
int64_t streamed_bytes(const Config& c, const Parts& parts) {
  int64_t largest = 0;
  for (int layer = 0; layer < int(c.num_hidden_layers); ++layer)
    largest = std::max(largest, parts.of(layer, Role::RoutedExperts).copied);
  return std::clamp<int64_t>(largest / 4, 1, int64_t(512) << 20);
}

// From how many tokens of a pass on the host's experts are brought to a GPU; 0: never. Whether that pays must not depend on
// what is measured, or results would: a link of 25 GB/s and a host of 1 TFLOPS are assumed. Bringing an expert takes its bytes
// by the one; computing it takes two operations for each of its values and of the tokens that come to it, by the other.
int64_t stream_from(const Config& c, const Parts& parts, const Placement& p, const SessionOptions& o) {
  double from = 0;
  for (int layer = 0; layer < int(c.num_hidden_layers); ++layer) {
    const LayerConfig& l = c.layers[size_t(layer)];
    const double values = 3.0 * double(c.hidden_size) * double(l.moe_intermediate_size),
                 share = double(l.num_experts_per_tok) / double(std::max<int64_t>(l.n_routed_experts, 1));
    for (int e = 0; e < int(l.n_routed_experts); ++e)
      if (p.expert_device(layer, e) == 0)
        from = std::max(from, double(parts.expert(layer, e).copied) / 25e9 / (2 * values * share / 1e12));
  }
  if (from == 0 || o.device.gpus.empty()) return 0;
  if (o.stream_from) from = double(*o.stream_from);
  return from <= o.max_batch_tokens ? int64_t(std::ceil(from)) : 0;
}

// A GPU's memory is for everything on it, activations included, whose size depends on the placement: where they leave
// too little for what has been placed, less is placed.
Status Session::place() {
  LITE_ASSIGN(owned_backends_, make_backends(options_.device, options_.n_threads, options_.exact));
  for (const auto& backend : owned_backends_) backends_.push_back(backend.get());
  const int gpus = int(backends_.size()) - 1;
  if (gpus == 0 && (options_.gpu_memory || !options_.place.empty()))
    return invalid_argument(
        "session options: gpu_memory and place divide work with a GPU; open the model with one");
  const Config& c = model_.config();
  Parts parts(model_);
  LITE_ASSIGN(const std::vector<PlaceRule> rules, parse_place(options_.place, c, gpus));
  Demand demand;
  demand.mtp = options_.mtp;
  double cache = 0;  // a configuration alone may ask for more than 64 bits hold
  for (const LayerConfig& l : c.layers) cache += double(sequences_.pool_rows()) * double(c.cached_values(l));
  if (cache > 0x1p58) return lite::out_of_memory("session: its cache would take ", cache, " values");
  for (const LayerConfig& l : c.layers)
    demand.cache.push_back(stream_bytes({"", options_.kv, c.cached_values(l), 0}));
  demand.cache.push_back(stream_bytes({"", lite::DType::F32, c.hidden_size, 0}));
  if (options_.gpu_memory) demand.room.assign(backends_.size(), options_.gpu_memory - kDriverEstimate);
  bool streams = true;
  for (bool fits = false; !fits;) {
    std::vector<int64_t> left;
    LITE_ASSIGN(Placement placement, choose_placement(c, parts, demand, rules, gpus, &left));
    stream_from_ = streams ? stream_from(c, parts, placement, options_) : 0;
    LITE_TRY(build(placement, streamed_bytes(c, parts)));
    std::vector<MemoryUse> use = memory(placement, parts);
    fits = true;
    for (size_t device = 1; device < demand.room.size(); ++device)
      if (const int64_t excess = use[device].total() - options_.gpu_memory; excess > 0) {
        fits = false;
        // With nothing left to take away, experts on their way are what does not fit.
        if (demand.room[device] <= 0 && stream_from_ == 0)
          return lite::out_of_memory("session: gpu_memory: got ", options_.gpu_memory, " bytes, ", excess,
                                     " fewer than ", device_text(int(device)),
                                     " takes; try more, or a smaller context");
        if (demand.room[device] <= 0) streams = false;
        demand.room[device] -= std::max<int64_t>(left[device], 0) + excess;  // something has to go
      }
    if (!streams && stream_from_ > 0)
      demand.room.assign(backends_.size(), options_.gpu_memory - kDriverEstimate);
    layout_ = SessionPlan{{}, std::move(placement), std::move(use), demand.cache};
  }
  layout_->parts = std::move(parts);
  return {};
}

Status Session::build(const Placement& placement, int64_t streamed_bytes) {
  GraphOptions o{placement};
  o.rounding = options_.rounding;
  o.kv = options_.kv;
  o.keep_hidden = options_.keep_hidden;
  o.keep_routing = options_.keep_routing;
  o.given_routing = options_.given_routing;
  o.mtp = options_.mtp;
  o.context = options_.context;
  o.limits = {options_.max_batch_tokens, std::min(options_.max_seqs, options_.max_batch_tokens),
              sequences_.blocks_per_sequence(), std::min(options_.max_logits, options_.max_batch_tokens)};
  streams_ = make_streams(model_, o);
  mains_.clear();
  mains_.reserve(4);  // main_ points into it
  for (const bool streamed : {false, true}) {
    if (streamed && stream_from_ == 0) continue;
    o.streamed = streamed ? streamed_bytes : 0;
    for (const AttentionForm form : {AttentionForm::Absorbed, AttentionForm::Expanded}) {
      const bool only = !model_.config().is_mla();  // others have one form
      if (options_.attention ? form != *options_.attention : only && form != AttentionForm::Absorbed)
        continue;
      Program& p = mains_.emplace_back();
      o.attention = p.attention = form;
      p.streamed = streamed;
      LITE_TRY(build_main(model_, o, streams_, &p.step));
      LITE_ASSIGN(p.plan, lite::make_plan(&p.step.graph, backends_));
    }
  }
  o.streamed = 0;
  main_ = &mains_[0];
  if (options_.mtp) {
    mtp_ = Program();
    o.attention = options_.attention.value_or(AttentionForm::Absorbed);
    LITE_TRY(build_mtp(model_, o, streams_, &mtp_.step));
    LITE_ASSIGN(mtp_.plan, lite::make_plan(&mtp_.step.graph, backends_));
  }
  return {};
}

int64_t Session::stream_bytes(const lite::Stream& s) const {
  return sequences_.pool_rows() * s.width * lite::size_of(s.dtype);
}

// Calls use(program, phases) for every step that choose_program() may ask for.
template <class Use>
void Session::for_each_program(const Use& use) const {
  static constexpr lite::Phase kPhases[] = {lite::kPrompt, lite::kDecode};
  for (const Program& p : mains_) {
    const bool prompts_only = p.streamed || (!options_.attention && p.attention == AttentionForm::Expanded);
    use(p, std::span(kPhases).first(prompts_only ? 1 : 2));
  }
  if (options_.mtp) use(mtp_, std::span(kPhases));
}

std::vector<MemoryUse> Session::memory(const Placement& placement, const Parts& parts) const {
  std::vector<MemoryUse> use(backends_.size());
  const std::vector<int64_t> weights = weight_bytes(model_, parts, placement, options_.mtp, int(use.size()));
  for (const lite::Stream& s : streams_) use[size_t(s.device)].cache += stream_bytes(s);
  use[0].cache += int64_t(options_.max_seqs) * options_.context * int64_t(sizeof(int32_t));  // their ids
  use[0].activations = (options_.mtp ? 2 : 1) * int64_t(options_.max_logits) * model_.config().output_size() *
                       int64_t(sizeof(float));
  for (size_t device = 0; device < use.size(); ++device) {
    int64_t largest = 0;
    for (const Program& p : mains_) largest = std::max(largest, p.plan.arena_bytes[device]);
    use[device].activations += largest + (options_.mtp ? mtp_.plan.arena_bytes[device] : 0);
    for_each_program([&](const Program& p, std::span<const lite::Phase> phases) {
      use[device].activations +=
          backends_[device]->recording_bytes(p.step.graph, p.plan, int(device), phases);
    });
    use[device].weights = weights[device];
    if (device > 0 && use[device].total() > 0) use[device].other = kDriverEstimate;
  }
  return use;
}

Result<std::unique_ptr<Session>> Session::plan(Model& model, const SessionOptions& options) {
  auto session = std::unique_ptr<Session>(new Session(model, options));
  LITE_TRY(session->place());
  return session;
}

DecodeSpeed Session::decode_speed(int64_t context, std::span<const double> bandwidth, double link) const {
  return dsv3::decode_speed(model_.config(), layout_->parts, layout_->placement,
                            {options_.mtp, context, options_.kv, bandwidth, link});
}

Status Session::allocate() {
  std::vector<std::byte*> streams;
  for (const lite::Stream& s : streams_) {
    LITE_ASSIGN(lite::Buffer buffer, backends_[s.device]->allocate(stream_bytes(s)));
    streams.push_back(buffer.get());
    stream_memory_.push_back(std::move(buffer));
  }
  std::vector<Program*> mains;
  for (Program& p : mains_) mains.push_back(&p);
  LITE_ASSIGN(main_arenas_, bind(mains, streams));
  if (options_.mtp) {
    Program* const mtp[] = {&mtp_};
    LITE_ASSIGN(mtp_arenas_, bind(mtp, streams));
  }
  LITE_TRY(prepare());
  const size_t values = size_t(options_.max_logits) * size_t(model_.config().output_size());
  logits_.resize(values);
  if (options_.mtp) mtp_logits_.resize(values);
  wanted_.reserve(size_t(options_.max_logits));
  tokens_.resize(size_t(options_.max_seqs) * size_t(options_.context));
  length_before_.resize(size_t(options_.max_seqs));
  seq_count_.resize(size_t(options_.max_seqs));
  last_token_.resize(size_t(options_.max_seqs));
  row_of_token_.resize(size_t(options_.max_batch_tokens));
  token_of_row_.resize(size_t(options_.max_batch_tokens));
  mtp_row_of_token_.resize(size_t(options_.max_batch_tokens));
  return {};
}

// Gives programs that never run together one arena on every device.
Result<std::vector<lite::Buffer>> Session::bind(std::span<Program* const> programs,
                                                std::span<std::byte* const> streams) {
  std::vector<int64_t> bytes(backends_.size(), 0);
  for (const Program* p : programs)
    for (size_t device = 0; device < bytes.size(); ++device)
      bytes[device] = std::max(bytes[device], p->plan.arena_bytes[device]);
  LITE_ASSIGN(std::vector<lite::Buffer> arenas, lite::allocate_arenas(bytes, backends_));
  std::vector<std::byte*> memory;
  for (const lite::Buffer& arena : arenas) memory.push_back(arena.get());
  for (Program* p : programs) {
    LITE_TRY(model_.device_weights().upload(&p->step.graph, backends_));
    lite::bind(&p->step.graph, p->plan, memory, streams);
  }
  return arenas;
}

Status Session::prepare() {
  Status status;
  for_each_program([&](const Program& p, std::span<const lite::Phase> phases) {
    if (status.ok()) status = lite::prepare(p.step.graph, p.plan, backends_, phases);
  });
  return status;
}

// ---- evaluation -------------------------------------------------------------------------------------------

// Refuses a batch that cannot be evaluated as a whole, and lists the tokens whose logits are wanted.
Status Session::check(const Batch& batch) {
  const int32_t n = int32_t(batch.token.size());
  if (n < 1) return invalid_argument("evaluate: a batch of ", n, " tokens, expected at least 1");
  if ((options_.keep_hidden || options_.keep_routing) && n > options_.max_batch_tokens)
    return invalid_argument(
        "evaluate: a batch of ", n,
        " tokens with kept results, expected at most max_batch_tokens = ", options_.max_batch_tokens);
  if (const int64_t most = int64_t(options_.max_seqs) * options_.context;
      n > most)  // before any is looked at
    return Status(lite::Code::ContextFull,
                  lite::str("evaluate: a batch of ", n, " tokens, and all sequences together hold ", most,
                            ", a context of ", options_.context, " each; make a larger session"));
  std::fill(seq_count_.begin(), seq_count_.end(), 0);
  std::fill(last_token_.begin(), last_token_.end(), -1);
  for (int32_t i = 0; i < n; ++i) {
    const int32_t seq = batch.seq ? batch.seq[i] : 0;
    if (batch.token[i] < 0 || batch.token[i] >= model_.config().vocab_size)
      return invalid_argument("evaluate: token ", i, ": got id ", batch.token[i], ", expected 0..",
                              model_.config().vocab_size - 1);
    if (seq < 0 || seq >= options_.max_seqs)
      return invalid_argument("evaluate: token ", i, ": got sequence ", seq, ", expected 0..",
                              options_.max_seqs - 1);
    ++seq_count_[seq];
    last_token_[seq] = i;
  }
  for (int32_t seq = 0; seq < options_.max_seqs; ++seq) {
    const int64_t total = sequences_.length(seq) + seq_count_[seq];
    if (total > options_.context)
      return Status(lite::Code::ContextFull,
                    lite::str("evaluate: sequence ", seq, " holds ", sequences_.length(seq), " tokens and ",
                              seq_count_[seq], " more do not fit its context of ", options_.context,
                              "; truncate it or make a larger session"));
  }
  LITE_TRY(check_routing(batch));
  wanted_.clear();
  std::fill(seq_count_.begin(), seq_count_.end(), 0);
  for (int32_t i = 0; i < n; ++i) {
    const int32_t seq = batch.seq ? batch.seq[i] : 0;
    const int64_t position = sequences_.length(seq) + seq_count_[seq]++;
    if (batch.want_logits ? batch.want_logits[i] == 0 : last_token_[seq] != i) continue;
    if (int32_t(wanted_.size()) == options_.max_logits) {
      wanted_.clear();
      return invalid_argument("evaluate: more rows of logits are wanted than max_logits = ",
                              options_.max_logits);
    }
    wanted_.push_back({i, seq, int32_t(position), options_.mtp && position > 0});
  }
  return {};
}

// The form of MLA that costs fewer multiplications for the whole batch. H heads; r, dn, dr, dv as in deepseek.cpp. Per
// query and key, absorbed 2 r + dr, expanded dn + dr + dv; r (dn + dv) more per query for absorbing, per cached row and
// pass for expanding.
AttentionForm Session::choose_attention() const {
  if (options_.attention) return *options_.attention;
  if (!model_.config().is_mla()) return AttentionForm::Absorbed;
  if (phase_ == lite::kDecode) return AttentionForm::Absorbed;
  const Config& c = model_.config();
  const double r = double(c.kv_lora_rank), dr = double(c.qk_rope_head_dim), dn = double(c.qk_nope_head_dim),
               dv = double(c.v_head_dim);
  double absorbed = 0, expanded = 0;
  for (int32_t seq = 0; seq < options_.max_seqs; ++seq) {
    const double n = seq_count_[seq], end = double(sequences_.length(seq)) + n;
    if (n == 0) continue;
    const double pairs = n * (end - n / 2), passes = std::ceil(n / options_.max_batch_tokens);
    absorbed += pairs * (2 * r + dr) + n * r * (dn + dv);
    expanded += pairs * (dn + dr + dv) + passes * end * r * (dn + dv);
  }
  return absorbed <= expanded ? AttentionForm::Absorbed : AttentionForm::Expanded;
}

Session::Program& Session::choose_program(int64_t tokens) {
  const AttentionForm attention = choose_attention();
  const bool streamed = stream_from_ > 0 && phase_ == lite::kPrompt &&
                        std::min<int64_t>(tokens, options_.max_batch_tokens) >= stream_from_;
  for (Program& p : mains_)
    if (p.attention == attention && p.streamed == streamed) return p;
  return mains_[0];
}

Status Session::check_routing(const Batch& batch) const {
  if (options_.given_routing != (batch.router_ids != nullptr))
    return invalid_argument("evaluate: router_ids are ", batch.router_ids ? "given" : "missing",
                            "; they belong to sessions made with given_routing, and there to every batch");
  if (!batch.router_ids) return {};
  const int32_t* id = batch.router_ids;
  for (size_t i = 0; i < batch.token.size(); ++i)
    for (const LayerConfig& l : model_.config().layers) {
      if (!l.moe || &l - model_.config().layers.data() >= model_.config().num_hidden_layers) continue;
      for (int64_t j = 0; j < l.num_experts_per_tok; ++j) {
        if (std::find(id, id + j, id[j]) != id + j)
          return invalid_argument("evaluate: router_ids of token ", i, ", layer ",
                                  &l - model_.config().layers.data(), ": ", id[j],
                                  " is there twice; expected an expert once");
        if (id[j] < 0 || id[j] >= l.n_routed_experts)
          return invalid_argument("evaluate: router_ids of token ", i, ", layer ",
                                  &l - model_.config().layers.data(), ": got ", id[j], ", expected 0..",
                                  l.n_routed_experts - 1);
      }
      id += most_experts_;
    }
  return {};
}

Status Session::eval(const Batch& batch) {
  const std::lock_guard lock(model_.evaluation());
  batch_tokens_ = 0;
  crossings_ = {};
  wanted_.clear();
  LITE_TRY(check(batch));
  for (int32_t seq = 0; seq < options_.max_seqs; ++seq) length_before_[seq] = sequences_.length(seq);

  // check() has left every sequence's number of tokens.
  const bool single = *std::max_element(seq_count_.begin(), seq_count_.end()) <= 1;
  phase_ = batch.phase.value_or(single ? lite::kDecode : lite::kPrompt);
  const int32_t n = int32_t(batch.token.size());
  main_ = &choose_program(n);
  Status status;
  for (int32_t first = 0; first < n && status.ok(); first += options_.max_batch_tokens) {
    const int32_t pass = std::min(options_.max_batch_tokens, n - first);
    status = run_pass(batch, first, pass);
    if (status.ok() && options_.mtp) status = run_mtp(batch, first, pass);
    if (status.ok() && options_.progress && !options_.progress(first + pass, n))
      status = Status(lite::Code::Cancelled, "evaluation cancelled by its progress callback");
  }
  const bool cancelled = cancel_.exchange(false, std::memory_order_relaxed);
  if (status.ok() && cancelled) status = Status(lite::Code::Cancelled, "evaluation cancelled");
  if (!status.ok()) {
    for (int32_t seq = 0; seq < options_.max_seqs; ++seq) sequences_.resize(seq, length_before_[seq]);
    wanted_.clear();
    return status;
  }
  batch_tokens_ = n;
  return {};
}

// One row of StepInputs::seqs and its block table.
void Session::add_sequence(Program& p, int32_t* n_seqs, int32_t seq, int32_t first, int32_t count,
                           int64_t kv_length) {
  int32_t* entry = p.input(p.step.in.seqs, *n_seqs);
  entry[0] = first;
  entry[1] = count;
  entry[2] = int32_t(kv_length);
  std::copy_n(sequences_.block_table(seq), lite::ceil_div(kv_length, lite::kBlockRows),
              p.input(p.step.in.blocks, *n_seqs));
  ++*n_seqs;
}

// The graph, for the tokens, sequences and rows of logits that its other inputs describe.
Status Session::run(Program& p, int32_t tokens, int32_t sequences, int32_t outputs) {
  int32_t* counts = p.input(p.step.in.counts);
  counts[lite::kTokens] = tokens;
  counts[lite::kSequences] = sequences;
  counts[lite::kOutputs] = outputs;
  counts[lite::kPhase] = phase_;
  return lite::run(p.step.graph, p.plan, backends_, cancel_, &crossings_);
}

// Evaluates tokens [first, first + n) of the batch, sequence by sequence, in the order of the batch within
// each.
Status Session::run_pass(const Batch& batch, int32_t first, int32_t n) {
  const StepGraph& s = main_->step;
  std::fill(seq_count_.begin(), seq_count_.end(), 0);
  for (int32_t i = 0; i < n; ++i) ++seq_count_[batch.seq ? batch.seq[first + i] : 0];

  int32_t n_seqs = 0, row = 0;
  for (int32_t seq = 0; seq < options_.max_seqs; ++seq) {
    const int32_t count = seq_count_[seq];
    seq_count_[seq] = row;  // from here on: the next row of the sequence
    if (count == 0) continue;
    LITE_TRY(own_last_block(seq));
    const int64_t before = sequences_.length(seq);
    sequences_.resize(seq, before + count);
    add_sequence(*main_, &n_seqs, seq, row, count, before + count);
    for (int64_t position = before; position < before + count; ++position, ++row) {
      main_->input(s.in.positions)[row] = int32_t(position);
      main_->input(s.in.kv_rows)[row] = sequences_.row(seq, position);
    }
  }
  for (int32_t i = 0; i < n; ++i) {
    const int32_t seq = batch.seq ? batch.seq[first + i] : 0, r = seq_count_[seq]++;
    row_of_token_[i] = r;
    token_of_row_[r] = i;
    main_->input(s.in.ids)[r] = batch.token[first + i];
    for (size_t l = 0; l < s.chosen.size(); ++l)
      std::copy_n(batch.router_ids + (size_t(first + i) * s.chosen.size() + l) * size_t(most_experts_),
                  s.graph.tensor(s.chosen[l]).shape[1], main_->input(s.chosen[l], r));
    tokens_[size_t(int64_t(seq) * options_.context + main_->input(s.in.positions)[r])] =
        batch.token[first + i];
  }
  int32_t n_out = 0;
  const auto by_token = [](const Wanted& w, int32_t token) { return w.token < token; };
  const auto begin = std::lower_bound(wanted_.begin(), wanted_.end(), first, by_token);
  const auto end = std::lower_bound(begin, wanted_.end(), first + n, by_token);
  for (auto w = begin; w != end; ++w) main_->input(s.in.out_rows)[n_out++] = row_of_token_[w->token - first];

  LITE_TRY(run(*main_, n, n_seqs, n_out));
  const int64_t width = model_.config().output_size();
  for (int32_t i = 0; i < n_out; ++i)
    std::memcpy(&logits_[size_t((begin - wanted_.begin() + i) * width)],
                s.graph.tensor(s.logits).row<float>(i), size_t(width) * sizeof(float));
  return {};
}

// The MTP layer for the same tokens: row for row the main pass without the first token of each sequence, each
// token at the position before its own.
Status Session::run_mtp(const Batch& batch, int32_t first, int32_t n) {
  const StepGraph &s = mtp_.step, &m = main_->step;
  std::fill_n(mtp_row_of_token_.begin(), n, -1);
  int32_t n_seqs = 0, row = 0;
  const int32_t main_seqs = main_->input(m.in.counts)[lite::kSequences];
  for (int32_t k = 0; k < main_seqs; ++k) {
    const int32_t* entry = main_->input(m.in.seqs, k);
    const int32_t start = entry[2] - entry[1];  // position of the sequence's first token in this pass
    const int32_t skip = start == 0 ? 1 : 0, count = entry[1] - skip;
    if (count == 0) continue;
    const int32_t main_first = entry[0] + skip, token = first + token_of_row_[main_first];
    const int32_t seq = batch.seq ? batch.seq[token] : 0;
    add_sequence(mtp_, &n_seqs, seq, row, count, entry[2] - 1);
    for (int32_t j = 0; j < count; ++j, ++row) {
      const int32_t position = start + skip + j - 1;
      mtp_.input(s.in.ids)[row] = main_->input(m.in.ids)[main_first + j];
      mtp_.input(s.in.positions)[row] = position;
      mtp_.input(s.in.kv_rows)[row] = sequences_.row(seq, position);
      mtp_row_of_token_[token_of_row_[main_first + j]] = row;
    }
  }
  if (row == 0) return {};

  int32_t n_out = 0;
  for (const Wanted& w : wanted_)
    if (w.has_mtp && w.token >= first && w.token < first + n)
      mtp_.input(s.in.out_rows)[n_out++] = mtp_row_of_token_[w.token - first];
  LITE_TRY(run(mtp_, row, n_seqs, n_out));
  const int64_t width = model_.config().output_size();
  int32_t from = 0;
  for (size_t i = 0; i < wanted_.size(); ++i)
    if (const Wanted& w = wanted_[i]; w.has_mtp && w.token >= first && w.token < first + n)
      std::memcpy(&mtp_logits_[i * size_t(width)], s.graph.tensor(s.logits).row<float>(from++),
                  size_t(width) * sizeof(float));
  return {};
}

// ---- results ----------------------------------------------------------------------------------------------

const Session::Wanted* Session::find_wanted(int32_t i) const {
  const auto at = std::lower_bound(wanted_.begin(), wanted_.end(), i,
                                   [](const Wanted& w, int32_t token) { return w.token < token; });
  return at != wanted_.end() && at->token == i ? &*at : nullptr;
}

const float* Session::logits(int32_t i) const {
  const Wanted* w = find_wanted(i);
  return w ? &logits_[size_t(w - wanted_.data()) * size_t(model_.config().output_size())] : nullptr;
}

const float* Session::mtp_logits(int32_t i) const {
  const Wanted* w = find_wanted(i);
  return w && w->has_mtp ? &mtp_logits_[size_t(w - wanted_.data()) * size_t(model_.config().output_size())]
                         : nullptr;
}

int64_t Session::position(int32_t i) const {
  const Wanted* w = find_wanted(i);
  return w ? w->position : -1;
}

std::span<const int32_t> Session::history(int32_t i) const {
  const Wanted* w = find_wanted(i);
  return w ? std::span(tokens(w->seq), size_t(w->position) + 1) : std::span<const int32_t>();
}

Result<lite::Tensor> Session::kept(const std::string& name, int32_t i) const {
  for (const Program* p : {static_cast<const Program*>(main_), &mtp_}) {
    const auto at = p->step.kept.find(name);
    if (at == p->step.kept.end()) continue;
    if (i < 0 || i >= batch_tokens_ || batch_tokens_ > options_.max_batch_tokens)
      return invalid_argument("kept result \"", name, "\": got token ", i, ", expected 0..",
                              batch_tokens_ - 1, " of the last batch");
    const int32_t row = p == main_ ? row_of_token_[i] : mtp_row_of_token_[i];
    if (row < 0)
      return invalid_argument("kept result \"", name, "\": token ", i,
                              " is the first of its sequence: it has no MTP row");
    return lite::slice_rows(p->step.graph.tensor(at->second), row, 1);
  }
  return lite::not_found("kept result \"", name, "\": this session keeps no such value");
}

}  // namespace dsv3
