// The C API's border: every function with null, oversized and mismatched arguments, option structs of other ages, and
// what a refused call must leave as it was. Under the address sanitizer also: nothing leaks.
#include <climits>
#include <cstddef>
#include <cstring>

#include "tests/unit/api_model.h"

using namespace api_test;

namespace {

struct Refused {
  const char* what;
  dsv3_status got;
  std::string message;  // of got
  dsv3_status expected;
  const char* part;
};

// One refused call, its error looked up at once.
#define REFUSED(call, status, part)              \
  Refused {                                      \
#call, call, dsv3_last_error(), status, part \
  }

void check_all(const std::vector<Refused>& rows) {
  for (const Refused& row : rows) {
    CAPTURE(row.what);
    CHECK_MESSAGE(row.got == row.expected, row.message);
    CHECK_MESSAGE(row.message.find(row.part) != std::string::npos, row.message, " does not say: ", row.part);
  }
}

constexpr dsv3_status kInvalid = DSV3_INVALID_ARGUMENT;

template <class T>
T sized() {
  T t = {};
  t.struct_size = sizeof t;
  return t;
}

// A value that no function writes by itself.
template <class T>
T* untouched() {
  return reinterpret_cast<T*>(uintptr_t(0xA5A5));
}

const std::string kTokenizer = DSV3_SOURCE_DIR "/tests/golden/tokenizers/deepseek-v3";

}  // namespace

TEST_CASE("the API refuses null, and nothing is a handle that can be freed") {
  const Model model = open("ds3-f32");
  const Session s = session(model, options(32, 1));
  ok(eval(s, {1, 2}));
  dsv3_tokenizer* t = nullptr;
  ok(dsv3_tokenizer_open(kTokenizer.c_str(), &t));
  dsv3_model* m = untouched<dsv3_model>();
  dsv3_session* fresh = untouched<dsv3_session>();
  dsv3_plan* plan = untouched<dsv3_plan>();
  dsv3_tokenizer* tokenizer = untouched<dsv3_tokenizer>();
  const dsv3_tokenizer* of_model = untouched<dsv3_tokenizer>();
  auto about = sized<dsv3_model_info>();
  auto memory = sized<dsv3_memory>();
  auto stats = sized<dsv3_session_stats>();
  auto sampling = sized<dsv3_sampling>();
  auto batch = sized<dsv3_batch>();
  auto layer = sized<dsv3_layer_batch>();
  batch.n = 1;
  const char* json = nullptr;
  const float* row = nullptr;
  const void* values = nullptr;
  dsv3_dtype dtype = DSV3_F32;
  int32_t id = 1, n = 0;
  dsv3_span span = {};
  size_t size = 77;
  char text[8];
  float y[4];
  double loss = 0;
  const float *layers[1] = {y}, *no_layers[1] = {nullptr};
  dsv3_meter* meter = untouched<dsv3_meter>();
  auto ceilings = sized<dsv3_ceilings>();
  check_all({
      REFUSED(dsv3_model_open(nullptr, nullptr, &m), kInvalid, "\"path\" is null"),
      REFUSED(dsv3_model_open("x", nullptr, nullptr), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_model_get_info(nullptr, &about), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_model_get_info(model.get(), nullptr), kInvalid, "\"info\" is null"),
      REFUSED(dsv3_model_describe(nullptr, &json), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_model_describe(model.get(), nullptr), kInvalid, "\"json\" is null"),
      REFUSED(dsv3_tokenizer_open(nullptr, &tokenizer), kInvalid, "\"path\" is null"),
      REFUSED(dsv3_tokenizer_open("x", nullptr), kInvalid, "\"tokenizer\" is null"),
      REFUSED(dsv3_model_tokenizer(nullptr, &of_model), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_model_tokenizer(model.get(), nullptr), kInvalid, "\"tokenizer\" is null"),
      REFUSED(dsv3_tokenize(nullptr, "a", 1, 0, &id, 1, &size), kInvalid, "\"tokenizer\" is null"),
      REFUSED(dsv3_tokenize(t, nullptr, 1, 0, &id, 1, &size), kInvalid, "\"text\" is null"),
      REFUSED(dsv3_tokenize(t, "a", 1, 0, nullptr, 1, &size), kInvalid, "\"ids\" is null"),
      REFUSED(dsv3_tokenize(t, "a", 1, 0, &id, 1, nullptr), kInvalid, "\"n_ids\" is null"),
      REFUSED(dsv3_tokenize_spans(nullptr, "a", 1, 0, &id, &span, 1, &size), kInvalid,
              "dsv3_tokenize_spans: argument \"tokenizer\" is null"),
      REFUSED(dsv3_tokenize_spans(t, nullptr, 1, 0, &id, &span, 1, &size), kInvalid, "\"text\" is null"),
      REFUSED(dsv3_tokenize_spans(t, "a", 1, 0, nullptr, &span, 1, &size), kInvalid, "\"ids\" is null"),
      REFUSED(dsv3_tokenize_spans(t, "a", 1, 0, &id, nullptr, 1, &size), kInvalid, "\"spans\" is null"),
      REFUSED(dsv3_tokenize_spans(t, "a", 1, 0, &id, &span, 1, nullptr), kInvalid, "\"n_ids\" is null"),
      REFUSED(dsv3_tokenize_spans(t, "a", 1, 64, &id, &span, 1, &size), kInvalid, "unknown flags 64"),
      REFUSED(dsv3_detokenize(nullptr, &id, 1, 0, text, 8, &size), kInvalid, "\"tokenizer\" is null"),
      REFUSED(dsv3_detokenize(t, nullptr, 1, 0, text, 8, &size), kInvalid, "\"ids\" is null"),
      REFUSED(dsv3_detokenize(t, &id, 1, 0, nullptr, 8, &size), kInvalid, "\"text\" is null"),
      REFUSED(dsv3_detokenize(t, &id, 1, 0, text, 8, nullptr), kInvalid, "\"n_bytes\" is null"),
      REFUSED(dsv3_session_memory(nullptr, nullptr, &memory), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_session_memory(model.get(), nullptr, nullptr), kInvalid, "\"memory\" is null"),
      REFUSED(dsv3_plan_new(nullptr, nullptr, &plan), kInvalid, "\"path\" is null"),
      REFUSED(dsv3_plan_new("x", nullptr, nullptr), kInvalid, "\"plan\" is null"),
      REFUSED(dsv3_session_new(nullptr, nullptr, &fresh), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_session_new(model.get(), nullptr, nullptr), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_eval(nullptr, &batch), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_eval(s.get(), nullptr), kInvalid, "\"batch\" is null"),
      REFUSED(dsv3_eval(s.get(), &batch), kInvalid, "\"batch.token\" is null"),
      REFUSED(dsv3_logits(nullptr, 1, &row), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_logits(s.get(), 1, nullptr), kInvalid, "\"logits\" is null"),
      REFUSED(dsv3_mtp_logits(nullptr, 1, &row), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_mtp_logits(s.get(), 1, nullptr), kInvalid, "\"logits\" is null"),
      REFUSED(dsv3_kept(nullptr, "final", 0, &dtype, &values, &n), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_kept(s.get(), nullptr, 0, &dtype, &values, &n), kInvalid, "\"name\" is null"),
      REFUSED(dsv3_kept(s.get(), "final", 0, nullptr, &values, &n), kInvalid, "null"),
      REFUSED(dsv3_kept(s.get(), "final", 0, &dtype, nullptr, &n), kInvalid, "null"),
      REFUSED(dsv3_kept(s.get(), "final", 0, &dtype, &values, nullptr), kInvalid, "null"),
      REFUSED(dsv3_session_get_stats(nullptr, &stats), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_session_get_stats(s.get(), nullptr), kInvalid, "\"stats\" is null"),
      REFUSED(dsv3_seq_truncate(nullptr, 0, 0), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_seq_free(nullptr, 0), kInvalid, "dsv3_seq_free: argument \"session\" is null"),
      REFUSED(dsv3_seq_fork(nullptr, 0, 1, 0), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_session_save(nullptr, text, 8, &size), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_session_save(s.get(), nullptr, 8, &size), kInvalid, "\"bytes\" is null"),
      REFUSED(dsv3_session_save(s.get(), text, 8, nullptr), kInvalid, "\"n_bytes\" is null"),
      REFUSED(dsv3_session_load(nullptr, text, 8), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_session_load(s.get(), nullptr, 8), kInvalid, "\"bytes\" is null"),
      REFUSED(dsv3_session_save_file(nullptr, "x"), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_session_save_file(s.get(), nullptr), kInvalid, "\"path\" is null"),
      REFUSED(dsv3_session_load_file(nullptr, "x", nullptr, nullptr), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_session_load_file(s.get(), nullptr, nullptr, nullptr), kInvalid, "\"path\" is null"),
      REFUSED(dsv3_model_sampling(nullptr, &sampling), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_model_sampling(model.get(), nullptr), kInvalid, "\"sampling\" is null"),
      REFUSED(dsv3_sample(nullptr, 1, nullptr, 0, &id), kInvalid, "\"session\" is null"),
      REFUSED(dsv3_sample(s.get(), 1, nullptr, 0, nullptr), kInvalid, "\"token\" is null"),
      REFUSED(dsv3_layer_eval(nullptr, &layer, y), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_layer_eval(model.get(), nullptr, y), kInvalid, "\"batch\" is null"),
      REFUSED(dsv3_layer_eval(model.get(), &layer, nullptr), kInvalid, "\"y\" is null"),
      REFUSED(dsv3_layer_eval(model.get(), &layer, y), kInvalid, "\"batch.x\" is null"),
      REFUSED(dsv3_load_balancing_loss(nullptr, 1, 1, 4, 1, nullptr, &loss), kInvalid, "\"logits\" is null"),
      REFUSED(dsv3_load_balancing_loss(layers, 1, 1, 4, 1, nullptr, nullptr), kInvalid, "\"loss\" is null"),
      REFUSED(dsv3_load_balancing_loss(no_layers, 1, 1, 4, 1, nullptr, &loss), kInvalid,
              "\"logits[i]\" is null"),
      REFUSED(dsv3_meter_new(nullptr, 1, &meter), kInvalid, "\"model\" is null"),
      REFUSED(dsv3_meter_new(model.get(), 1, nullptr), kInvalid, "\"meter\" is null"),
      REFUSED(dsv3_meter_new(model.get(), -1, &meter), kInvalid, "n_threads: got -1"),
      REFUSED(dsv3_meter_new(model.get(), INT_MAX, &meter), kInvalid, "n_threads"),
      REFUSED(dsv3_meter_measure(nullptr, &ceilings), kInvalid, "\"meter\" is null"),
      REFUSED(dsv3_verify(nullptr, nullptr), kInvalid, "\"path\" is null"),
  });
  // What a failed call would have given is as it was.
  CHECK(m == untouched<dsv3_model>());
  CHECK(fresh == untouched<dsv3_session>());
  CHECK(tokenizer == untouched<dsv3_tokenizer>());
  CHECK(of_model == untouched<dsv3_tokenizer>());
  CHECK(meter == untouched<dsv3_meter>());
  CHECK(size == 77);
  CHECK(row == nullptr);
  CHECK(dsv3_seq_length(s.get(), 0) == 2);

  CHECK(dsv3_model_close(nullptr) == DSV3_OK);
  dsv3_session_free(nullptr);
  dsv3_tokenizer_free(nullptr);
  dsv3_cancel(nullptr);
  CHECK(dsv3_model_label(nullptr, 0) == nullptr);
  CHECK(dsv3_plan_json(nullptr) == nullptr);
  CHECK(dsv3_session_context(nullptr) == 0);
  CHECK(dsv3_seq_length(nullptr, 0) == -1);
  CHECK(dsv3_seq_tokens(nullptr, 0) == nullptr);
  CHECK(dsv3_is_end_token(nullptr, 0) == 0);
  CHECK(dsv3_utf8_complete(nullptr, 3) == 0);
  CHECK(dsv3_classified_position(nullptr, &id, 1) == -1);
  CHECK(dsv3_classified_position(model.get(), nullptr, 1) == -1);
  CHECK(dsv3_classified_position(model.get(), &id, 0) == -1);
  dsv3_meter_free(nullptr);
  dsv3_tokenizer_free(t);
}

TEST_CASE("the API reads no more bytes than a caller can mean") {
  const Model model = open("ds3-f32");
  const Session s = session(model, options(32, 1));
  dsv3_tokenizer* t = nullptr;
  ok(dsv3_tokenizer_open(kTokenizer.c_str(), &t));
  dsv3_template *chat_template = nullptr, *no_template = nullptr;
  ok(dsv3_template_parse("x", 1, nullptr, &chat_template));
  dsv3_output *output = nullptr, *no_output = nullptr;
  ok(dsv3_output_new("", 0, &output));
  dsv3_stop *stop = nullptr, *no_stop = nullptr;
  ok(dsv3_stop_new(nullptr, nullptr, 0, &stop));
  const char *a = "a", *shown = nullptr;
  size_t n = 77;
  int stopped = 0;
  const int32_t id = 1;
  for (const size_t huge : {SIZE_MAX, size_t(1) << 62, size_t(1) << 48, size_t(INT32_MAX) + 1}) {
    CAPTURE(huge);
    const std::string got = std::to_string(huge);
    const char* part = got.c_str();
    check_all({
        REFUSED(dsv3_tokenize(t, a, huge, 0, nullptr, 0, &n), kInvalid, part),
        REFUSED(dsv3_detokenize(t, &id, huge, 0, nullptr, 0, &n), kInvalid, part),
        REFUSED(dsv3_template_parse(a, huge, nullptr, &no_template), kInvalid, part),
        REFUSED(dsv3_template_render(chat_template, a, huge, nullptr, nullptr, 0, &n, nullptr, 0, nullptr),
                kInvalid, part),
        REFUSED(dsv3_template_tokenize(chat_template, t, a, huge, nullptr, nullptr, 0, &n), kInvalid, part),
        REFUSED(dsv3_output_new(a, huge, &no_output), kInvalid, part),
        REFUSED(dsv3_output_add(output, a, huge), kInvalid, part),
        REFUSED(dsv3_stop_new(&a, &huge, 1, &no_stop), kInvalid, part),
        REFUSED(dsv3_stop_add(stop, a, huge, &shown, &n, &stopped), kInvalid, part),
    });
    if (huge >= size_t(1) << 48)  // a saved session can be larger than a text
      check_all({REFUSED(dsv3_session_load(s.get(), a, huge), kInvalid, part)});
    CHECK(dsv3_utf8_complete(a, huge) == 0);
  }
  CHECK(n == 77);
  CHECK((!no_template && !no_output && !no_stop && !shown));
  ok(dsv3_output_add(output, a, 1));
  dsv3_stop_free(stop);
  dsv3_output_free(output);
  dsv3_template_free(chat_template);
  dsv3_tokenizer_free(t);
}

TEST_CASE("an error is one line of bounded length") {
  dsv3_model* m = nullptr;
  failed(dsv3_model_open("/absent/a\nb\x1b[2J\x7f", nullptr, &m), DSV3_NOT_FOUND, "a\\x0ab\\x1b[2J\\x7f");
  std::string longest = "/absent/";
  for (int i = 0; i < 100000; ++i) longest += "é";
  for (const std::string& path :
       {longest, "/absent/" + std::string(100000, '\x80'), std::string(100000, '\n')}) {
    CHECK(dsv3_model_open(path.c_str(), nullptr, &m) != DSV3_OK);
    const std::string message = dsv3_last_error();
    CHECK(message.size() > 1000);
    CHECK(message.size() < 2020);
    CHECK(message.ends_with("..."));
    CHECK(message.find('\n') == std::string::npos);
    if (path == longest) CHECK(dsv3_utf8_complete(message.data(), message.size() - 3) == message.size() - 3);
  }
}

TEST_CASE("an empty path is said to be one") {
  const Model model = open("ds3-f32");
  const Session s = session(model, options(32, 1));
  dsv3_model* m = nullptr;
  dsv3_tokenizer* t = nullptr;
  dsv3_template* chat_template = nullptr;
  check_all({
      REFUSED(dsv3_model_open("", nullptr, &m), kInvalid, "dsv3_model_open: argument \"path\" is empty"),
      REFUSED(dsv3_verify("", nullptr), kInvalid, "\"path\" is empty"),
      REFUSED(dsv3_tokenizer_open("", &t), kInvalid, "\"path\" is empty"),
      REFUSED(dsv3_template_open("", nullptr, &chat_template), kInvalid, "\"path\" is empty"),
      REFUSED(dsv3_session_save_file(s.get(), ""), kInvalid, "\"path\" is empty"),
      REFUSED(dsv3_session_load_file(s.get(), "", nullptr, nullptr), kInvalid, "\"path\" is empty"),
  });
}

TEST_CASE("what computes a model is told when it is opened, and a wrong name of it is unsupported") {
  std::vector<std::pair<dsv3_log_level, std::string>> lines;
  auto o = sized<dsv3_model_options>();
  o.log_user = &lines;
  o.log = [](void* user, dsv3_log_level level, const char* line) {
    static_cast<decltype(lines)*>(user)->emplace_back(level, line);
  };
  o.isa = "portable";
  dsv3_model* m = nullptr;
  ok(dsv3_model_open(packed("ds3-f32").c_str(), &o, &m));
  const Model model(m);
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].first == DSV3_LOG_INFO);
  CHECK(lines[0].second == "opened " + packed("ds3-f32") + ": backend cpu, path portable, " +
                               std::to_string(info(model).file_bytes) + " bytes");
  o.isa = "sse9";
  failed(dsv3_model_open(packed("ds3-f32").c_str(), &o, &m), DSV3_UNSUPPORTED, "instruction set \"sse9\"");
  o.isa = nullptr;
  o.backend = "abacus";
  failed(dsv3_model_open(packed("ds3-f32").c_str(), &o, &m), DSV3_UNSUPPORTED, "backend \"abacus\"");
  CHECK(lines.size() == 1);
}

TEST_CASE("weights copied into memory compute the same; the copy can be stopped") {
  auto o = sized<dsv3_model_options>();
  int64_t done = 0;
  o.load = "copy";
  o.progress_user = &done;
  o.progress = [](void* user, int64_t now, int64_t total) {
    CHECK(now <= total);
    *static_cast<int64_t*>(user) = now;
    return 0;
  };
  for (const char* name :
       {"ds3-fp8", "ds3-mtp"}) {  // experts in extents of their own; tensors that name others
    const Model mapped = open(name);
    dsv3_model* m = nullptr;
    ok(dsv3_model_open(packed(name).c_str(), &o, &m));
    const Model copied(m);
    CHECK(done > info(copied).file_bytes / 2);
    const auto computed = [&](const Model& model) {
      const Session s = session(model, options(32, 1));
      ok(eval(s, {1, 2, 3, 4}));
      return logits(s, 3, info(model).vocab_size);
    };
    CHECK(computed(copied) == computed(mapped));
  }
  dsv3_model* m = nullptr;
  o.progress = [](void*, int64_t, int64_t) { return 1; };
  failed(dsv3_model_open(packed("ds3-fp8").c_str(), &o, &m), DSV3_CANCELLED, "copy ");
  o.load = "carry";
  failed(dsv3_model_open(packed("ds3-fp8").c_str(), &o, &m), kInvalid,
         "load: got \"carry\", expected map or copy");
}

TEST_CASE("the API refuses what is out of range or does not fit together") {
  const Model model = open("ds3-f32"), layer_model = open("moe-transformer"), labels = open("qwen3-moe-tag");
  const Session s = session(model, options(32, 2)), tagger = session(labels, options(32, 1));
  ok(eval(s, {1, 2}));
  ok(eval(tagger, {1, 2}));
  const int32_t vocab = info(model).vocab_size;
  dsv3_tokenizer* t = nullptr;
  ok(dsv3_tokenizer_open(kTokenizer.c_str(), &t));
  size_t size = 0;
  int32_t ids[4] = {1, 2, 3, 4}, seqs[4] = {0, 0, 0, 0};
  char text[8];
  const float* row = nullptr;
  const void* values = nullptr;
  dsv3_dtype dtype = DSV3_F32;
  int32_t n = 0, token = 0;
  double loss = 0;
  float x[64] = {}, y[64];
  const uint8_t blocked[1] = {0};
  const float* layers[1] = {x};

  const auto eval_with = [&](auto&& change) {
    auto b = sized<dsv3_batch>();
    b.n = 1;
    b.token = ids;
    change(b);
    return dsv3_eval(s.get(), &b);
  };
  const auto session_with = [&](auto&& change) {
    auto o = sized<dsv3_session_options>();
    change(o);
    dsv3_session* fresh = nullptr;
    const dsv3_status status = dsv3_session_new(model.get(), &o, &fresh);
    CHECK(fresh == nullptr);
    return status;
  };
  const auto sample_with = [&](auto&& change) {
    auto o = sized<dsv3_sampling>();
    change(o);
    return dsv3_sample(s.get(), 1, &o, 0, &token);
  };
  const auto layer_with = [&](auto&& change) {
    auto b = sized<dsv3_layer_batch>();
    b.batch = b.length = b.n_threads = 1;
    b.x = x;
    change(b);
    return dsv3_layer_eval(layer_model.get(), &b, y);
  };
  using O = dsv3_session_options&;
  using B = dsv3_batch&;
  using S = dsv3_sampling&;
  using L = dsv3_layer_batch&;
  dsv3_session* none = nullptr;
  auto layer = sized<dsv3_layer_batch>();
  layer.batch = layer.length = layer.n_threads = 1;
  layer.x = x;
  check_all({
      REFUSED(dsv3_tokenize(t, "a", 1, 64, ids, 4, &size), kInvalid, "unknown flags 64"),
      REFUSED(dsv3_detokenize(t, ids, 1, 64, text, 8, &size), kInvalid, "unknown flags 64"),
      REFUSED(session_with([](O o) { o.context = INT_MAX; }), kInvalid, "context"),
      REFUSED(session_with([](O o) { o.context = -1; }), kInvalid, "context"),
      REFUSED(session_with([](O o) { o.max_seqs = INT_MAX; }), kInvalid, "max_seqs"),
      REFUSED(session_with([](O o) { o.max_seqs = 65536, o.context = 100000; }), kInvalid, "2^31"),
      REFUSED(session_with([](O o) { o.max_batch_tokens = -5; }), kInvalid, "max_batch_tokens"),
      REFUSED(session_with([](O o) { o.max_logits = INT_MAX; }), kInvalid, "max_logits"),
      REFUSED(session_with([](O o) { o.n_threads = -1; }), kInvalid, "n_threads"),
      REFUSED(session_with([](O o) { o.attention = dsv3_attention(9); }), kInvalid, "attention"),
      REFUSED(session_with([](O o) { o.gemm = dsv3_gemm(9); }), kInvalid, "gemm"),
      REFUSED(session_with([](O o) { o.kv = dsv3_kv(9); }), kInvalid, "kv"),
      REFUSED(session_with([](O o) { o.keep = 64; }), kInvalid, "keep"),
      REFUSED(session_with([](O o) { o.mtp = 1; }), kInvalid, "mtp"),
      REFUSED(dsv3_session_new(layer_model.get(), nullptr, &none), kInvalid, "dsv3_layer_eval"),
      REFUSED(eval_with([](B b) { b.n = 0; }), kInvalid, "batch.n is 0"),
      REFUSED(eval_with([](B b) { b.n = INT_MIN; }), kInvalid, "batch.n"),
      REFUSED(eval_with([](B b) { b.phase = dsv3_phase(3); }), kInvalid, "phase"),
      REFUSED(eval_with([&](B b) { ids[0] = vocab, b.token = ids; }), kInvalid, "token 0: got id"),
      REFUSED(eval_with([&](B b) { ids[0] = -1, b.token = ids; }), kInvalid, "got id -1"),
      REFUSED(eval_with([&](B b) { ids[0] = 1, seqs[0] = 2, b.seq = seqs; }), kInvalid, "got sequence 2"),
      REFUSED(eval_with([&](B b) { seqs[0] = INT_MIN, b.seq = seqs; }), kInvalid, "got sequence -"),
      REFUSED(dsv3_logits(s.get(), 0, &row), kInvalid, "token 0"),
      REFUSED(dsv3_logits(s.get(), INT_MAX, &row), kInvalid, "token"),
      REFUSED(dsv3_logits(s.get(), INT_MIN, &row), kInvalid, "token"),
      REFUSED(dsv3_mtp_logits(s.get(), 1, &row), kInvalid, "MTP"),
      REFUSED(dsv3_kept(s.get(), "final", 0, &dtype, &values, &n), DSV3_NOT_FOUND, "final"),
      REFUSED(dsv3_seq_truncate(s.get(), 0, 3), kInvalid, "length: got 3, expected 0..2"),
      REFUSED(dsv3_seq_truncate(s.get(), 0, -1), kInvalid, "length: got -1"),
      REFUSED(dsv3_seq_truncate(s.get(), 2, 0), kInvalid, "sequence: got 2"),
      REFUSED(dsv3_seq_free(s.get(), -1), kInvalid, "dsv3_seq_free: sequence: got -1"),
      REFUSED(sample_with([](S o) { o.temperature = -1; }), kInvalid, "temperature"),
      REFUSED(sample_with([](S o) { o.top_k = -1; }), kInvalid, "top_k"),
      REFUSED(sample_with([](S o) { o.top_p = 2; }), kInvalid, "top_p"),
      REFUSED(sample_with([](S o) { o.min_p = -0.5; }), kInvalid, "min_p"),
      REFUSED(dsv3_sample(s.get(), 0, nullptr, 0, &token), kInvalid, "token 0"),
      REFUSED(dsv3_sample(tagger.get(), 1, nullptr, 0, &token), kInvalid, "language model"),
      REFUSED(layer_with([](L b) { b.n_threads = -1; }), kInvalid, "n_threads"),
      REFUSED(layer_with([](L b) { b.length = 0; }), kInvalid, "length"),
      REFUSED(layer_with([](L b) { b.length = INT_MAX; }), kInvalid, "length"),
      REFUSED(layer_with([](L b) { b.batch = -1; }), kInvalid, ""),
      REFUSED(layer_with([](L b) { b.batch = INT_MAX; }), kInvalid, "sequences"),
      REFUSED(layer_with([&](L b) { b.float_mask = x, b.bool_mask = blocked; }), kInvalid, "both masks"),
      REFUSED(dsv3_layer_eval(model.get(), &layer, y), kInvalid, ""),
      REFUSED(dsv3_load_balancing_loss(layers, 0, 1, 4, 1, nullptr, &loss), kInvalid, "0 layers"),
      REFUSED(dsv3_load_balancing_loss(layers, 1, 1, 4, 5, nullptr, &loss), kInvalid, "5 of 4"),
  });
  ids[0] = 1;
  auto too_long = sized<dsv3_batch>();
  const std::vector<int32_t> many(31, 1);
  too_long.n = 31;
  too_long.token = many.data();
  failed(dsv3_eval(s.get(), &too_long), DSV3_CONTEXT_FULL, "context of 32");
  too_long.n = INT_MAX;  // refused before more than the 31 are looked at
  failed(dsv3_eval(s.get(), &too_long), DSV3_CONTEXT_FULL, "all sequences together hold 64");
  CHECK(dsv3_seq_length(s.get(), 0) == 2);
  CHECK(dsv3_seq_length(s.get(), 2) == -1);
  CHECK(dsv3_model_label(labels.get(), INT_MAX) == nullptr);
  CHECK(dsv3_model_label(labels.get(), -1) == nullptr);
  CHECK(dsv3_is_end_token(model.get(), INT_MIN) == 0);
  CHECK(dsv3_classified_position(labels.get(), ids, INT_MIN) == -1);
  CHECK(std::string(dsv3_status_name(dsv3_status(12345))) == "unknown status");
  dsv3_tokenizer_free(t);
}

namespace {

// A struct longer than this header's, as a newer header would have it.
template <class T>
struct Newer {
  T known;
  unsigned char unknown[16];

  Newer() : known{}, unknown{} { known.struct_size = sizeof *this; }
};

// Calls with `known` as it should be; with sizes that no header has had; and with an unknown option set.
template <class T, class Call>
void check_options(const T& known, const char* name, const Call& call) {
  CAPTURE(name);
  Newer<T> newer;
  const auto with_size = [&](uint32_t size) {
    std::memcpy(&newer.known, &known, sizeof known);
    newer.known.struct_size = size;
    return call(&newer.known);
  };
  CHECK(with_size(sizeof(T)) == DSV3_OK);
  CHECK(with_size(sizeof newer) == DSV3_OK);
  for (const uint32_t size : {0u, 3u, 5000u, UINT32_MAX}) failed(with_size(size), kInvalid, "struct_size");
  newer.unknown[7] = 1;
  failed(with_size(sizeof newer), DSV3_UNSUPPORTED, "newer than this library");
}

// The same for a struct that the library fills: only the bytes that the caller has are written.
template <class T, class Call>
void check_result(const char* name, const Call& call) {
  CAPTURE(name);
  Newer<T> full, half;
  REQUIRE(call(&full.known) == DSV3_OK);
  std::memset(static_cast<void*>(&half), 0x5A, sizeof half);
  half.known.struct_size = sizeof(T) / 2;
  REQUIRE(call(&half.known) == DSV3_OK);
  CHECK(half.known.struct_size == sizeof(T) / 2);
  const auto* bytes = reinterpret_cast<const unsigned char*>(&half.known);
  CHECK(std::memcmp(bytes + 4, reinterpret_cast<const unsigned char*>(&full.known) + 4, sizeof(T) / 2 - 4) ==
        0);
  for (size_t i = sizeof(T) / 2; i < sizeof half; ++i) REQUIRE(bytes[i] == 0x5A);
  for (const uint32_t size : {0u, 3u, 5000u}) {
    half.known.struct_size = size;
    failed(call(&half.known), kInvalid, "struct_size");
  }
}

}  // namespace

TEST_CASE("option structs of older and newer headers") {
  const Model model = open("ds3-f32"), layer_model = open("moe-transformer");
  const Session s = session(model, options(32, 1));
  ok(eval(s, {1}));
  check_options(sized<dsv3_model_options>(), "model options", [](const dsv3_model_options* o) {
    dsv3_model* m = nullptr;
    const dsv3_status status = dsv3_model_open(packed("ds3-f32").c_str(), o, &m);
    ok(dsv3_model_close(m));
    return status;
  });
  check_options(options(16, 1), "session options", [&](const dsv3_session_options* o) {
    dsv3_session* fresh = nullptr;
    const dsv3_status status = dsv3_session_new(model.get(), o, &fresh);
    dsv3_session_free(fresh);
    return status;
  });
  auto plan_options = sized<dsv3_plan_options>();
  plan_options.host_GBps = 100;
  check_options(plan_options, "plan options", [&](const dsv3_plan_options* o) {
    dsv3_plan* plan = nullptr;
    const dsv3_status status = dsv3_plan_new(packed("ds3-f32").c_str(), o, &plan);
    dsv3_plan_free(plan);
    return status;
  });
  const int32_t id = 1;
  auto batch = sized<dsv3_batch>();
  batch.n = 1;
  batch.token = &id;
  check_options(batch, "batch", [&](const dsv3_batch* b) { return dsv3_eval(s.get(), b); });
  int32_t token = 0;
  check_options(sized<dsv3_sampling>(), "sampling",
                [&](const dsv3_sampling* o) { return dsv3_sample(s.get(), 0, o, 0, &token); });
  auto layer = sized<dsv3_layer_batch>();
  const std::vector<float> x(size_t(info(layer_model).hidden_size), 0.5f);
  std::vector<float> y(x.size());
  layer.batch = layer.length = layer.n_threads = 1;
  layer.x = x.data();
  check_options(layer, "layer batch",
                [&](const dsv3_layer_batch* b) { return dsv3_layer_eval(layer_model.get(), b, y.data()); });

  check_result<dsv3_model_info>("info",
                                [&](dsv3_model_info* o) { return dsv3_model_get_info(model.get(), o); });
  check_result<dsv3_memory>("memory",
                            [&](dsv3_memory* o) { return dsv3_session_memory(model.get(), nullptr, o); });
  check_result<dsv3_session_stats>("stats",
                                   [&](dsv3_session_stats* o) { return dsv3_session_get_stats(s.get(), o); });
  check_result<dsv3_sampling>("sampling",
                              [&](dsv3_sampling* o) { return dsv3_model_sampling(model.get(), o); });

  check_options(sized<dsv3_verify_options>(), "verify options",
                [](const dsv3_verify_options* o) { return dsv3_verify(packed("ds3-f32").c_str(), o); });
  dsv3_meter* meter = nullptr;
  ok(dsv3_meter_new(model.get(), 1, &meter));
  failed(dsv3_meter_measure(meter, nullptr), kInvalid, "\"ceilings\" is null");
  auto ceilings = sized<dsv3_ceilings>();
  ceilings.struct_size = 3;
  failed(dsv3_meter_measure(meter, &ceilings), kInvalid, "struct_size is 3");
  dsv3_meter_free(meter);

  // Twice the bandwidth takes half the time; cached rows are read too.
  ceilings = sized<dsv3_ceilings>();
  auto bound = sized<dsv3_bound>(), twice = bound, deep = bound;
  failed(dsv3_session_bound(nullptr, 0, &ceilings, &bound), kInvalid, "\"session\" is null");
  failed(dsv3_session_bound(s.get(), 0, nullptr, &bound), kInvalid, "\"ceilings\" is null");
  failed(dsv3_session_bound(s.get(), 0, &ceilings, nullptr), kInvalid, "\"bound\" is null");
  failed(dsv3_session_bound(s.get(), -1, &ceilings, &bound), kInvalid, "context: got -1");
  failed(dsv3_session_bound(s.get(), 0, &ceilings, &bound), kInvalid, "above 0");
  ceilings.read_GBps = 10;
  ok(dsv3_session_bound(s.get(), 0, &ceilings, &bound));
  ok(dsv3_session_bound(s.get(), 8, &ceilings, &deep));
  ceilings.read_GBps = 20;
  ok(dsv3_session_bound(s.get(), 0, &ceilings, &twice));
  CHECK(std::abs(bound.bytes - double(info(model).bytes_per_token)) <= 1);  // an expert counts in part
  CHECK(bound.seconds == doctest::Approx(bound.bytes / 10e9));
  CHECK(twice.seconds == doctest::Approx(bound.seconds / 2));
  CHECK(deep.bytes > bound.bytes);

  // An older struct ends before its last options: they have their defaults.
  auto older = options(16, 1);
  older.mtp = 1;  // this model has no such layer
  older.struct_size = offsetof(dsv3_session_options, mtp);
  dsv3_session* fresh = nullptr;
  ok(dsv3_session_new(model.get(), &older, &fresh));
  dsv3_session_free(fresh);
}

TEST_CASE("a model with live sessions is not closed, and goes on as if nothing had been asked") {
  dsv3_model* m = nullptr;
  ok(dsv3_model_open(packed("ds3-f32").c_str(), nullptr, &m));
  const auto o = options(32, 1);
  dsv3_session *a = nullptr, *b = nullptr;
  ok(dsv3_session_new(m, &o, &a));
  ok(dsv3_session_new(m, &o, &b));
  failed(dsv3_model_close(m), DSV3_BUSY, "sessions that it still has: 2");
  dsv3_session_free(a);
  const int32_t id = 1;
  auto batch = sized<dsv3_batch>();
  batch.n = 1;
  batch.token = &id;
  ok(dsv3_eval(b, &batch));
  failed(dsv3_model_close(m), DSV3_BUSY, "sessions that it still has: 1");
  const char* json = nullptr;
  ok(dsv3_model_describe(m, &json));
  ok(dsv3_eval(b, &batch));
  dsv3_session_free(b);
  ok(dsv3_model_close(m));
}

TEST_CASE("statistics of a session") {
  const Model model = open("ds3-f32");
  const Session s = session(model, options(64, 2));
  const auto stats = [&] {
    auto out = sized<dsv3_session_stats>();
    ok(dsv3_session_get_stats(s.get(), &out));
    return out;
  };
  ok(eval(s, {1, 2, 3}, {0, 0, 0}, DSV3_PHASE_AUTO));
  ok(eval(s, {1, 2}, {0, 1}, DSV3_PHASE_AUTO));
  ok(eval(s, {4}, {0}, DSV3_PHASE_AUTO));
  failed(eval(s, {-1}, {0}, DSV3_PHASE_AUTO), kInvalid, "got id -1");
  auto forced = sized<dsv3_batch>();
  const int32_t id = 5;
  forced.n = 1;
  forced.token = &id;
  forced.phase = DSV3_PHASE_PROMPT;
  ok(dsv3_eval(s.get(), &forced));
  const dsv3_session_stats got = stats();
  CHECK(got.prompt_tokens == 4);
  CHECK(got.decode_tokens == 3);
  CHECK(got.decode_evals == 2);
  CHECK(got.decode_bytes == 2 * info(model).bytes_per_token);
  CHECK(got.cached_tokens == 7);
  CHECK(got.prompt_seconds > 0);
  CHECK(got.decode_seconds > 0);
  CHECK(got.cache_bytes > 0);
  CHECK(dsv3_abi_version() == DSV3_ABI_VERSION);
}
