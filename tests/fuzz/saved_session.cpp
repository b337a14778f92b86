// model/session_state: a saved session, for a small model. The harness puts right what no random change would hit: the
// header but for the number of sequences (bit 0 of the first byte), the checksum (bit 1).
#include <cstring>

#include "convert/random.h"
#include "dsv3.h"
#include "ggml-lite/hash.h"
#include "tests/fuzz/fuzz.h"

namespace {

constexpr size_t kHeader = 80, kSequences = 12, kBytes = 16;  // docs/format.md
constexpr int32_t kMaxSeqs = 3;

void ok(dsv3_status status) {
  if (status != DSV3_OK) std::fprintf(stderr, "%s\n", dsv3_last_error());
  fuzz::require(status == DSV3_OK, "the small model works");
}

dsv3_model* make_model() {
  const TempDir folder(fuzz::kMemory);
  spill(folder.path() + "/config.json",
        R"({"model_type": "deepseek_v3", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4,
      "moe_intermediate_size": 4, "num_hidden_layers": 2, "num_attention_heads": 1, "n_routed_experts": 4,
      "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "q_lora_rank": null,
      "kv_lora_rank": 4, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2, "v_head_dim": 2,
      "max_position_embeddings": 256})");
  dsv3::RandomOptions options;
  options.config = folder.path() + "/config.json";
  options.out = folder.path() + "/m";
  fuzz::check(dsv3::write_random_model(options).status());
  dsv3_model* model = nullptr;
  ok(dsv3_model_open(options.out.c_str(), nullptr, &model));  // mapped: it outlives its name
  return model;
}

dsv3_session* make_session(dsv3_model* model) {
  dsv3_session_options o = {};
  o.struct_size = sizeof o;
  o.context = 200;
  o.max_seqs = kMaxSeqs;
  o.max_batch_tokens = 4;
  o.n_threads = 1;
  o.kv = DSV3_KV_F32;
  dsv3_session* session = nullptr;
  ok(dsv3_session_new(model, &o, &session));
  return session;
}

std::string save(const dsv3_session* session) {
  size_t n = 0;
  ok(dsv3_session_save(session, nullptr, 0, &n));
  std::string bytes(n, '\0');
  ok(dsv3_session_save(session, bytes.data(), n, &n));
  fuzz::require(n == bytes.size(), "a saved session has the length it says");
  return bytes;
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static dsv3_model* const model = make_model();
  static dsv3_session* const session = make_session(model);
  static const std::string empty = save(session);
  if (size < 1 + kHeader + sizeof(uint64_t)) return 0;
  std::string bytes(fuzz::text_of(data + 1, size - 1));
  if (data[0] & 1) {
    std::string header = empty.substr(0, kHeader);
    header.replace(kSequences, 4, bytes, kSequences, 4);
    const uint64_t length = bytes.size();
    std::memcpy(header.data() + kBytes, &length, sizeof length);
    bytes.replace(0, kHeader, header);
  }
  if (data[0] & 2) {
    lite::Hash hash;
    hash.add(bytes.data(), bytes.size() - sizeof(uint64_t));
    const uint64_t checksum = hash.digest64();
    std::memcpy(bytes.data() + bytes.size() - sizeof checksum, &checksum, sizeof checksum);
  }

  const std::string before = save(session);
  const dsv3_status loaded = dsv3_session_load(session, bytes.data(), bytes.size());
  fuzz::require(loaded != DSV3_INTERNAL, "no input is our bug");
  const std::string after = save(session);
  if (loaded != DSV3_OK) {
    fuzz::require(after == before, "what is refused changes nothing");
    return 0;
  }
  for (int32_t seq = 0; seq < kMaxSeqs; ++seq)
    for (int32_t i = 0; i < dsv3_seq_length(session, seq); ++i) {
      const int32_t id = dsv3_seq_tokens(session, seq)[i];
      fuzz::require(id >= 0 && id < 8, "every token has an id");
    }
  // Only empty sequences at the end, which are not saved, may be missing.
  fuzz::require(after.size() <= bytes.size() && (after.size() < bytes.size() || after == bytes),
                "what is loaded is saved as it was");
  ok(dsv3_session_load(session, after.data(), after.size()));
  fuzz::require(save(session) == after, "what is saved can be loaded again");
  return 0;
}
