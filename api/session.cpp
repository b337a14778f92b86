// The C API of sessions: evaluation, its results, and the choice of a token.
#include <chrono>
#include <cmath>

#include "api/handles.h"
#include "ggml-lite/machine.h"

using namespace dsv3::api;
using dsv3::Config;
using dsv3::Result;
using dsv3::Status;

Result<dsv3::SessionOptions> dsv3::api::session_options(const dsv3_model& m,
                                                        const dsv3_session_options* given) {
  const Config& config = m.model->config();
  if (task_of(config) == DSV3_TASK_LAYER)
    return lite::invalid_argument("session options: a ", config.model_type,
                                  " model has no sequences; use dsv3_layer_eval");
  dsv3_session_options o;
  LITE_TRY(read_options("dsv3_session_options", given, &o));
  if (o.context == 0) o.context = int32_t(std::min<int64_t>(config.max_position_embeddings, 4096));
  LITE_TRY(in_range("session options", "context (max_position_embeddings is the model's limit)", o.context, 1,
                    config.max_position_embeddings));
  if (o.max_seqs == 0) o.max_seqs = 1;
  LITE_TRY(in_range("session options", "max_seqs", o.max_seqs, 1, 65536));
  if (int64_t(o.max_seqs) * (o.context + lite::kBlockRows) > INT32_MAX)
    return lite::invalid_argument("session options: max_seqs ", o.max_seqs, " times context ", o.context,
                                  " is more than 2^31 rows");
  if (o.max_batch_tokens == 0) o.max_batch_tokens = std::min(o.context, 512);
  LITE_TRY(in_range("session options", "max_batch_tokens", o.max_batch_tokens, 1, 1 << 20));
  if (o.max_logits == 0) o.max_logits = o.max_seqs;
  LITE_TRY(in_range("session options", "max_logits", o.max_logits, 1, 1 << 20));
  if (o.n_threads == 0) o.n_threads = int32_t(lite::core_processors().size());
  LITE_TRY(in_range("session options", "n_threads", o.n_threads, 1, 1024));
  LITE_TRY(in_range("session options", "attention", number_of(o.attention), DSV3_ATTENTION_AUTO,
                    DSV3_ATTENTION_EXPANDED));
  LITE_TRY(in_range("session options", "gemm", number_of(o.gemm), DSV3_GEMM_F32, DSV3_GEMM_FP8_UE8M0));
  LITE_TRY(in_range("session options", "kv", number_of(o.kv), DSV3_KV_AUTO, DSV3_KV_BF16));
  LITE_TRY(in_range("session options", "keep", o.keep, 0, DSV3_KEEP_HIDDEN | DSV3_KEEP_ROUTING));
  if (o.mtp && config.num_nextn_predict_layers == 0)
    return lite::invalid_argument("session options: mtp: the model has no multi-token-prediction layer");

  dsv3::SessionOptions s;
  s.context = o.context;
  s.max_seqs = o.max_seqs;
  s.max_batch_tokens = o.max_batch_tokens;
  s.max_logits = o.max_logits;
  s.n_threads = o.n_threads;
  s.device = m.device;
  s.exact = o.exact != 0;
  if (o.attention != DSV3_ATTENTION_AUTO)
    s.attention = o.attention == DSV3_ATTENTION_EXPANDED ? dsv3::AttentionForm::Expanded
                                                         : dsv3::AttentionForm::Absorbed;
  const bool ue8m0 = o.gemm == DSV3_GEMM_FP8_UE8M0 ||
                     (o.gemm == DSV3_GEMM_FP8 && config.scale_fmt == dsv3::ScaleFormat::Ue8m0);
  s.rounding = o.gemm == DSV3_GEMM_F32 ? lite::Rounding::None
               : ue8m0                 ? lite::Rounding::F8PowerOfTwo
                                       : lite::Rounding::F8;
  if (o.kv == DSV3_KV_AUTO) o.kv = s.exact || s.device.reference ? DSV3_KV_F32 : DSV3_KV_BF16;
  s.kv = o.kv == DSV3_KV_BF16 ? lite::DType::BF16 : lite::DType::F32;
  s.keep_hidden = o.keep & DSV3_KEEP_HIDDEN;
  s.keep_routing = o.keep & DSV3_KEEP_ROUTING;
  s.given_routing = o.given_routing != 0;
  s.mtp = o.mtp != 0;
  s.progress = progress_function(o.progress, o.progress_user);
  LITE_TRY(in_range("session options", "gpu_memory", o.gpu_memory, 0, INT64_MAX));
  s.gpu_memory = o.gpu_memory;
  if (o.place) s.place = o.place;
  if (o.stream_from) s.stream_from = std::max(o.stream_from, 0);
  return s;
}

namespace {

std::string gib(int64_t bytes) {
  char text[32];
  snprintf(text, sizeof text, "%.2f GiB", double(bytes) / double(1 << 30));
  return text;
}

// "cpu: weights 1.00 GiB, cache 0.10 GiB, activations 0.01 GiB; cuda:0: ..."
std::string memory_text(const dsv3::SessionPlan& plan) {
  std::string text;
  for (size_t device = 0; device < plan.memory.size(); ++device) {
    const dsv3::MemoryUse& use = plan.memory[device];
    text += lite::str(device ? "; " : "", dsv3::device_text(int(device)), ": weights ", gib(use.weights),
                      ", cache ", gib(use.cache), ", activations ", gib(use.activations));
  }
  return text;
}

int64_t weights_on_gpus(const dsv3::SessionPlan& plan) {
  int64_t bytes = 0;
  for (size_t device = 1; device < plan.memory.size(); ++device) bytes += plan.memory[device].weights;
  return bytes;
}

dsv3_memory memory_of(const dsv3::Model& model, const dsv3::SessionPlan& plan) {
  dsv3_memory memory = {};
  memory.weights = model.file().file_bytes();
  for (size_t device = 0; device < plan.memory.size(); ++device) {
    const dsv3::MemoryUse& use = plan.memory[device];
    memory.cache += use.cache;
    memory.activations += use.activations;
    if (device > 0) memory.gpu += use.weights + use.cache + use.activations;
  }
  memory.total = memory.weights + memory.cache + memory.activations;
  memory.machine = lite::memory_limit();
  return memory;
}

Status give_row(const float* row, const char* what, int32_t i, const float** out) {
  if (!row)
    return lite::invalid_argument(what, ": token ", i,
                                  " of the last batch has none; ask for it with want_logits");
  *out = row;
  return {};
}

}  // namespace

dsv3_status dsv3_session_memory(dsv3_model* model, const dsv3_session_options* options, dsv3_memory* memory) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_session_memory", "model");
    if (!memory) return null_argument("dsv3_session_memory", "memory");
    LITE_ASSIGN(const dsv3::SessionOptions o, session_options(*model, options));
    LITE_ASSIGN(const auto planned, dsv3::Session::plan(*model->model, o));
    return write_struct("dsv3_memory", memory_of(*model->model, planned->layout()), memory);
  });
}

dsv3_status dsv3_session_new(dsv3_model* model, const dsv3_session_options* options, dsv3_session** session) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_session_new", "model");
    if (!session) return null_argument("dsv3_session_new", "session");
    LITE_ASSIGN(const dsv3::SessionOptions o, session_options(*model, options));
    auto s = std::make_unique<dsv3_session>();
    s->owner = model;
    LITE_ASSIGN(s->session, dsv3::Session::plan(*model->model, o));
    const dsv3::SessionPlan& plan = s->session->layout();
    const dsv3::MemoryUse& use = plan.memory[0];
    const int64_t machine = lite::memory_limit();
    const std::string numbers = memory_text(plan) + "; this machine has " + gib(machine);
    if (use.cache + use.activations > machine)
      return lite::out_of_memory("new session: the memory is not there: ", numbers,
                                 "; try a smaller context (", o.context, ") or fewer sequences (", o.max_seqs,
                                 ")");
    if (use.total() > machine)
      model->info("model and cache are larger than the memory: " + numbers +
                      "; weights will be read from the disk again and again",
                  DSV3_LOG_WARNING);
    if (plan.memory.size() > 1) model->info(memory_text(plan), DSV3_LOG_INFO);
    if (o.gpu_memory > 0 && o.gpu_memory <= dsv3::kDriverEstimate && weights_on_gpus(plan) == 0)
      model->info(
          lite::str("gpu_memory is ", gib(o.gpu_memory), ", and a GPU's driver alone is estimated to take ",
                    gib(dsv3::kDriverEstimate), ": nothing is placed on a GPU, the host computes all"),
          DSV3_LOG_WARNING);
    LITE_TRY(s->session->allocate());
    const size_t vocab = size_t(model->model->config().vocab_size);
    s->masked.resize(vocab);
    s->scratch.order.reserve(vocab);
    s->scratch.probability.reserve(vocab);
    ++model->sessions;
    *session = s.release();
    return {};
  });
}

void dsv3_session_free(dsv3_session* session) {
  if (!session) return;
  dsv3_model* owner = session->owner;
  delete session;
  --owner->sessions;
}

int32_t dsv3_session_context(const dsv3_session* session) {
  return session ? session->session->options().context : 0;
}

dsv3_status dsv3_eval(dsv3_session* session, const dsv3_batch* batch) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_eval", "session");
    if (!batch) return null_argument("dsv3_eval", "batch");
    dsv3_batch b;
    LITE_TRY(read_options("dsv3_batch", batch, &b));
    if (!b.token) return null_argument("dsv3_eval", "batch.token");
    if (b.n < 1) return lite::invalid_argument("dsv3_eval: batch.n is ", b.n, ", expected at least 1");
    LITE_TRY(in_range("dsv3_eval", "batch.phase", number_of(b.phase), DSV3_PHASE_AUTO, DSV3_PHASE_DECODE));
    std::optional<lite::Phase> phase;
    if (b.phase != DSV3_PHASE_AUTO) phase = b.phase == DSV3_PHASE_PROMPT ? lite::kPrompt : lite::kDecode;
    const auto start = std::chrono::steady_clock::now();
    LITE_TRY(session->session->eval({{b.token, size_t(b.n)}, b.seq, b.want_logits, b.router_ids, phase}));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const bool decode = session->session->phase() == lite::kDecode;
    dsv3_session_stats& stats = session->stats;
    (decode ? stats.decode_tokens : stats.prompt_tokens) += b.n;
    (decode ? stats.decode_seconds : stats.prompt_seconds) += seconds;
    stats.decode_evals += decode;
    if (const lite::Crossings& crossings = session->session->crossings(); decode) {
      stats.decode_crossings += crossings.count;
      stats.decode_crossed_bytes += crossings.bytes;
      stats.decode_waited += crossings.waited;
    }
    return {};
  });
}

dsv3_status dsv3_session_get_stats(const dsv3_session* session, dsv3_session_stats* stats) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_session_get_stats", "session");
    if (!stats) return null_argument("dsv3_session_get_stats", "stats");
    dsv3_session_stats out = session->stats;
    out.decode_bytes = out.decode_evals * session->owner->model->bytes_per_token();
    for (int32_t seq = 0; seq < session->session->options().max_seqs; ++seq)
      out.cached_tokens += session->session->sequences().length(seq);
    out.cache_bytes = session->session->cache_bytes_in_use();
    return write_struct("dsv3_session_stats", out, stats);
  });
}

// ---- results

dsv3_status dsv3_logits(const dsv3_session* session, int32_t i, const float** logits) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_logits", "session");
    if (!logits) return null_argument("dsv3_logits", "logits");
    return give_row(session->session->logits(i), "logits", i, logits);
  });
}

dsv3_status dsv3_mtp_logits(const dsv3_session* session, int32_t i, const float** logits) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_mtp_logits", "session");
    if (!logits) return null_argument("dsv3_mtp_logits", "logits");
    return give_row(session->session->mtp_logits(i), "MTP logits", i, logits);
  });
}

dsv3_status dsv3_kept(const dsv3_session* session, const char* name, int32_t i, dsv3_dtype* dtype,
                      const void** values, int32_t* n) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_kept", "session");
    if (!name) return null_argument("dsv3_kept", "name");
    if (!dtype || !values || !n) return null_argument("dsv3_kept", "dtype, values or n");
    LITE_ASSIGN(const lite::Tensor row, session->session->kept(name, i));
    *dtype = row.dtype == lite::DType::I32 ? DSV3_I32 : DSV3_F32;
    *values = row.data;
    *n = int32_t(row.elements());
    return {};
  });
}

void dsv3_cancel(dsv3_session* session) {
  if (session) session->session->cancel();
}

// ---- choosing a token

dsv3_status dsv3_model_sampling(const dsv3_model* model, dsv3_sampling* sampling) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_model_sampling", "model");
    if (!sampling) return null_argument("dsv3_model_sampling", "sampling");
    const dsv3::Sampling& s = model->sampling;
    dsv3_sampling out = {};
    out.top_k = s.top_k;
    out.temperature = s.temperature;
    out.top_p = s.top_p;
    out.min_p = s.min_p;
    out.typical_p = s.typical_p;
    out.repetition_penalty = s.repetition_penalty;
    return write_struct("dsv3_sampling", out, sampling);
  });
}

namespace {

// A zero field that changes nothing in dsv3.h may be another number in the sampler.
double one_if_zero(double value) {
  return value == 0 ? 1 : value;
}

// `logit_bias` keeps what the result points to.
Result<dsv3::Sampling> sampling_of(const dsv3_sampling* given, int64_t vocab_size,
                                   std::vector<dsv3::LogitBias>* logit_bias) {
  dsv3_sampling o;
  LITE_TRY(read_options("dsv3_sampling", given, &o));
  LITE_TRY(in_range("dsv3_sampling", "n_logit_bias", o.n_logit_bias, 0, vocab_size));
  if (o.n_logit_bias > 0 && !o.logit_bias)
    return lite::invalid_argument("dsv3_sampling: n_logit_bias is ", o.n_logit_bias,
                                  " and logit_bias is null");
  logit_bias->clear();
  for (int32_t k = 0; k < o.n_logit_bias; ++k)
    logit_bias->push_back({o.logit_bias[k].token, o.logit_bias[k].bias});
  dsv3::Sampling s;
  s.logit_bias = *logit_bias;
  s.penalty_window = o.penalty_window;
  s.repetition_penalty = one_if_zero(o.repetition_penalty);
  s.presence_penalty = o.presence_penalty;
  s.frequency_penalty = o.frequency_penalty;
  s.temperature = o.temperature;
  s.top_k = o.top_k;
  s.top_p = one_if_zero(o.top_p);
  s.min_p = o.min_p;
  s.typical_p = one_if_zero(o.typical_p);
  return s;
}

}  // namespace

dsv3_status dsv3_sample(dsv3_session* session, int32_t i, const dsv3_sampling* sampling, uint64_t seed,
                        int32_t* token) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_sample", "session");
    if (!token) return null_argument("dsv3_sample", "token");
    if (task_of(session->owner->model->config()) != DSV3_TASK_CAUSAL_LM)
      return lite::invalid_argument(
          "dsv3_sample: the model's head is not a language model's; its logits name no tokens");
    dsv3::Sampling s = session->owner->sampling;
    if (sampling) {
      LITE_ASSIGN(s, sampling_of(sampling, int64_t(session->masked.size()), &session->logit_bias));
    }
    LITE_TRY(s.check());
    const float* logits = nullptr;
    LITE_TRY(give_row(session->session->logits(i), "sample", i, &logits));
    s.history = session->session->history(i);
    // Rows of the embedding that no token names are untrained.
    const int32_t vocab = int32_t(session->masked.size());
    std::memcpy(session->masked.data(), logits, size_t(vocab) * sizeof(float));
    if (const dsv3_tokenizer* t = tokenizer_of(*session->owner))
      for (int32_t id = 0; id < vocab; ++id)
        if (!t->tokenizer.is_token(id)) session->masked[id] = -INFINITY;
    LITE_ASSIGN(*token, dsv3::sample(session->masked.data(), vocab, s, seed,
                                     session->session->position(i) + 1, &session->scratch));
    return {};
  });
}
