// The C API over model/ and text/: handles, option structs, and the border where errors become codes.
#include "dsv3.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <new>

#include "ggml-lite/machine.h"
#include "model/model.h"
#include "model/moe_transformer.h"
#include "model/routing.h"
#include "model/session.h"
#include "text/sampler.h"
#include "text/tokenizer.h"
#include "version.h"

using dsv3::Config;
using dsv3::Result;
using dsv3::Status;
using lite::Code;
using lite::Json;

struct dsv3_tokenizer {
  dsv3::Tokenizer tokenizer;
};

struct dsv3_model {
  std::unique_ptr<dsv3::Model> model;
  std::string id;
  dsv3_log log = nullptr;
  void* log_user = nullptr;
  std::atomic<int> sessions = 0;

  // Read at the first need: a run from given ids needs no tokenizer.
  mutable std::mutex text_lock;
  mutable bool text_read = false;
  mutable Status text_status;
  mutable std::unique_ptr<dsv3_tokenizer> tokenizer;  // null: text_status says why
  std::vector<int32_t> end_ids;                       // of config.json and generation_config.json
  dsv3::Sampling sampling;

  void info(const std::string& text, dsv3_log_level level) const {
    if (log) log(log_user, level, text.c_str());
  }
};

struct dsv3_session {
  dsv3_model* owner;
  std::unique_ptr<dsv3::Session> session;
  std::vector<float> masked;  // [vocab_size], for dsv3_sample
  dsv3::SampleScratch scratch;
};

namespace {

thread_local std::string last_error;

dsv3_status report(const Status& status) {
  if (!status.ok()) last_error = status.message();
  return dsv3_status(int(status.code()));
}

// Runs the body of an API call; nothing is thrown past it.
template <class Body>
dsv3_status call(const Body& body) noexcept {
  try {
    return report(body());
  } catch (const std::bad_alloc&) {
    last_error.clear();  // a longer text might not fit either
    last_error += "out of memory";
    return DSV3_OUT_OF_MEMORY;
  } catch (const std::exception& e) {
    last_error = std::string("internal error: ") + e.what();
    return DSV3_INTERNAL;
  }
}

Status null_argument(const char* function, const char* name) {
  return lite::invalid_argument(function, ": argument \"", name, "\" is null");
}

// An option struct of any age as today's: fields it does not have are zero, fields we do not know must be
// zero.
template <class T>
Status read_options(const char* name, const T* given, T* options) {
  *options = {};
  if (!given) return {};
  const size_t size = given->struct_size;
  if (size < sizeof(uint32_t) || size > 4096)
    return lite::invalid_argument(name, ": struct_size is ", size, ", expected sizeof(", name,
                                  ") = ", sizeof(T));
  std::memcpy(options, given, std::min(size, sizeof(T)));
  for (size_t i = sizeof(T); i < size; ++i)
    if (reinterpret_cast<const unsigned char*>(given)[i] != 0)
      return lite::unsupported(name, ": an option at byte ", i, " is newer than this library");
  return {};
}

template <class T>
Status write_struct(const char* name, T value, T* out) {
  const uint32_t size = out->struct_size;
  if (size < sizeof(uint32_t) || size > 4096)
    return lite::invalid_argument(name, ": struct_size is ", size, ", expected sizeof(", name,
                                  ") = ", sizeof(T));
  value.struct_size = size;
  std::memcpy(out, &value, std::min<size_t>(size, sizeof(T)));
  return {};
}

std::function<bool(int64_t, int64_t)> progress_function(dsv3_progress progress, void* user) {
  if (!progress) return {};
  return [progress, user](int64_t done, int64_t total) { return progress(user, done, total) == 0; };
}

dsv3_task task_of(const Config& config) {
  if (config.architecture == dsv3::Architecture::MoeTransformer) return DSV3_TASK_LAYER;
  switch (config.task) {
    case dsv3::Task::CausalLm: return DSV3_TASK_CAUSAL_LM;
    case dsv3::Task::SequenceClassification: return DSV3_TASK_SEQUENCE_CLASSIFICATION;
    case dsv3::Task::TokenClassification: return DSV3_TASK_TOKEN_CLASSIFICATION;
    case dsv3::Task::QuestionAnswering: return DSV3_TASK_QUESTION_ANSWERING;
  }
  return DSV3_TASK_CAUSAL_LM;
}

const char* architecture_name(dsv3::Architecture architecture) {
  switch (architecture) {
    case dsv3::Architecture::DeepseekV2: return "deepseek_v2";
    case dsv3::Architecture::DeepseekV3: return "deepseek_v3";
    case dsv3::Architecture::Qwen3Moe: return "qwen3_moe";
    case dsv3::Architecture::Mixtral: return "mixtral";
    case dsv3::Architecture::MoeTransformer: return "moe_transformer";
  }
  return "?";
}

// ---- text
// -----------------------------------------------------------------------------------------------------

Result<std::unique_ptr<dsv3_tokenizer>> open_tokenizer(const dsv3::Tokenizer::Files& files) {
  LITE_ASSIGN(dsv3::Tokenizer tokenizer, dsv3::Tokenizer::open(files));
  return std::make_unique<dsv3_tokenizer>(dsv3_tokenizer{std::move(tokenizer)});
}

const dsv3_tokenizer* tokenizer_of(const dsv3_model& m) {
  const std::lock_guard lock(m.text_lock);
  if (!m.text_read) {
    auto opened = open_tokenizer([&](std::string_view name) { return m.model->file().section(name); });
    if (opened.ok())
      m.tokenizer = std::move(*opened);
    else
      m.text_status = opened.status().in("open " + m.model->file().path());
    m.text_read = true;
  }
  return m.tokenizer.get();
}

Result<std::unique_ptr<dsv3_tokenizer>> open_tokenizer_at(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored)) {
    LITE_ASSIGN(const lite::PackFile file, lite::PackFile::open(path));
    auto opened = open_tokenizer([&](std::string_view name) { return file.section(name); });
    return opened.ok() ? std::move(opened) : opened.status().in("open " + path);
  }
  std::map<std::string, std::pair<std::string, std::string_view>, std::less<>> read;
  auto opened = open_tokenizer([&](std::string_view name) -> const std::string_view* {
    const auto [it, fresh] = read.try_emplace(std::string(name));
    if (fresh) {
      std::ifstream in(path + "/" + std::string(name), std::ios::binary);
      if (!in) return nullptr;
      it->second.first.assign(std::istreambuf_iterator<char>(in), {});
      it->second.second = it->second.first;
    }
    return it->second.second.data() ? &it->second.second : nullptr;
  });
  return opened.ok() ? std::move(opened) : opened.status().in("open " + path);
}

// generation_config.json: end tokens, and how to sample. do_sample without a temperature means 1; what the
// file does not name is left open, as the released models' own servers do.
Status read_generation_config(dsv3_model* m) {
  for (const int64_t id : m->model->config().eos_token_id) m->end_ids.push_back(int32_t(id));
  const std::string_view* text = m->model->file().section("generation_config.json");
  if (!text) return {};
  LITE_ASSIGN(const Json json, Json::parse(*text, "generation_config.json"));
  if (const Json* eos = json.find("eos_token_id")) {
    const auto add = [m](const Json& id) {
      if (id.integer() && *id.integer() >= 0 && *id.integer() <= INT32_MAX)
        m->end_ids.push_back(int32_t(*id.integer()));
    };
    add(*eos);
    if (const Json::Array* ids = eos->array())
      for (const Json& id : *ids) add(id);
  }
  const Json* do_sample = json.find("do_sample");
  if (!do_sample || !do_sample->boolean() || !*do_sample->boolean()) return {};
  m->sampling.temperature = 1;
  if (const Json* v = json.find("temperature")) v->number(&m->sampling.temperature);
  if (const Json* v = json.find("top_p")) v->number(&m->sampling.top_p);
  if (const Json* v = json.find("min_p")) v->number(&m->sampling.min_p);
  if (const Json* v = json.find("top_k"); v && v->integer())
    m->sampling.top_k = int32_t(std::clamp<int64_t>(*v->integer(), 0, INT32_MAX));
  return m->sampling.check().in("read generation_config.json");
}

// Copies n items under the convention of tokenize and detokenize.
template <class T>
void copy_out(const T* from, size_t n, T* to, size_t capacity, size_t* n_out) {
  if (const size_t fits = std::min(n, capacity)) std::memcpy(to, from, fits * sizeof(T));
  *n_out = n;
}

// ---- session options
// ------------------------------------------------------------------------------------------

Status in_range(const char* option, int64_t got, int64_t smallest, int64_t largest) {
  if (got >= smallest && got <= largest) return {};
  return lite::invalid_argument("session options: ", option, ": got ", got, ", expected ", smallest, "..",
                                largest);
}

Result<dsv3::SessionOptions> session_options(const dsv3_model& m, const dsv3_session_options* given) {
  const Config& config = m.model->config();
  if (task_of(config) == DSV3_TASK_LAYER)
    return lite::invalid_argument("session options: a ", config.model_type,
                                  " model has no sequences; use dsv3_layer_eval");
  dsv3_session_options o;
  LITE_TRY(read_options("dsv3_session_options", given, &o));
  if (o.context == 0) o.context = int32_t(std::min<int64_t>(config.max_position_embeddings, 4096));
  LITE_TRY(in_range("context (max_position_embeddings is the model's limit)", o.context, 1,
                    config.max_position_embeddings));
  if (o.max_seqs == 0) o.max_seqs = 1;
  LITE_TRY(in_range("max_seqs", o.max_seqs, 1, 65536));
  if (int64_t(o.max_seqs) * (o.context + lite::kBlockRows) > INT32_MAX)
    return lite::invalid_argument("session options: max_seqs ", o.max_seqs, " times context ", o.context,
                                  " is more than 2^31 rows");
  if (o.max_batch_tokens == 0) o.max_batch_tokens = std::min(o.context, 512);
  LITE_TRY(in_range("max_batch_tokens", o.max_batch_tokens, 1, 1 << 20));
  if (o.max_logits == 0) o.max_logits = o.max_seqs;
  LITE_TRY(in_range("max_logits", o.max_logits, 1, 1 << 20));
  if (o.n_threads == 0) o.n_threads = lite::physical_cores();
  LITE_TRY(in_range("n_threads", o.n_threads, 1, 1024));
  LITE_TRY(in_range("attention", o.attention, DSV3_ATTENTION_ABSORBED, DSV3_ATTENTION_EXPANDED));
  LITE_TRY(in_range("gemm", o.gemm, DSV3_GEMM_F32, DSV3_GEMM_FP8_UE8M0));
  LITE_TRY(in_range("kv", o.kv, DSV3_KV_F32, DSV3_KV_BF16));
  LITE_TRY(in_range("keep", o.keep, 0, DSV3_KEEP_HIDDEN | DSV3_KEEP_ROUTING));
  if (o.mtp && config.num_nextn_predict_layers == 0)
    return lite::invalid_argument("session options: mtp: the model has no multi-token-prediction layer");

  dsv3::SessionOptions s;
  s.context = o.context;
  s.max_seqs = o.max_seqs;
  s.max_batch_tokens = o.max_batch_tokens;
  s.max_logits = o.max_logits;
  s.n_threads = o.n_threads;
  s.attention =
      o.attention == DSV3_ATTENTION_EXPANDED ? dsv3::AttentionForm::Expanded : dsv3::AttentionForm::Absorbed;
  const bool ue8m0 = o.gemm == DSV3_GEMM_FP8_UE8M0 ||
                     (o.gemm == DSV3_GEMM_FP8 && config.scale_fmt == dsv3::ScaleFormat::Ue8m0);
  s.rounding = o.gemm == DSV3_GEMM_F32 ? lite::Rounding::None
               : ue8m0                 ? lite::Rounding::F8PowerOfTwo
                                       : lite::Rounding::F8;
  s.kv = o.kv == DSV3_KV_BF16 ? lite::DType::BF16 : lite::DType::F32;
  s.keep_hidden = o.keep & DSV3_KEEP_HIDDEN;
  s.keep_routing = o.keep & DSV3_KEEP_ROUTING;
  s.mtp = o.mtp != 0;
  s.progress = progress_function(o.progress, o.progress_user);
  return s;
}

Result<dsv3_memory> session_memory(dsv3_model& m, const dsv3::SessionOptions& options) {
  LITE_ASSIGN(const dsv3::MemoryUse use, dsv3::Session::memory(*m.model, options));
  dsv3_memory memory = {};
  memory.weights = use.weights;
  memory.cache = use.cache;
  memory.activations = use.activations;
  memory.total = use.weights + use.cache + use.activations;
  memory.machine = lite::memory_limit();
  return memory;
}

std::string gib(int64_t bytes) {
  char text[32];
  snprintf(text, sizeof text, "%.2f GiB", double(bytes) / double(1 << 30));
  return text;
}

}  // namespace

// ---- status
// ---------------------------------------------------------------------------------------------------

const char* dsv3_last_error(void) {
  return last_error.c_str();
}

const char* dsv3_status_name(dsv3_status status) {
  switch (status) {
    case DSV3_OK: return "ok";
    case DSV3_INVALID_ARGUMENT: return "invalid argument";
    case DSV3_NOT_FOUND: return "not found";
    case DSV3_IO: return "input or output error";
    case DSV3_CORRUPT: return "corrupt";
    case DSV3_UNSUPPORTED: return "unsupported";
    case DSV3_OUT_OF_MEMORY: return "out of memory";
    case DSV3_CONTEXT_FULL: return "context full";
    case DSV3_BUSY: return "busy";
    case DSV3_CANCELLED: return "cancelled";
    case DSV3_DEVICE: return "device error";
    case DSV3_INTERNAL: return "internal error";
  }
  return "unknown status";
}

const char* dsv3_version(void) {
  static const std::string text =
      std::string("dsv3 " DSV3_VERSION_TEXT "\ngit: " DSV3_GIT_ID "\nbackends: ref\nprocessor: ") +
      lite::instruction_sets() + "\nCUDA: not built in";
  return text.c_str();
}

// ---- model
// ----------------------------------------------------------------------------------------------------

dsv3_status dsv3_model_open(const char* path, const dsv3_model_options* options, dsv3_model** model) {
  return call([&]() -> Status {
    if (!path) return null_argument("dsv3_model_open", "path");
    if (!model) return null_argument("dsv3_model_open", "model");
    dsv3_model_options o;
    LITE_TRY(read_options("dsv3_model_options", options, &o));
    if (o.backend && std::strcmp(o.backend, "ref") != 0)
      return lite::unsupported("open ", path, ": backend \"", o.backend, "\": this build has: ref");
    auto m = std::make_unique<dsv3_model>();
    m->log = o.log;
    m->log_user = o.log_user;
    LITE_ASSIGN(m->model, dsv3::Model::open(path));
    m->id = m->model->file().model_id();
    const auto generation = read_generation_config(m.get());
    if (!generation.ok()) return generation.in(lite::str("open ", path));
    if (o.verify) LITE_TRY(m->model->file().verify(progress_function(o.progress, o.progress_user)));
    *model = m.release();
    return {};
  });
}

dsv3_status dsv3_model_close(dsv3_model* model) {
  if (!model) return DSV3_OK;
  return call([&]() -> Status {
    if (const int n = model->sessions)
      return Status(Code::Busy, lite::str("close model: ", n, " of its sessions are alive; free them first"));
    delete model;
    return {};
  });
}

dsv3_status dsv3_model_get_info(const dsv3_model* model, dsv3_model_info* info) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_model_get_info", "model");
    if (!info) return null_argument("dsv3_model_get_info", "info");
    const dsv3::Model& m = *model->model;
    const Config& c = m.config();
    dsv3_model_info out = {};
    out.vocab_size = int32_t(c.vocab_size);
    out.hidden_size = int32_t(c.hidden_size);
    out.n_layers = int32_t(c.num_hidden_layers);
    out.n_mtp_layers = int32_t(c.num_nextn_predict_layers);
    out.max_position_embeddings = int32_t(c.max_position_embeddings);
    out.n_parameters = m.parameters();
    out.file_bytes = m.file().file_bytes();
    out.bytes_per_token = m.bytes_per_token();
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) out.kv_values_per_token += c.cached_values(c.layers[i]);
    out.architecture = architecture_name(c.architecture);
    out.model_type = c.model_type.c_str();
    out.id = model->id.c_str();
    out.task = task_of(c);
    out.n_outputs = int32_t(c.output_size());
    out.pad_token_id = int32_t(c.pad_token_id);
    for (const dsv3::LayerConfig& l : c.layers)
      out.n_experts_per_token = std::max(out.n_experts_per_token, int32_t(l.num_experts_per_tok));
    return write_struct("dsv3_model_info", out, info);
  });
}

const char* dsv3_model_label(const dsv3_model* model, int32_t i) {
  if (!model || i < 0 || size_t(i) >= model->model->config().labels.size()) return nullptr;
  return model->model->config().labels[size_t(i)].c_str();
}

dsv3_status dsv3_model_describe(dsv3_model* model, const char** json) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_model_describe", "model");
    if (!json) return null_argument("dsv3_model_describe", "json");
    *json = model->model->describe().c_str();
    return {};
  });
}

// ---- text
// -----------------------------------------------------------------------------------------------------

dsv3_status dsv3_tokenizer_open(const char* path, dsv3_tokenizer** tokenizer) {
  return call([&]() -> Status {
    if (!path) return null_argument("dsv3_tokenizer_open", "path");
    if (!tokenizer) return null_argument("dsv3_tokenizer_open", "tokenizer");
    LITE_ASSIGN(std::unique_ptr<dsv3_tokenizer> opened, open_tokenizer_at(path));
    *tokenizer = opened.release();
    return {};
  });
}

void dsv3_tokenizer_free(dsv3_tokenizer* tokenizer) {
  delete tokenizer;
}

dsv3_status dsv3_model_tokenizer(dsv3_model* model, const dsv3_tokenizer** tokenizer) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_model_tokenizer", "model");
    if (!tokenizer) return null_argument("dsv3_model_tokenizer", "tokenizer");
    const dsv3_tokenizer* t = tokenizer_of(*model);
    if (!t) return model->text_status;
    *tokenizer = t;
    return {};
  });
}

dsv3_status dsv3_tokenize(const dsv3_tokenizer* tokenizer, const char* text, size_t n_bytes, uint32_t flags,
                          int32_t* ids, size_t capacity, size_t* n_ids) {
  return call([&]() -> Status {
    if (!tokenizer) return null_argument("dsv3_tokenize", "tokenizer");
    if (!text && n_bytes) return null_argument("dsv3_tokenize", "text");
    if (!ids && capacity) return null_argument("dsv3_tokenize", "ids");
    if (!n_ids) return null_argument("dsv3_tokenize", "n_ids");
    if (flags & ~uint32_t(DSV3_PARSE_ADDED | DSV3_BOS | DSV3_BOS_AUTO))
      return lite::invalid_argument("dsv3_tokenize: unknown flags ", flags);
    const dsv3::Tokenizer& t = tokenizer->tokenizer;
    dsv3::EncodeOptions o;
    o.parse_added = flags & DSV3_PARSE_ADDED;
    o.bos = (flags & DSV3_BOS) || ((flags & DSV3_BOS_AUTO) && t.adds_bos());
    std::vector<int32_t> out;
    LITE_TRY(t.encode(std::string_view(text ? text : "", n_bytes), o, &out));
    copy_out(out.data(), out.size(), ids, capacity, n_ids);
    return {};
  });
}

dsv3_status dsv3_detokenize(const dsv3_tokenizer* tokenizer, const int32_t* ids, size_t n_ids, uint32_t flags,
                            char* text, size_t capacity, size_t* n_bytes) {
  return call([&]() -> Status {
    if (!tokenizer) return null_argument("dsv3_detokenize", "tokenizer");
    if (!ids && n_ids) return null_argument("dsv3_detokenize", "ids");
    if (!text && capacity) return null_argument("dsv3_detokenize", "text");
    if (!n_bytes) return null_argument("dsv3_detokenize", "n_bytes");
    if (flags & ~uint32_t(DSV3_SKIP_SPECIAL))
      return lite::invalid_argument("dsv3_detokenize: unknown flags ", flags);
    LITE_ASSIGN(const std::string out, tokenizer->tokenizer.decode({ids, n_ids}, {.skip_special = (flags & DSV3_SKIP_SPECIAL) != 0}));
    copy_out(out.data(), out.size(), text, capacity, n_bytes);
    return {};
  });
}

size_t dsv3_utf8_complete(const char* text, size_t n_bytes) {
  return text ? dsv3::utf8_complete_prefix(std::string_view(text, n_bytes)) : 0;
}

int dsv3_is_end_token(const dsv3_model* model, int32_t id) {
  if (!model) return 0;
  const auto holds = [id](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  if (holds(model->end_ids)) return 1;
  bool end = false;
  const dsv3_status status = call([&]() -> Status {
    const dsv3_tokenizer* t = tokenizer_of(*model);
    end = t && holds(t->tokenizer.eos());
    return {};
  });
  return status == DSV3_OK && end;
}

// ---- session
// --------------------------------------------------------------------------------------------------

dsv3_status dsv3_session_memory(dsv3_model* model, const dsv3_session_options* options, dsv3_memory* memory) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_session_memory", "model");
    if (!memory) return null_argument("dsv3_session_memory", "memory");
    LITE_ASSIGN(const dsv3::SessionOptions o, session_options(*model, options));
    LITE_ASSIGN(const dsv3_memory use, session_memory(*model, o));
    return write_struct("dsv3_memory", use, memory);
  });
}

dsv3_status dsv3_session_new(dsv3_model* model, const dsv3_session_options* options, dsv3_session** session) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_session_new", "model");
    if (!session) return null_argument("dsv3_session_new", "session");
    LITE_ASSIGN(const dsv3::SessionOptions o, session_options(*model, options));
    LITE_ASSIGN(const dsv3_memory use, session_memory(*model, o));
    const std::string numbers =
        lite::str("cache ", gib(use.cache), ", activations ", gib(use.activations), ", weights ",
                  gib(use.weights), "; this machine has ", gib(use.machine));
    if (use.cache + use.activations > use.machine)
      return lite::out_of_memory("new session: the memory is not there: ", numbers,
                                 "; try a smaller context (", o.context, ") or fewer sequences (", o.max_seqs,
                                 ")");
    if (use.total > use.machine)
      model->info("model and cache are larger than the memory: " + numbers +
                      "; weights will be read from the disk again and again",
                  DSV3_LOG_WARNING);
    auto s = std::make_unique<dsv3_session>();
    s->owner = model;
    LITE_ASSIGN(s->session, dsv3::Session::create(*model->model, o));
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
    if (b.phase < DSV3_PHASE_AUTO || b.phase > DSV3_PHASE_DECODE)
      return lite::invalid_argument("dsv3_eval: batch.phase is ", int(b.phase), ", expected 0..2");
    return session->session->eval({{b.token, size_t(b.n)}, b.seq, b.want_logits});
  });
}

namespace {
Status give_row(const float* row, const char* what, int32_t i, const float** out) {
  if (!row)
    return lite::invalid_argument(what, ": token ", i,
                                  " of the last batch has none; ask for it with want_logits");
  *out = row;
  return {};
}
}  // namespace

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

int32_t dsv3_seq_length(const dsv3_session* session, int32_t seq) {
  if (!session || seq < 0 || seq >= session->session->options().max_seqs) return -1;
  return int32_t(session->session->sequences().length(seq));
}

dsv3_status dsv3_seq_truncate(dsv3_session* session, int32_t seq, int32_t length) {
  return call([&]() -> Status {
    if (!session) return null_argument("dsv3_seq_truncate", "session");
    const int32_t now = dsv3_seq_length(session, seq);
    if (now < 0)
      return lite::invalid_argument("dsv3_seq_truncate: got sequence ", seq, ", expected 0..",
                                    session->session->options().max_seqs - 1);
    if (length < 0 || length > now)
      return lite::invalid_argument("dsv3_seq_truncate: got length ", length, ", expected 0..", now);
    session->session->sequences().resize(seq, length);
    return {};
  });
}

dsv3_status dsv3_seq_free(dsv3_session* session, int32_t seq) {
  return dsv3_seq_truncate(session, seq, 0);
}

void dsv3_cancel(dsv3_session* session) {
  if (session) session->session->cancel();
}

// ---- choosing a token
// -----------------------------------------------------------------------------------------

dsv3_status dsv3_model_sampling(const dsv3_model* model, dsv3_sampling* sampling) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_model_sampling", "model");
    if (!sampling) return null_argument("dsv3_model_sampling", "sampling");
    const dsv3::Sampling& s = model->sampling;
    return write_struct("dsv3_sampling", dsv3_sampling{0, s.top_k, s.temperature, s.top_p, s.min_p},
                        sampling);
  });
}

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
      dsv3_sampling o;
      LITE_TRY(read_options("dsv3_sampling", sampling, &o));
      s = {o.temperature, o.top_k, o.top_p == 0 ? 1 : o.top_p, o.min_p};
    }
    LITE_TRY(s.check());
    const float* logits = nullptr;
    LITE_TRY(give_row(session->session->logits(i), "sample", i, &logits));
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

// ---- heads other than the next token's
// ------------------------------------------------------------------------

int32_t dsv3_classified_position(const dsv3_model* model, const int32_t* ids, int32_t n) {
  if (!model || !ids || n < 1) return -1;
  const int64_t pad = model->model->config().pad_token_id;
  if (pad < 0) return n - 1;
  for (int32_t i = n - 1; i > 0; --i)
    if (ids[i] != pad) return i;
  return 0;
}

dsv3_status dsv3_layer_eval(const dsv3_model* model, const dsv3_layer_batch* batch, float* y) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_layer_eval", "model");
    if (!batch) return null_argument("dsv3_layer_eval", "batch");
    if (!y) return null_argument("dsv3_layer_eval", "y");
    dsv3_layer_batch b;
    LITE_TRY(read_options("dsv3_layer_batch", batch, &b));
    if (!b.x) return null_argument("dsv3_layer_eval", "batch.x");
    if (b.float_mask && b.bool_mask)
      return lite::invalid_argument("dsv3_layer_eval: both masks are given, expected one");
    if (b.n_threads == 0) b.n_threads = lite::physical_cores();
    LITE_TRY(in_range("n_threads", b.n_threads, 1, 1024));
    LITE_TRY(in_range("length", b.length, 1, 1 << 15));
    std::vector<float> blocked;
    if (b.bool_mask) {
      blocked.resize(size_t(b.length) * size_t(b.length));
      for (size_t i = 0; i < blocked.size(); ++i) blocked[i] = b.bool_mask[i] ? -INFINITY : 0.0f;
    }
    const float* mask = b.bool_mask ? blocked.data() : b.float_mask;
    return dsv3::eval_moe_transformer(*model->model, {b.batch, b.length, b.x, mask}, b.n_threads,
                                      {y, b.router_ids, b.router_weights});
  });
}

// ---- expert load
// ----------------------------------------------------------------------------------------------

dsv3_status dsv3_load_balancing_loss(const float* const* logits, int32_t n_layers, int32_t n_rows,
                                     int32_t n_experts, int32_t n_experts_per_token, const uint8_t* mask,
                                     double* loss) {
  return call([&]() -> Status {
    if (!logits) return null_argument("dsv3_load_balancing_loss", "logits");
    if (!loss) return null_argument("dsv3_load_balancing_loss", "loss");
    if (n_layers < 1 || n_rows < 1 || n_experts < 1 || n_experts_per_token < 1 ||
        n_experts_per_token > n_experts)
      return lite::invalid_argument("dsv3_load_balancing_loss: got ", n_layers, " layers, ", n_rows,
                                    " rows, ", n_experts_per_token, " of ", n_experts,
                                    " experts, expected at least 1 of each");
    *loss =
        dsv3::load_balancing_loss({logits, size_t(n_layers)}, n_rows, n_experts, n_experts_per_token, mask);
    return {};
  });
}
