// Every model's sequences through the C API: the cutting into calls, the mates in a batch, truncation and reuse change
// no bit of any token's logits.
#include <doctest/doctest.h>
#include <cstring>
#include <filesystem>
#include <memory>

#include "convert/convert.h"
#include "dsv3.h"
#include "ggml-lite/json.h"
#include "tests/unit/support.h"
#include "tests/unit/temp_dir.h"

namespace {

using test::Rng;
using Logits = std::vector<std::vector<float>>;  // by position

struct Close {
  void operator()(dsv3_model* m) const { dsv3_model_close(m); }
  void operator()(dsv3_session* s) const { dsv3_session_free(s); }
};
using Model = std::unique_ptr<dsv3_model, Close>;
using Session = std::unique_ptr<dsv3_session, Close>;

void good(dsv3_status status) {
  REQUIRE_MESSAGE(status == DSV3_OK, std::string(dsv3_last_error()));
}

// The golden checkpoints that are models of token sequences, heads included.
std::vector<std::string> cases() {
  std::vector<std::string> out;
  for (const auto& at : std::filesystem::directory_iterator(DSV3_SOURCE_DIR "/tests/golden/cases")) {
    const std::string config = slurp(at.path() / "config.json");
    const auto json = lite::Json::parse(config, "config.json");
    if (json.ok() && json->find("vocab_size")) out.push_back(at.path().filename());
  }
  std::sort(out.begin(), out.end());
  REQUIRE(out.size() >= 15);
  return out;
}

constexpr int32_t kSequences = 4, kContext = 126;

struct Setup {
  std::string name;
  Model model;
  dsv3_model_info info = {};
  dsv3_session_options options = {};

  Setup(const TempDir& dir, const std::string& of) : name(of) {
    const std::string path = dir / (of + ".dsv3");
    const auto summary = dsv3::convert({DSV3_SOURCE_DIR "/tests/golden/cases/" + of, path, {}, false});
    REQUIRE_MESSAGE(summary.ok(), summary.status().message());
    dsv3_model* opened = nullptr;
    good(dsv3_model_open(path.c_str(), nullptr, &opened));
    model.reset(opened);
    info.struct_size = sizeof info;
    good(dsv3_model_get_info(opened, &info));
    options.struct_size = sizeof options;
    options.context = kContext;
    options.max_seqs = kSequences;
    options.max_batch_tokens = 37;  // longer calls are cut
    options.max_logits = kSequences * kContext;
    options.n_threads = 2;
    options.mtp = info.n_mtp_layers > 0;
    options.attention = DSV3_ATTENTION_ABSORBED;
    options.kv = DSV3_KV_F32;
  }
  Session session() const {
    dsv3_session* s = nullptr;
    good(dsv3_session_new(model.get(), &options, &s));
    return Session(s);
  }
  std::vector<int32_t> ids(Rng& rng, int64_t n) const {
    std::vector<int32_t> out;
    for (int64_t i = 0; i < n; ++i) out.push_back(int32_t(rng.below(info.vocab_size)));
    return out;
  }
  // Evaluates tokens of several sequences in one call; appends each token's logits, MTP logits behind them, to its
  // sequence's.
  void eval(const Session& s, const std::vector<int32_t>& token, const std::vector<int32_t>& seq,
            std::vector<Logits>* out) const {
    const std::vector<uint8_t> want(token.size(), 1);
    dsv3_batch batch = {};
    batch.struct_size = sizeof batch;
    batch.n = int32_t(token.size());
    batch.token = token.data();
    batch.seq = seq.data();
    batch.want_logits = want.data();
    batch.phase = DSV3_PHASE_PROMPT;
    good(dsv3_eval(s.get(), &batch));
    for (int32_t i = 0; i < batch.n; ++i) {
      const float* logits = nullptr;
      good(dsv3_logits(s.get(), i, &logits));
      Logits& rows = (*out)[size_t(seq[size_t(i)])];
      rows.emplace_back(logits, logits + info.n_outputs);
      if (options.mtp && rows.size() > 1) {
        good(dsv3_mtp_logits(s.get(), i, &logits));
        rows.back().insert(rows.back().end(), logits, logits + info.vocab_size);
      }
    }
  }
  // A sequence by itself in one call.
  Logits alone(const std::vector<int32_t>& ids) const {
    std::vector<Logits> out(1);
    eval(session(), ids, std::vector<int32_t>(ids.size(), 0), &out);
    return out[0];
  }
};

void same_bits(const Logits& got, const Logits& want) {
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    REQUIRE(got[i].size() == want[i].size());
    if (std::memcmp(got[i].data(), want[i].data(), got[i].size() * sizeof(float)) != 0)
      FAIL("position ", i, " differs");
  }
}

template <class Test>
void every_case(uint64_t stream, const Test& test) {
  const TempDir dir;
  for (const std::string& name : cases()) {
    CAPTURE(name);
    Setup setup(dir, name);
    for (const dsv3_attention form : {DSV3_ATTENTION_ABSORBED, DSV3_ATTENTION_EXPANDED}) {
      setup.options.attention = form;
      Rng rng(stream + std::hash<std::string>()(name));
      test(setup, rng);
      if (std::string(setup.info.architecture).starts_with("deepseek") == false) break;  // one form only
    }
  }
}

}  // namespace

TEST_CASE("sequences: any cutting, any order and any mates give the logits of each sequence alone") {
  every_case(1, [](const Setup& setup, Rng& rng) {
    std::vector<std::vector<int32_t>> ids;
    std::vector<Logits> want;
    for (int32_t s = 0; s < kSequences; ++s) {
      ids.push_back(setup.ids(rng, rng.between(1, s == 0 ? 80 : 25)));  // beyond a block of cached rows
      want.push_back(setup.alone(ids.back()));
    }
    const Session session = setup.session();
    std::vector<Logits> got(kSequences);
    std::vector<size_t> next(kSequences, 0);
    for (;;) {
      std::vector<int32_t> token, seq, left;
      for (int64_t n = rng.between(1, 60); n > 0; --n) {
        left.clear();
        for (int32_t s = 0; s < kSequences; ++s)
          if (next[size_t(s)] < ids[size_t(s)].size()) left.push_back(s);
        if (left.empty()) break;
        const size_t s = size_t(left[size_t(rng.below(int64_t(left.size())))]);
        token.push_back(ids[s][next[s]++]);
        seq.push_back(int32_t(s));
      }
      if (token.empty()) break;
      setup.eval(session, token, seq, &got);
    }
    for (int32_t s = 0; s < kSequences; ++s) same_bits(got[size_t(s)], want[size_t(s)]);
  });
}

TEST_CASE("sequences: truncated and continued is as if nothing else had been there") {
  every_case(2, [](const Setup& setup, Rng& rng) {
    const std::vector<int32_t> ids = setup.ids(rng, 75);
    const Logits want = setup.alone(ids);
    const Session session = setup.session();
    std::vector<Logits> got(1);
    const auto feed = [&](const std::vector<int32_t>& tokens) {
      if (!tokens.empty()) setup.eval(session, tokens, std::vector<int32_t>(tokens.size(), 0), &got);
    };
    for (const int32_t keep : {0, 1, 63, 64, 65, 40, 74, 75}) {
      CAPTURE(keep);
      // As far as it goes right, then something else, which is forgotten again.
      const int32_t length = dsv3_seq_length(session.get(), 0);
      const int32_t common = std::min(length, keep);
      good(dsv3_seq_truncate(session.get(), 0, common));
      got[0].resize(size_t(common));
      feed({ids.begin() + common, ids.begin() + keep});
      feed(setup.ids(rng, rng.between(1, 50)));
      good(dsv3_seq_truncate(session.get(), 0, keep));
      got[0].resize(size_t(keep));
      feed({ids.begin() + keep, ids.end()});
      same_bits(got[0], want);
    }
    CHECK(dsv3_seq_truncate(session.get(), 0, 76) == DSV3_INVALID_ARGUMENT);
    CHECK(dsv3_seq_truncate(session.get(), 0, -1) == DSV3_INVALID_ARGUMENT);
    CHECK(dsv3_seq_truncate(session.get(), kSequences, 0) == DSV3_INVALID_ARGUMENT);
    CHECK(dsv3_seq_length(session.get(), 0) == 75);
  });
}

TEST_CASE("sequences: rows that one gives back serve another") {
  every_case(3, [](const Setup& setup, Rng& rng) {
    const Session session = setup.session();
    std::vector<Logits> got(kSequences);
    for (int round = 0; round < 4; ++round) {
      const size_t s = size_t(rng.below(kSequences));
      const std::vector<int32_t> ids = setup.ids(rng, rng.between(1, 70));
      good(dsv3_seq_free(session.get(), int32_t(s)));
      got[s].clear();
      setup.eval(session, ids, std::vector<int32_t>(ids.size(), int32_t(s)), &got);
      same_bits(got[s], setup.alone(ids));
    }
  });
}

TEST_CASE("sequences: a call that fails changes nothing") {
  every_case(4, [](const Setup& setup, Rng& rng) {
    const std::vector<int32_t> ids = setup.ids(rng, 30);
    const Session session = setup.session();
    std::vector<Logits> got(kSequences);
    const std::vector<int32_t> first(ids.begin(), ids.begin() + 20), rest(ids.begin() + 20, ids.end());
    setup.eval(session, first, std::vector<int32_t>(first.size(), 0), &got);
    const auto refused = [&](const std::vector<int32_t>& token, int32_t seq, dsv3_status status) {
      const std::vector<int32_t> seqs(token.size(), seq);
      dsv3_batch batch = {};
      batch.struct_size = sizeof batch;
      batch.n = int32_t(token.size());
      batch.token = token.data();
      batch.seq = seqs.data();
      CHECK(dsv3_eval(session.get(), &batch) == status);
      CHECK(dsv3_seq_length(session.get(), 0) == 20);
    };
    refused({1, setup.info.vocab_size}, 0, DSV3_INVALID_ARGUMENT);
    refused({1, -1}, 0, DSV3_INVALID_ARGUMENT);
    refused({1}, kSequences, DSV3_INVALID_ARGUMENT);
    refused(setup.ids(rng, kContext - 19), 0, DSV3_CONTEXT_FULL);
    setup.eval(session, rest, std::vector<int32_t>(rest.size(), 0), &got);
    same_bits(got[0], setup.alone(ids));
  });
}

TEST_CASE("sequences: the cache holds what each layer needs, and no more") {
  const TempDir dir;
  for (const std::string& name : cases()) {
    CAPTURE(name);
    const Setup setup(dir, name);
    const char* description = nullptr;
    good(dsv3_model_describe(setup.model.get(), &description));
    const auto json = lite::Json::parse(description, "description");
    REQUIRE(json.ok());
    int64_t values = setup.options.mtp ? setup.info.hidden_size : 0;  // of the final hidden state
    for (const lite::Json& layer : *json->find("layers")->array())
      values += *layer.find("cached_values")->integer();
    dsv3_memory memory = {};
    memory.struct_size = sizeof memory;
    good(dsv3_session_memory(setup.model.get(), &setup.options, &memory));
    const int64_t rows = kSequences * lite::round_up(kContext, 64);
    CHECK(memory.cache == rows * values * 4 + kSequences * kContext * 4);  // the ids, too
  }
}
