// Sessions saved and loaded: they go on with the same bits, and bytes that are not theirs are refused.
#include <sys/stat.h>
#include <cstddef>
#include <cstring>

#include "ggml-lite/hash.h"
#include "tests/unit/api_model.h"
#include "tests/unit/support.h"

using namespace api_test;

namespace {

struct Variant {
  const char* model;
  dsv3_attention attention;
  dsv3_gemm gemm;
  dsv3_kv kv;
  int mtp;
};

dsv3_status load(const Session& s, const std::string& bytes) {
  return dsv3_session_load(s.get(), bytes.data(), bytes.size());
}

// The bytes with a value at an offset replaced and the checksum made to fit.
template <class T>
std::string forged(std::string bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  lite::Hash hash;
  hash.add(bytes.data(), bytes.size() - 8);
  const uint64_t checksum = hash.digest64();
  std::memcpy(bytes.data() + bytes.size() - 8, &checksum, 8);
  return bytes;
}

// Offsets of docs/format.md.
constexpr size_t kVersion = 8, kSequences = 12, kBytes = 16, kModel = 24, kAttention = 56, kGemm = 60,
                 kKv = 64, kMtp = 68, kExact = 72, kPath = 76, kRowBytes = 88, kLengths = 96;

}  // namespace

TEST_CASE("save, load, go on: the same bits, in a session of another shape") {
  const Variant variants[] = {
      {"ds3-mtp", DSV3_ATTENTION_ABSORBED, DSV3_GEMM_F32, DSV3_KV_F32, 1},
      {"ds3-fp8", DSV3_ATTENTION_EXPANDED, DSV3_GEMM_FP8, DSV3_KV_BF16, 0},
      {"qwen3-moe", DSV3_ATTENTION_ABSORBED, DSV3_GEMM_F32, DSV3_KV_BF16, 0},
      {"mixtral-window", DSV3_ATTENTION_ABSORBED, DSV3_GEMM_F32, DSV3_KV_F32, 0},
  };
  for (const Variant& v : variants) {
    CAPTURE(v.model);
    const Model model = open(v.model);
    const int32_t vocab = info(model).vocab_size;
    test::Rng rng(610);
    const auto random_ids = [&](int32_t n) {
      std::vector<int32_t> ids;
      for (int32_t i = 0; i < n; ++i) ids.push_back(int32_t(rng.below(vocab)));
      return ids;
    };
    dsv3_session_options o = options(150, 4);
    o.attention = v.attention;
    o.gemm = v.gemm;
    o.kv = v.kv;
    o.mtp = v.mtp;
    const Session first = session(model, o);
    ok(eval(first, random_ids(70), 0));
    ok(eval(first, random_ids(129), 2));
    ok(dsv3_seq_truncate(first.get(), 2, 127));
    const std::string bytes = saved(first);

    o.context = 300;
    o.max_seqs = 3;
    o.max_batch_tokens = 7;
    o.n_threads = 2;
    const Session second = session(model, o);
    ok(eval(second, random_ids(90), 1));  // to be forgotten
    ok(load(second, bytes));
    for (int32_t seq = 0; seq < 3; ++seq) CHECK(tokens(second, seq) == tokens(first, seq));
    const float* row = nullptr;
    failed(dsv3_logits(second.get(), 0, &row), DSV3_INVALID_ARGUMENT, "token 0");
    CHECK(saved(second) == bytes);
    for (int i = 0; i < 10; ++i) {
      const std::vector<int32_t> ids = random_ids(3);
      for (const Session* s : {&first, &second}) ok(eval(*s, ids, {0, 2, 1}));
      for (int32_t j = 0; j < 3; ++j) REQUIRE(logits(first, j, vocab) == logits(second, j, vocab));
      if (v.mtp) {
        const float* expected = nullptr;
        ok(dsv3_mtp_logits(first.get(), 0, &expected));
        ok(dsv3_mtp_logits(second.get(), 0, &row));
        CHECK(std::memcmp(row, expected, size_t(vocab) * sizeof(float)) == 0);
      }
    }
    // Logits that were not saved: the last token once more.
    const int32_t last = tokens(first, 0).back(), length = dsv3_seq_length(first.get(), 0);
    ok(load(second, saved(first)));
    ok(dsv3_seq_truncate(second.get(), 0, length - 1));
    const std::vector<float> before = logits(first, 0, vocab);
    ok(eval(second, {last}));
    CHECK(logits(second, 0, vocab) == before);
  }
}

TEST_CASE("a saved session is bound to what computed it") {
  const auto on = [](const char* backend, const char* isa) {
    dsv3_model_options o = {};
    o.struct_size = sizeof o;
    o.backend = backend;
    o.isa = isa;
    dsv3_model* model = nullptr;
    ok(dsv3_model_open(packed("ds3-f32").c_str(), &o, &model));
    return Model(model);
  };
  const Model portable = on("cpu", "portable"), ref = on("ref", nullptr);
  dsv3_session_options exact = options(64, 1);
  exact.exact = 1;
  const Session a = session(portable, options(64, 1)), b = session(portable, exact),
                c = session(ref, options(64, 1)), d = session(ref, exact);
  for (const Session* s : {&a, &b, &c, &d}) ok(eval(*s, {1, 2, 3}));
  const auto refused = [](const Session& from, const Session& into, const std::string& part) {
    const std::string before = saved(into);
    failed(load(into, saved(from)), DSV3_INVALID_ARGUMENT, part);
    CHECK(saved(into) == before);
  };
  refused(a, b, "option exact off, and this session has on; make the session with the same");
  refused(b, a, "option exact on");
  refused(b, c, "computed on path portable, and this model on ref");
  refused(c, b, "computed on path ref, and this model on portable");
  ok(load(c, saved(d)));  // the reference is exact in any case
  dsv3_model* model = nullptr;
  dsv3_model_options avx2 = {};
  avx2.struct_size = sizeof avx2;
  avx2.isa = "avx2";
  if (dsv3_model_open(packed("ds3-f32").c_str(), &avx2, &model) == DSV3_UNSUPPORTED) return;
  const Model other(model);
  const Session e = session(other, options(64, 1));
  refused(a, e, "computed on path portable, and this model on avx2");
}

TEST_CASE("an empty session is saved and loaded; a small buffer is left alone") {
  const Model model = open("ds3-f32");
  const Session s = session(model, options(64, 2));
  const std::string empty = saved(s);
  ok(eval(s, {1, 2, 3}));
  std::string small(40, 'x');
  size_t n = 0;
  ok(dsv3_session_save(s.get(), small.data(), small.size(), &n));
  CHECK(small == std::string(40, 'x'));
  CHECK(n > empty.size());
  ok(load(s, empty));
  CHECK(dsv3_seq_length(s.get(), 0) == 0);
  CHECK(saved(s) == empty);
}

TEST_CASE("saved sessions: files") {
  const Model model = open("ds3-f32"), other = open("ds2-lite");
  const Session s = session(model, options(64, 1)), t = session(model, options(64, 1));
  ok(eval(s, {1, 2, 3}));
  TempDir dir;
  const std::string path = dir / "s";
  ok(dsv3_session_save_file(s.get(), path.c_str()));
  CHECK(slurp(path) == saved(s));
  struct stat about;
  REQUIRE(stat(path.c_str(), &about) == 0);
  CHECK((about.st_mode & 0777) == 0600);
  ok(dsv3_session_load_file(t.get(), path.c_str(), nullptr, nullptr));
  CHECK(tokens(t, 0) == tokens(s, 0));

  // Over a saved session and an empty file, and over nothing else.
  ok(eval(s, {4}));
  ok(dsv3_session_save_file(s.get(), path.c_str()));
  CHECK(slurp(path) == saved(s));
  spill(dir / "empty", "");
  ok(dsv3_session_save_file(s.get(), (dir / "empty").c_str()));
  spill(dir / "mine", "my letters");
  failed(dsv3_session_save_file(s.get(), (dir / "mine").c_str()), DSV3_INVALID_ARGUMENT, "no saved session");
  CHECK(slurp(dir / "mine") == "my letters");
  failed(dsv3_session_save_file(s.get(), dir.path().c_str()), DSV3_INVALID_ARGUMENT, "a folder");
  std::filesystem::create_symlink(path, dir / "link");
  failed(dsv3_session_save_file(s.get(), (dir / "link").c_str()), DSV3_INVALID_ARGUMENT, "is not a file");
  failed(dsv3_session_save_file(s.get(), (dir / "absent/s").c_str()), DSV3_NOT_FOUND, "absent/s");
  failed(dsv3_session_save_file(s.get(), "/dev/null"), DSV3_INVALID_ARGUMENT, "/dev/null");
  CHECK(dir.names().size() == 4);  // no part of a file is left

  // Refused: what is loaded stays as it was.
  const auto refused = [&](const Session& into, const std::string& from, dsv3_status status,
                           const std::string& part) {
    failed(dsv3_session_load_file(into.get(), from.c_str(), nullptr, nullptr), status, part);
    CHECK(tokens(into, 0) == std::vector<int32_t>{1, 2, 3});
  };
  refused(t, dir / "absent", DSV3_NOT_FOUND, "absent");
  refused(t, dir.path(), DSV3_INVALID_ARGUMENT, "folder");
  refused(t, dir / "mine", DSV3_CORRUPT, "too short");
  refused(t, packed("ds3-f32"), DSV3_CORRUPT, "does not begin like a saved session");
  const Session of_other = session(other, options(64, 1));
  ok(eval(of_other, {1, 2, 3}));
  refused(of_other, path, DSV3_INVALID_ARGUMENT, std::string("this one's is ") + info(other).id);
  int64_t told[2] = {-1, -1};
  const auto stop = [](void* user, int64_t done, int64_t total) {
    static_cast<int64_t*>(user)[0] = done;
    static_cast<int64_t*>(user)[1] = total;
    return 1;
  };
  failed(dsv3_session_load_file(t.get(), path.c_str(), stop, told), DSV3_CANCELLED, "progress callback");
  CHECK(told[0] == told[1]);  // a small file is one piece
  CHECK(told[1] == int64_t(slurp(path).size()) - 8);
  CHECK(tokens(t, 0) == std::vector<int32_t>{1, 2, 3});
}

TEST_CASE("saved sessions: every cut, every flipped byte and every forged field is refused") {
  const Model model = open("ds3-mtp");
  const Session s = session(model, options(80, 2)), t = session(model, options(80, 2));
  ok(eval(s, {1, 2, 3}, {0, 1, 1}));
  ok(eval(t, {9, 8, 7}));
  const std::string good = saved(s), kept = saved(t);
  const auto refused = [&](const std::string& bytes, dsv3_status status, const std::string& part) {
    failed(load(t, bytes), status, part);
    REQUIRE(saved(t) == kept);
  };
  for (size_t n = 0; n < good.size(); ++n) {
    REQUIRE(load(t, good.substr(0, n)) == DSV3_CORRUPT);
    std::string bytes = good;
    bytes[n] = char(bytes[n] ^ 0x10);
    REQUIRE(load(t, bytes) != DSV3_OK);
  }
  refused(good + '\0', DSV3_CORRUPT, "that it was saved with");
  std::string bytes = good;
  bytes[good.size() / 2] ^= 1;
  refused(bytes, DSV3_CORRUPT, "checksum");

  refused(forged<uint32_t>(good, kVersion, 1), DSV3_UNSUPPORTED, "got version 1, expected 2");
  refused(forged<uint64_t>(good, kBytes, good.size() + 1), DSV3_CORRUPT, "that it was saved with");
  refused(forged<char>(good, kModel, '\n'), DSV3_INVALID_ARGUMENT, "the model with id ?");
  refused(forged<uint32_t>(good, kAttention, 2), DSV3_INVALID_ARGUMENT, "option attention expanded");
  refused(forged<uint32_t>(good, kGemm, 7), DSV3_INVALID_ARGUMENT, "option gemm ?, and this session has f32");
  refused(forged<uint32_t>(good, kKv, 1), DSV3_INVALID_ARGUMENT, "option kv bf16");
  refused(forged<uint32_t>(good, kMtp, 1), DSV3_INVALID_ARGUMENT, "option mtp on");
  refused(forged<uint32_t>(good, kExact, 1), DSV3_INVALID_ARGUMENT, "option exact on");
  refused(forged<char>(good, kPath, '\n'), DSV3_INVALID_ARGUMENT, "computed on path ?");
  refused(forged<char>(good, kPath + 11, 'x'), DSV3_INVALID_ARGUMENT, "computed on path ");
  refused(forged<uint64_t>(good, kRowBytes, 0), DSV3_CORRUPT, "0 bytes a token");
  refused(forged<uint32_t>(good, kSequences, 3), DSV3_INVALID_ARGUMENT, "larger max_seqs");
  refused(forged<uint32_t>(good, kSequences, 0xFFFFFFFF), DSV3_INVALID_ARGUMENT, "4294967295 sequences");
  refused(forged<uint32_t>(good, kSequences, 1), DSV3_CORRUPT, "for its 1 tokens");
  refused(forged<uint32_t>(good, kSequences, 0), DSV3_CORRUPT, "for its 0 tokens");
  refused(forged<int32_t>(good, kLengths, -1), DSV3_CORRUPT, "length of -1");
  refused(forged<int32_t>(good, kLengths, INT32_MAX), DSV3_INVALID_ARGUMENT, "a context of 80");
  refused(forged<int32_t>(good, kLengths, 2), DSV3_CORRUPT, "for its 4 tokens");
  refused(forged<int32_t>(good, kLengths + 8, -1), DSV3_CORRUPT, "token id -1");
  refused(forged<int32_t>(good, kLengths + 16, 200), DSV3_CORRUPT, "token id 200, expected 0..199");
  ok(load(t, forged<int32_t>(good, kLengths + 16, 199)));  // the forger's own doing
  ok(load(t, good));
  CHECK(saved(t) == good);
}
