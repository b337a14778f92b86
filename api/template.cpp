// The C API of chat: templates, and what models write split into its parts.

#include "api/checkpoint_files.h"
#include "api/handles.h"
#include "ggml-lite/file.h"
#include "ggml-lite/json.h"
#include "model/sections.h"
#include "text/chat_template.h"
#include "text/output_parser.h"

using namespace dsv3::api;
using dsv3::Result;
using dsv3::Status;
using lite::Json;

struct dsv3_template {
  dsv3::ChatTemplate chat_template;
};

struct dsv3_output {
  explicit dsv3_output(std::string_view prompt) : parser(prompt) {}

  dsv3::OutputParser parser;
  std::vector<dsv3::OutputEvent> events;
  size_t given = 0;  // of events
  bool finished = false;
};

namespace {

Status give(dsv3::ChatTemplate chat_template, dsv3_template** out) {
  *out = new dsv3_template{std::move(chat_template)};
  return {};
}

Result<dsv3::ChatTemplate> open_template(const std::string& path, std::string_view name) {
  const auto in_path = [&](Result<dsv3::ChatTemplate> opened) {
    return opened.ok() ? std::move(opened) : opened.status().in("open " + path);
  };
  if (path.ends_with(".jinja")) {  // a template by itself
    if (!name.empty())
      return lite::invalid_argument("open ", path, ": a template by itself has none named \"", name, "\"");
    LITE_ASSIGN(const std::string text, lite::read_text(path, dsv3::jinja::Template::kMaxSource));
    return in_path(dsv3::ChatTemplate::parse(text, Json()));
  }
  LITE_ASSIGN(CheckpointFiles files, CheckpointFiles::open(path));
  auto opened = dsv3::ChatTemplate::open(files.reader(), name);
  LITE_TRY(files.unreadable());
  return in_path(std::move(opened));
}

Result<dsv3::jinja::Rendered> render(const dsv3_template& t, std::string_view arguments,
                                     const int64_t* local_time) {
  LITE_ASSIGN(const Json json, Json::parse_wide(arguments, "the template's arguments"));
  return t.chat_template.render(json, local_time ? std::optional<int64_t>(*local_time) : std::nullopt);
}

}  // namespace

dsv3_status dsv3_template_open(const char* path, const char* name, dsv3_template** chat_template) {
  return call([&]() -> Status {
    LITE_TRY(check_path("dsv3_template_open", path));
    if (!chat_template) return null_argument("dsv3_template_open", "chat_template");
    LITE_ASSIGN(dsv3::ChatTemplate opened, open_template(path, name ? name : ""));
    return give(std::move(opened), chat_template);
  });
}

dsv3_status dsv3_template_parse(const char* text, size_t n_bytes, const char* special_tokens,
                                dsv3_template** chat_template) {
  return call([&]() -> Status {
    if (!text && n_bytes) return null_argument("dsv3_template_parse", "text");
    LITE_TRY(readable("dsv3_template_parse", "n_bytes", n_bytes));
    if (!chat_template) return null_argument("dsv3_template_parse", "chat_template");
    Json tokens;
    if (special_tokens) {
      LITE_ASSIGN(tokens, Json::parse(special_tokens, "the special tokens"));
    }
    LITE_ASSIGN(dsv3::ChatTemplate parsed,
                dsv3::ChatTemplate::parse(std::string_view(text ? text : "", n_bytes), tokens));
    return give(std::move(parsed), chat_template);
  });
}

dsv3_status dsv3_model_template(const dsv3_model* model, const char* name, dsv3_template** chat_template) {
  return call([&]() -> Status {
    if (!model) return null_argument("dsv3_model_template", "model");
    if (!chat_template) return null_argument("dsv3_model_template", "chat_template");
    const lite::PackFile& file = model->model->file();
    Result<dsv3::ChatTemplate> opened = dsv3::ChatTemplate::open(
        [&](std::string_view path) { return dsv3::checkpoint_file(file, path); }, name ? name : "");
    if (!opened.ok()) return opened.status().in("open " + file.path());
    return give(std::move(*opened), chat_template);
  });
}

void dsv3_template_free(dsv3_template* chat_template) {
  delete chat_template;
}

dsv3_status dsv3_template_render(const dsv3_template* chat_template, const char* arguments, size_t n_bytes,
                                 const int64_t* local_time, char* text, size_t capacity, size_t* n_text,
                                 dsv3_span* trusted, size_t span_capacity, size_t* n_trusted) {
  return call([&]() -> Status {
    if (!chat_template) return null_argument("dsv3_template_render", "chat_template");
    if (!arguments) return null_argument("dsv3_template_render", "arguments");
    LITE_TRY(readable("dsv3_template_render", "n_bytes", n_bytes));
    if (!text && capacity) return null_argument("dsv3_template_render", "text");
    if (!n_text) return null_argument("dsv3_template_render", "n_text");
    if (!trusted && span_capacity) return null_argument("dsv3_template_render", "trusted");
    LITE_ASSIGN(const dsv3::jinja::Rendered out,
                render(*chat_template, std::string_view(arguments, n_bytes), local_time));
    copy_out(out.text.data(), out.text.size(), text, capacity, n_text);
    for (size_t i = 0; i < std::min(out.trusted.size(), span_capacity); ++i)
      trusted[i] = {out.trusted[i].begin, out.trusted[i].end};
    if (n_trusted) *n_trusted = out.trusted.size();
    return {};
  });
}

dsv3_status dsv3_template_tokenize(const dsv3_template* chat_template, const dsv3_tokenizer* tokenizer,
                                   const char* arguments, size_t n_bytes, const int64_t* local_time,
                                   int32_t* ids, size_t capacity, size_t* n_ids) {
  return call([&]() -> Status {
    if (!chat_template) return null_argument("dsv3_template_tokenize", "chat_template");
    if (!tokenizer) return null_argument("dsv3_template_tokenize", "tokenizer");
    if (!arguments) return null_argument("dsv3_template_tokenize", "arguments");
    LITE_TRY(readable("dsv3_template_tokenize", "n_bytes", n_bytes));
    if (!ids && capacity) return null_argument("dsv3_template_tokenize", "ids");
    if (!n_ids) return null_argument("dsv3_template_tokenize", "n_ids");
    LITE_ASSIGN(const dsv3::jinja::Rendered rendered,
                render(*chat_template, std::string_view(arguments, n_bytes), local_time));
    std::vector<int32_t> out;
    LITE_TRY(tokenizer->tokenizer.encode_spans(rendered.text, rendered.trusted, &out));
    copy_out(out.data(), out.size(), ids, capacity, n_ids);
    return {};
  });
}

// ---- what models write

dsv3_status dsv3_output_new(const char* prompt, size_t n_bytes, dsv3_output** output) {
  return call([&]() -> Status {
    if (!prompt && n_bytes) return null_argument("dsv3_output_new", "prompt");
    LITE_TRY(readable("dsv3_output_new", "n_bytes", n_bytes));
    if (!output) return null_argument("dsv3_output_new", "output");
    *output = new dsv3_output(std::string_view(prompt ? prompt : "", n_bytes));
    return {};
  });
}

void dsv3_output_free(dsv3_output* output) {
  delete output;
}

namespace {

Status keep(dsv3_output* output, std::vector<dsv3::OutputEvent> events) {
  output->events.erase(output->events.begin(), output->events.begin() + int64_t(output->given));
  output->given = 0;
  std::move(events.begin(), events.end(), std::back_inserter(output->events));
  return {};
}

}  // namespace

dsv3_status dsv3_output_add(dsv3_output* output, const char* text, size_t n_bytes) {
  return call([&]() -> Status {
    if (!output) return null_argument("dsv3_output_add", "output");
    if (!text && n_bytes) return null_argument("dsv3_output_add", "text");
    LITE_TRY(readable("dsv3_output_add", "n_bytes", n_bytes));
    if (output->finished) return lite::invalid_argument("dsv3_output_add: the output is finished");
    return keep(output, output->parser.add(std::string_view(text ? text : "", n_bytes)));
  });
}

dsv3_status dsv3_output_finish(dsv3_output* output) {
  return call([&]() -> Status {
    if (!output) return null_argument("dsv3_output_finish", "output");
    if (output->finished) return {};
    output->finished = true;
    return keep(output, output->parser.finish());
  });
}

int dsv3_output_next(dsv3_output* output, dsv3_output_event* event) {
  bool written = false;
  const dsv3_status status = call([&]() -> Status {
    if (!output) return null_argument("dsv3_output_next", "output");
    if (!event) return null_argument("dsv3_output_next", "event");
    if (output->given == output->events.size()) return {};
    const dsv3::OutputEvent& next = output->events[output->given];
    dsv3_output_event out = {};
    out.kind = dsv3_output_kind(int(next.kind));
    out.text = next.text.c_str();
    out.n_bytes = next.text.size();
    out.name = next.name.c_str();
    out.id = next.id.c_str();
    LITE_TRY(write_struct("dsv3_output_event", out, event));
    ++output->given;
    written = true;
    return {};
  });
  return status == DSV3_OK && written;
}
