// The C API: status, version and models; api/ has the rest. Thin: what it does is in model/ and text/.
#include "dsv3.h"

#include <new>

#include "api/device.h"
#include "api/handles.h"
#include "ggml-lite/machine.h"
#include "text/generation_config.h"
#include "version.h"

using namespace dsv3::api;
using dsv3::Config;
using dsv3::Result;
using dsv3::Status;
using lite::Code;

namespace {
thread_local std::string last_error;
}

namespace dsv3::api {

std::string one_line(std::string_view text) {
  constexpr size_t kMost = 2000;  // bytes
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t c = uint8_t(text[i]);
    constexpr char kHex[] = "0123456789abcdef";
    if (c < 0x20 || c == 0x7F)
      (out += "\\x").append({kHex[c >> 4], kHex[c & 15]});
    else
      out += text[i];
    const bool whole = i + 1 == text.size() || (uint8_t(text[i + 1]) & 0xC0) != 0x80;  // no character is cut
    if (out.size() >= kMost && whole && i + 1 < text.size()) return out + "...";
    if (out.size() >= kMost + 4) return out + "...";  // no UTF-8
  }
  return out;
}

dsv3_status report(const Status& status) {
  if (!status.ok()) last_error = one_line(status.message());
  return dsv3_status(int(status.code()));
}

dsv3_status report(const std::exception& exception) {
  last_error.clear();
  if (dynamic_cast<const std::bad_alloc*>(&exception)) {
    last_error += "out of memory";  // a longer text might not fit either
    return DSV3_OUT_OF_MEMORY;
  }
  last_error += one_line(lite::str("internal error: ", exception.what()));
  return DSV3_INTERNAL;
}

Status in_range(const char* what, const char* option, int64_t got, int64_t smallest, int64_t largest) {
  if (got >= smallest && got <= largest) return {};
  return lite::invalid_argument(what, ": ", option, ": got ", got, ", expected ", smallest, "..", largest);
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

}  // namespace dsv3::api

// ---- status

const char* dsv3_last_error(void) {
  return last_error.c_str();
}

const char* dsv3_status_name(dsv3_status status) {
  switch (number_of(status)) {
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

int32_t dsv3_abi_version(void) {
  return DSV3_ABI_VERSION;
}

const char* dsv3_version(void) {
  static const std::string text = "dsv3 " DSV3_VERSION_TEXT "\ngit: " DSV3_GIT_ID "\n" + describe_devices();
  return text.c_str();
}

// ---- model

namespace {

// End tokens of config.json and generation_config.json, and how to sample.
Status read_generation(dsv3_model* m) {
  for (const int64_t id : m->model->config().eos_token_id) m->end_ids.push_back(int32_t(id));
  const std::string_view* text = m->model->file().section("generation_config.json");
  if (!text) return {};
  LITE_ASSIGN(const dsv3::GenerationConfig read, dsv3::read_generation_config(*text));
  m->end_ids.insert(m->end_ids.end(), read.end_ids.begin(), read.end_ids.end());
  m->sampling = read.sampling;
  return {};
}

}  // namespace

dsv3_status dsv3_model_open(const char* path, const dsv3_model_options* options, dsv3_model** model) {
  return call([&]() -> Status {
    LITE_TRY(check_path("dsv3_model_open", path));
    if (!model) return null_argument("dsv3_model_open", "model");
    dsv3_model_options o;
    LITE_TRY(read_options("dsv3_model_options", options, &o));
    auto m = std::make_unique<dsv3_model>();
    std::string backend;
    const std::string load = o.load ? o.load : "map";
    if (load != "map" && load != "copy")
      return lite::invalid_argument("dsv3_model_open: load: got \"", load, "\", expected map or copy");
    LITE_ASSIGN(m->device, read_device(o, &backend));
    m->log = o.log;
    m->log_user = o.log_user;
    LITE_ASSIGN(m->model, dsv3::Model::open(path));
    m->id = m->model->file().model_id();
    LITE_TRY(read_generation(m.get()).in(lite::str("open ", path)));
    const auto progress = progress_function(o.progress, o.progress_user);
    if (o.verify) LITE_TRY(m->model->file().verify(progress));
    if (load == "copy") LITE_TRY(m->model->copy_weights(progress));
    m->info(lite::str("opened ", path, ": backend ", backend, ", path ", path_name(m->device), ", ",
                      m->model->file().file_bytes(), " bytes"),
            DSV3_LOG_INFO);
    *model = m.release();
    return {};
  });
}

dsv3_status dsv3_model_close(dsv3_model* model) {
  if (!model) return DSV3_OK;
  return call([&]() -> Status {
    if (const int n = model->sessions)
      return Status(Code::Busy,
                    lite::str("close model: sessions that it still has: ", n, "; free them first"));
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
    out.parameters_per_token = m.parameters_per_token();
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) out.kv_values_per_token += c.cached_values(c.layers[i]);
    out.architecture = dsv3::architecture_name(c.architecture);
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
