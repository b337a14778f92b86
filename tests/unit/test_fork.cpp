// Forked sequences: block tables that share blocks, and through the API forks that go separate ways.
#include <algorithm>
#include <set>

#include "ggml-lite/kv.h"
#include "tests/unit/api_model.h"
#include "tests/unit/support.h"

using namespace api_test;
using lite::kBlockRows;

TEST_CASE("sequences: forks, growth and truncation at random keep every sequence's own content") {
  test::Rng rng(600);
  for (const auto& size : std::vector<std::pair<int32_t, int64_t>>{{2, 64}, {2, 65}, {3, 200}, {5, 1000}}) {
    const auto& n = size.first;
    const auto& context = size.second;
    CAPTURE(n);
    CAPTURE(context);
    lite::Sequences kv(n, context);
    std::vector<int> rows(size_t(kv.pool_rows()), -1);  // what the cache holds
    std::vector<std::vector<int>> expected(n);
    int next = 0, copies = 0;
    for (int step = 0; step < 2000; ++step) {
      const int32_t s = int32_t(rng.below(n));
      std::vector<int>& own = expected[s];
      const int64_t length = int64_t(own.size());
      if (const int64_t what = rng.below(4); what == 0) {
        const int32_t to = int32_t((s + rng.between(1, n - 1)) % n);
        const int64_t shared = rng.between(0, length);
        kv.fork(s, to, shared);
        expected[to].assign(own.begin(), own.begin() + shared);
      } else if (what == 1) {
        own.resize(size_t(rng.between(0, length)));
        kv.resize(s, int64_t(own.size()));
      } else if (const int64_t grown = rng.between(length, context); grown > length) {
        if (const auto copy = kv.own_last_block(s)) {
          std::copy_n(&rows[copy->from * kBlockRows], kBlockRows, &rows[copy->to * kBlockRows]);
          ++copies;
        }
        kv.resize(s, grown);
        for (int64_t p = length; p < grown; ++p) own.push_back(rows[kv.row(s, p)] = next++);
      }
      std::set<int32_t> blocks;
      for (int32_t q = 0; q < n; ++q) {
        std::vector<int> content;
        for (int64_t p = 0; p < kv.length(q); ++p) content.push_back(rows[kv.row(q, p)]);
        REQUIRE(content == expected[q]);
        for (int64_t i = 0; i < lite::ceil_div(kv.length(q), kBlockRows); ++i)
          blocks.insert(kv.block_table(q)[i]);
      }
      REQUIRE(kv.blocks_in_use() == int64_t(blocks.size()));
    }
    CHECK(copies > 50);
  }
}

namespace {

// Both tokens at once, to two sequences, and the bits of all their logits.
struct Step {
  std::vector<float> a, b;
};

Step step(const Session& s, int32_t seq_a, int32_t id_a, int32_t seq_b, int32_t id_b, int32_t n, bool mtp) {
  ok(eval(s, {id_a, id_b}, {seq_a, seq_b}));
  Step out{logits(s, 0, n), logits(s, 1, n)};
  for (int32_t i = 0; mtp && i < 2; ++i) {
    const float* row = nullptr;
    ok(dsv3_mtp_logits(s.get(), i, &row));
    (i ? out.b : out.a).insert((i ? out.b : out.a).end(), row, row + n);
  }
  return out;
}

}  // namespace

TEST_CASE("dsv3_seq_fork: two that go separate ways equal two that never met") {
  for (const auto& tested : std::vector<std::pair<std::string, bool>>{
           {"ds3-mtp", true}, {"ds3-mtp", false}, {"mixtral-window", false}}) {
    const auto& name = tested.first;
    const auto& mtp = tested.second;
    const Model model = open(name);
    const int32_t vocab = info(model).vocab_size;
    for (const int32_t shared : {1, 40, 64, 65, 128}) {
      CAPTURE(name);
      CAPTURE(mtp);
      CAPTURE(shared);
      test::Rng rng(601);
      const auto random_ids = [&](int32_t n) {
        std::vector<int32_t> ids;
        for (int32_t i = 0; i < n; ++i) ids.push_back(int32_t(rng.below(vocab)));
        return ids;
      };
      dsv3_session_options o = options(160, 4);
      o.mtp = mtp;
      const Session forked = session(model, o), separate = session(model, o);
      // The forked one grows beyond the fork, and what it grew is forgotten again.
      const std::vector<int32_t> prompt = random_ids(shared), more = random_ids(9);
      ok(eval(forked, prompt, 2));
      ok(eval(forked, more, 2));
      ok(eval(forked, random_ids(70), 1));  // to be forgotten by the fork
      ok(dsv3_seq_fork(forked.get(), 2, 1, shared));
      CHECK(dsv3_seq_length(forked.get(), 1) == shared);
      CHECK(tokens(forked, 1) == prompt);
      ok(dsv3_seq_truncate(forked.get(), 2, shared));
      for (const int32_t seq : {2, 1}) ok(eval(separate, prompt, seq));
      for (int i = 0; i < 20; ++i) {
        const std::vector<int32_t> ids = random_ids(2);
        const Step got = step(forked, 2, ids[0], 1, ids[1], vocab, mtp);
        const Step expected = step(separate, 2, ids[0], 1, ids[1], vocab, mtp);
        REQUIRE(got.a == expected.a);
        REQUIRE(got.b == expected.b);
      }
      // The one forked from goes; the fork of the fork stays.
      ok(dsv3_seq_fork(forked.get(), 1, 0, shared + 5));
      ok(dsv3_seq_free(forked.get(), 2));
      ok(eval(forked, random_ids(80), 3));
      ok(dsv3_seq_fork(separate.get(), 1, 0, shared + 5));
      const Step got = step(forked, 0, 3, 1, 4, vocab, mtp),
                 expected = step(separate, 0, 3, 1, 4, vocab, mtp);
      CHECK(got.a == expected.a);
      CHECK(got.b == expected.b);
      CHECK(tokens(forked, 0) == tokens(separate, 0));
    }
  }
}

TEST_CASE("a fork takes no memory until it is written to, and a failed evaluation leaves it alone") {
  const Model model = open("ds3-f32");
  const Session s = session(model, options(256, 3));
  const auto cache = [&] {
    dsv3_session_stats stats = {};
    stats.struct_size = sizeof stats;
    ok(dsv3_session_get_stats(s.get(), &stats));
    return stats;
  };
  ok(eval(s, std::vector<int32_t>(100, 5)));
  const int64_t block = cache().cache_bytes / 2;
  CHECK(cache().cached_tokens == 100);
  ok(dsv3_seq_fork(s.get(), 0, 1, 100));
  ok(dsv3_seq_fork(s.get(), 1, 2, 64));
  CHECK(cache().cache_bytes == 2 * block);
  CHECK(cache().cached_tokens == 264);
  ok(eval(s, {7}, 2));  // the shared block is full: a new one
  CHECK(cache().cache_bytes == 3 * block);
  dsv3_cancel(s.get());
  failed(eval(s, {7}, 1), DSV3_CANCELLED, "cancelled");
  CHECK(dsv3_seq_length(s.get(), 1) == 100);
  CHECK(tokens(s, 1) == std::vector<int32_t>(100, 5));
  for (int32_t seq = 0; seq < 3; ++seq) ok(dsv3_seq_free(s.get(), seq));
  CHECK(cache().cache_bytes == 0);

  failed(dsv3_seq_fork(s.get(), 0, 0, 0), DSV3_INVALID_ARGUMENT, "both sequence 0");
  failed(dsv3_seq_fork(s.get(), 0, 1, 1), DSV3_INVALID_ARGUMENT, "length: got 1, expected 0..0");
  failed(dsv3_seq_fork(s.get(), 0, 1, -1), DSV3_INVALID_ARGUMENT, "length: got -1");
  failed(dsv3_seq_fork(s.get(), 3, 1, 0), DSV3_INVALID_ARGUMENT, "from: got 3, expected 0..2");
  failed(dsv3_seq_fork(s.get(), 0, -1, 0), DSV3_INVALID_ARGUMENT, "to: got -1, expected 0..2");
  failed(dsv3_seq_fork(nullptr, 0, 1, 0), DSV3_INVALID_ARGUMENT, "null");
}
