// Models and sessions behind the C API, made of golden checkpoints, for tests of the API.
#pragma once

#include <doctest/doctest.h>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "convert/convert.h"
#include "dsv3.h"
#include "tests/unit/temp_dir.h"

namespace api_test {

struct CloseModel {
  void operator()(dsv3_model* model) const { CHECK(dsv3_model_close(model) == DSV3_OK); }
};
struct FreeSession {
  void operator()(dsv3_session* session) const { dsv3_session_free(session); }
};
using Model = std::unique_ptr<dsv3_model, CloseModel>;
using Session = std::unique_ptr<dsv3_session, FreeSession>;

// The packed file of a golden case, converted at the first need.
inline const std::string& packed(const std::string& name) {
  static const TempDir dir;
  static std::map<std::string, std::string> paths;
  std::string& path = paths[name];
  if (!path.empty()) return path;
  path = dir / (name + ".dsv3");
  const auto done = dsv3::convert({DSV3_SOURCE_DIR "/tests/golden/cases/" + name, path, {}, false});
  REQUIRE_MESSAGE(done.ok(), done.status().message());
  return path;
}

inline void ok(dsv3_status status) {
  REQUIRE_MESSAGE(status == DSV3_OK, dsv3_last_error());
}

// The call failed with this status, and its message holds the part.
inline void failed(dsv3_status got, dsv3_status expected, const std::string& part) {
  const std::string message = dsv3_last_error();
  CHECK_MESSAGE(got == expected, message);
  CHECK_MESSAGE(message.find(part) != std::string::npos, message, " does not say: ", part);
}

inline Model open(const std::string& name) {
  dsv3_model* model = nullptr;
  ok(dsv3_model_open(packed(name).c_str(), nullptr, &model));
  return Model(model);
}

inline dsv3_session_options options(int32_t context, int32_t max_seqs) {
  dsv3_session_options o = {};
  o.struct_size = sizeof o;
  o.context = context;
  o.max_seqs = max_seqs;
  o.n_threads = 1;
  o.attention = DSV3_ATTENTION_ABSORBED;  // bits must not depend on the batch
  o.kv = DSV3_KV_F32;
  return o;
}

inline Session session(const Model& model, const dsv3_session_options& o) {
  dsv3_session* session = nullptr;
  ok(dsv3_session_new(model.get(), &o, &session));
  return Session(session);
}

inline dsv3_model_info info(const Model& model) {
  dsv3_model_info info = {};
  info.struct_size = sizeof info;
  ok(dsv3_model_get_info(model.get(), &info));
  return info;
}

inline dsv3_status eval(const Session& session, const std::vector<int32_t>& ids,
                        const std::vector<int32_t>& seqs, dsv3_phase phase = DSV3_PHASE_PROMPT) {
  dsv3_batch batch = {};
  batch.struct_size = sizeof batch;
  batch.n = int32_t(ids.size());
  batch.token = ids.data();
  batch.seq = seqs.data();
  batch.phase = phase;
  return dsv3_eval(session.get(), &batch);
}
inline dsv3_status eval(const Session& session, const std::vector<int32_t>& ids, int32_t seq = 0) {
  return eval(session, ids, std::vector<int32_t>(ids.size(), seq));
}

// Row of logits of token i of the last batch.
inline std::vector<float> logits(const Session& session, int32_t i, int32_t n) {
  const float* row = nullptr;
  ok(dsv3_logits(session.get(), i, &row));
  return {row, row + n};
}

inline std::vector<int32_t> tokens(const Session& session, int32_t seq) {
  const int32_t* ids = dsv3_seq_tokens(session.get(), seq);
  REQUIRE(ids);
  return {ids, ids + dsv3_seq_length(session.get(), seq)};
}

inline std::string saved(const Session& session) {
  size_t n = 0;
  ok(dsv3_session_save(session.get(), nullptr, 0, &n));
  std::string bytes(n, '\xA5');
  ok(dsv3_session_save(session.get(), bytes.data(), n, &n));
  REQUIRE(n == bytes.size());
  return bytes;
}

}  // namespace api_test
