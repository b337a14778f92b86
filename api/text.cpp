// The C API of text: tokenizers.
#include "api/checkpoint_files.h"
#include "api/handles.h"

using namespace dsv3::api;
using dsv3::Result;
using dsv3::Status;

namespace {

Result<std::unique_ptr<dsv3_tokenizer>> open_tokenizer(const dsv3::Tokenizer::Files& files) {
  LITE_ASSIGN(dsv3::Tokenizer tokenizer, dsv3::Tokenizer::open(files));
  return std::make_unique<dsv3_tokenizer>(dsv3_tokenizer{std::move(tokenizer)});
}

Result<std::unique_ptr<dsv3_tokenizer>> open_tokenizer_at(const std::string& path) {
  LITE_ASSIGN(CheckpointFiles files, CheckpointFiles::open(path));
  auto opened = open_tokenizer(files.reader());
  LITE_TRY(files.unreadable());
  return opened.ok() ? std::move(opened) : opened.status().in("open " + path);
}

// What the two forms of dsv3_tokenize share.
Status encode(const char* call, const dsv3_tokenizer* tokenizer, const char* text, size_t n_bytes,
              uint32_t flags, std::vector<int32_t>* ids, std::vector<dsv3::TextSpan>* places) {
  if (!tokenizer) return null_argument(call, "tokenizer");
  if (!text && n_bytes) return null_argument(call, "text");
  LITE_TRY(readable(call, "n_bytes", n_bytes));
  if (flags & ~uint32_t(DSV3_PARSE_ADDED | DSV3_BOS | DSV3_BOS_AUTO))
    return lite::invalid_argument(call, ": unknown flags ", flags);
  const dsv3::Tokenizer& t = tokenizer->tokenizer;
  dsv3::EncodeOptions o;
  o.parse_added = flags & DSV3_PARSE_ADDED;
  o.bos = (flags & DSV3_BOS) || ((flags & DSV3_BOS_AUTO) && t.adds_bos());
  return t.encode(std::string_view(text ? text : "", n_bytes), o, ids, places);
}

}  // namespace

namespace dsv3::api {

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

}  // namespace dsv3::api

dsv3_status dsv3_tokenizer_open(const char* path, dsv3_tokenizer** tokenizer) {
  return call([&]() -> Status {
    LITE_TRY(check_path("dsv3_tokenizer_open", path));
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
    if (!ids && capacity) return null_argument("dsv3_tokenize", "ids");
    if (!n_ids) return null_argument("dsv3_tokenize", "n_ids");
    std::vector<int32_t> out;
    LITE_TRY(encode("dsv3_tokenize", tokenizer, text, n_bytes, flags, &out, nullptr));
    copy_out(out.data(), out.size(), ids, capacity, n_ids);
    return {};
  });
}

dsv3_status dsv3_tokenize_spans(const dsv3_tokenizer* tokenizer, const char* text, size_t n_bytes,
                                uint32_t flags, int32_t* ids, dsv3_span* spans, size_t capacity,
                                size_t* n_ids) {
  return call([&]() -> Status {
    if (!ids && capacity) return null_argument("dsv3_tokenize_spans", "ids");
    if (!spans && capacity) return null_argument("dsv3_tokenize_spans", "spans");
    if (!n_ids) return null_argument("dsv3_tokenize_spans", "n_ids");
    std::vector<int32_t> out;
    std::vector<dsv3::TextSpan> places;
    LITE_TRY(encode("dsv3_tokenize_spans", tokenizer, text, n_bytes, flags, &out, &places));
    copy_out(out.data(), out.size(), ids, capacity, n_ids);
    for (size_t i = 0; i < std::min(places.size(), capacity); ++i)
      spans[i] = {places[i].begin, places[i].end};
    return {};
  });
}

dsv3_status dsv3_detokenize(const dsv3_tokenizer* tokenizer, const int32_t* ids, size_t n_ids, uint32_t flags,
                            char* text, size_t capacity, size_t* n_bytes) {
  return call([&]() -> Status {
    if (!tokenizer) return null_argument("dsv3_detokenize", "tokenizer");
    if (!ids && n_ids) return null_argument("dsv3_detokenize", "ids");
    LITE_TRY(readable("dsv3_detokenize", "n_ids", n_ids));
    if (!text && capacity) return null_argument("dsv3_detokenize", "text");
    if (!n_bytes) return null_argument("dsv3_detokenize", "n_bytes");
    if (flags & ~uint32_t(DSV3_SKIP_SPECIAL | DSV3_CONTINUES))
      return lite::invalid_argument("dsv3_detokenize: unknown flags ", flags);
    dsv3::DecodeOptions o;
    o.skip_special = flags & DSV3_SKIP_SPECIAL;
    o.continues = flags & DSV3_CONTINUES;
    LITE_ASSIGN(const std::string out, tokenizer->tokenizer.decode({ids, n_ids}, o));
    copy_out(out.data(), out.size(), text, capacity, n_bytes);
    return {};
  });
}

size_t dsv3_utf8_complete(const char* text, size_t n_bytes) {
  return text && n_bytes <= kMostReadable ? dsv3::utf8_complete_prefix(std::string_view(text, n_bytes)) : 0;
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
