// A session: sequences, their cached rows, and the planned graphs that extend them.
//
// plan() decides where everything goes and lays out memory, allocate() takes all of it; eval() only writes the step's inputs,
// runs, and copies the wanted rows of logits. It allocates nothing. session_state.cpp forks, saves and loads sequences.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ggml-lite/backend.h"
#include "ggml-lite/kv.h"
#include "ggml-lite/plan.h"
#include "ggml-lite/scheduler.h"
#include "model/device.h"
#include "model/graphs.h"
#include "model/model.h"
#include "model/speed.h"

namespace dsv3 {

// What the driver and its tables take of a GPU before anything of ours is there; half a GiB is rarely too little.
constexpr int64_t kDriverEstimate = int64_t(512) << 20;

struct SessionOptions {
  int32_t context, max_seqs, max_batch_tokens, max_logits, n_threads;
  Device device;
  bool exact;                              // f32 activations in every product
  std::optional<AttentionForm> attention;  // none: whichever costs less, decided for every evaluation
  lite::Rounding rounding;
  lite::DType kv;
  bool keep_hidden, keep_routing, given_routing, mtp;
  int64_t
      gpu_memory;  // bytes to be used of each GPU; 0: no limit, and all that no rule names goes to the first
  std::string place;  // rules: parse_place
  // Passes of prompts with at least so many tokens bring the host's experts to a GPU; 0: none do.
  // Unset: where that takes less time than computing them there.
  std::optional<int64_t> stream_from;
  std::function<bool(int64_t done, int64_t total)> progress;  // false: stop
};

// Bytes on one device.
struct MemoryUse {
  int64_t weights = 0;  // on the host as their file has them, elsewhere copies
  int64_t cache = 0, activations = 0;
  int64_t other = 0;  // estimated: what the driver keeps on a GPU

  int64_t total() const { return weights + cache + activations + other; }
};

// Where everything goes, and what that takes.
struct SessionPlan {
  Parts parts;
  Placement placement;
  std::vector<MemoryUse> memory;  // by device
  std::vector<int64_t> cache;  // by layer of the session; one more for the final hidden states that MTP reads
};

struct Batch {
  std::span<const int32_t> token;
  const int32_t* seq;          // null: all 0
  const uint8_t* want_logits;  // null: the last token of each sequence
  const int32_t*
      router_ids;  // with given_routing: [n][layers with experts][most experts a token of any layer has]
  std::optional<lite::Phase> phase;  // none: decode iff no sequence has more than one token here
};

// Where a saved session's bytes go, one piece after the other.
using Sink = std::function<Status(std::span<const std::byte>)>;
// Where they come from.
struct Source {
  int64_t bytes;
  std::function<Status(int64_t offset, std::span<std::byte> to)> read;
};

// Ok unless a file is at `path` that holds anything but a saved session; a session is not saved over it.
Status replaceable(const std::string& path);

class Session {
 public:
  // Decides where everything goes, builds the graphs and lays out their memory; needs no weights. Nothing but layout() may
  // be asked before allocate().
  static Result<std::unique_ptr<Session>> plan(Model& model, const SessionOptions& options);
  const SessionPlan& layout() const { return *layout_; }
  Status allocate();
  // The least that a token takes with `context` rows cached: bytes per second of every device, and between them.
  DecodeSpeed decode_speed(int64_t context, std::span<const double> bandwidth, double link) const;

  Model& model() { return model_; }
  const SessionOptions& options() const { return options_; }
  lite::Sequences& sequences() { return sequences_; }
  const int32_t* tokens(int32_t seq) const { return &tokens_[size_t(seq) * size_t(options_.context)]; }
  int64_t cache_bytes_in_use() const;

  // On any error no sequence has changed.
  Status eval(const Batch& batch);
  void cancel() { cancel_.store(true, std::memory_order_relaxed); }

  // Of the last batch.
  lite::Phase phase() const { return phase_; }
  const lite::Crossings& crossings() const { return crossings_; }

  // `to` becomes the first `length` tokens of `from`; 0 <= length <= that of `from`, and `to` is another.
  void fork(int32_t from, int32_t to, int32_t length);

  // All sequences as bytes (docs/format.md), to be loaded by a session of the same model and options.
  int64_t saved_bytes() const;
  Status save(const Sink& to) const;
  // In place of all sequences. Every byte is checked first (`progress`: bytes checked and in all; false stops): on an
  // error no sequence has changed, unless reading fails after that; then all are empty.
  Status load(const Source& from, const std::function<bool(int64_t, int64_t)>& progress);

  // Of token i of the last batch; null when not asked for (MTP: or the first of its sequence).
  const float* logits(int32_t i) const;
  const float* mtp_logits(int32_t i) const;
  // Position in its sequence of token i, whose logits were asked for; -1 otherwise.
  int64_t position(int32_t i) const;
  // Its sequence up to it, as ids; empty unless its logits were asked for. Holds until the sequence changes.
  std::span<const int32_t> history(int32_t i) const;
  // Row of a kept value for token i of the last batch. NotFound: no such value; InvalidArgument: no such row.
  Result<lite::Tensor> kept(const std::string& name, int32_t i) const;

 private:
  // A graph with its plan.
  struct Program {
    AttentionForm attention = AttentionForm::Absorbed;
    bool streamed = false;  // experts are
    StepGraph step;
    lite::Plan plan;

    int32_t* input(lite::Var v) const { return step.graph.tensor(v).row<int32_t>(0); }
    int32_t* input(lite::Var v, int64_t row) const { return step.graph.tensor(v).row<int32_t>(row); }
  };
  // A token whose logits were asked for.
  struct Wanted {
    int32_t token;  // index in the batch
    int32_t seq;
    int32_t position;
    bool has_mtp;
  };

  Session(Model& model, const SessionOptions& options);
  Status place();
  Status build(const Placement& placement, int64_t streamed_bytes);
  std::vector<MemoryUse> memory(const Placement& placement, const Parts& parts) const;
  int64_t stream_bytes(const lite::Stream& stream) const;
  Result<std::vector<lite::Buffer>> bind(std::span<Program* const> programs,
                                         std::span<std::byte* const> streams);
  Program& choose_program(int64_t tokens);
  AttentionForm choose_attention() const;
  Status prepare();
  template <class Use>
  void for_each_program(const Use& use) const;
  Status check(const Batch& batch);
  Status check_routing(const Batch& batch) const;
  Status run_pass(const Batch& batch, int32_t first, int32_t n);
  Status run_mtp(const Batch& batch, int32_t first, int32_t n);
  void add_sequence(Program& program, int32_t* n_seqs, int32_t seq, int32_t first, int32_t count,
                    int64_t kv_length);
  Status run(Program& program, int32_t tokens, int32_t sequences, int32_t outputs);
  const Wanted* find_wanted(int32_t i) const;

  // session_state.cpp
  int64_t row_bytes() const;  // of one token in all streams
  std::string path() const;
  Status own_last_block(int32_t seq);
  std::byte* stream_row(size_t stream, int64_t row) const;  // on the stream's device
  Status check_saved(const Source& from, const std::function<bool(int64_t, int64_t)>& progress,
                     std::vector<int32_t>* lengths, std::vector<int32_t>* ids) const;

  Model& model_;
  SessionOptions options_;
  lite::Sequences sequences_;
  std::vector<std::unique_ptr<lite::Backend>> owned_backends_;
  std::vector<lite::Backend*> backends_;  // by device
  std::optional<SessionPlan> layout_;
  std::vector<lite::Stream> streams_;
  std::vector<lite::Buffer> stream_memory_;
  std::vector<lite::Buffer> main_arenas_, mtp_arenas_;  // by device
  // The main graph in each form of attention that may be asked for, also with experts streamed; they take turns in one arena.
  std::vector<Program> mains_;
  int64_t stream_from_ = 0;  // tokens of a pass; 0: never
  Program* main_ = nullptr;  // the one in use
  Program mtp_;
  std::atomic<bool> cancel_ = false;
  int64_t most_experts_ = 0;  // of a token, in any layer

  std::vector<float> logits_, mtp_logits_;  // [max_logits, vocab_size]
  std::vector<Wanted> wanted_;              // of the last batch, by token
  std::vector<int32_t> tokens_;             // [max_seqs, context] ids of every sequence
  int32_t batch_tokens_ = 0;                // of the last batch
  lite::Phase phase_ = lite::kPrompt;       // of the batch being evaluated
  lite::Crossings crossings_;               // of the last batch
  std::vector<int64_t> length_before_;      // [max_seqs]
  std::vector<int32_t> seq_count_;          // [max_seqs] tokens of the batch, then of a pass
  std::vector<int32_t> last_token_;         // [max_seqs] index in the batch, or -1
  std::vector<int32_t> row_of_token_;       // [max_batch_tokens] of the last pass, in the main graph
  std::vector<int32_t> token_of_row_;       // [max_batch_tokens]
  std::vector<int32_t> mtp_row_of_token_;   // [max_batch_tokens] or -1
};

}  // namespace dsv3
