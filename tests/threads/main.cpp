// Sessions in several threads: two write the same text, one forks, saves and loads, one is cancelled by another; the
// model is described and asked meanwhile. On the CPU, then divided between it and a GPU (tests/cuda_host). Usage: dsv3-threads
// MODEL.dsv3. Exit: 0 all as expected. Under the thread sanitizer also: no race.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "dsv3.h"

namespace {

void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "threads: %s: %s\n", what, dsv3_last_error());
  std::_Exit(1);
}
void require(dsv3_status status, const char* what) {
  require(status == DSV3_OK, what);
}

dsv3_session* new_session(dsv3_model* model, const char* place) {
  dsv3_session_options o = {};
  o.struct_size = sizeof o;
  o.context = 128;
  o.max_seqs = 2;
  o.max_batch_tokens = 8;
  o.n_threads = 2;
  o.place = place;
  dsv3_session* session = nullptr;
  require(dsv3_session_new(model, &o, &session), "new session");
  return session;
}

// The prompt and `n` tokens after it.
std::vector<int32_t> write_text(dsv3_model* model, dsv3_session* session, int n) {
  const std::string prompt = "It is a truth universally acknowledged, that";
  const dsv3_tokenizer* tokenizer = nullptr;
  require(dsv3_model_tokenizer(model, &tokenizer), "tokenizer");
  std::vector<int32_t> ids(64);
  size_t count = 0;
  require(
      dsv3_tokenize(tokenizer, prompt.data(), prompt.size(), DSV3_BOS_AUTO, ids.data(), ids.size(), &count),
      "tokenize");
  ids.resize(count);
  size_t first = 0;
  for (int i = 0; i < n; ++i) {
    dsv3_batch batch = {};
    batch.struct_size = sizeof batch;
    batch.n = int32_t(ids.size() - first);
    batch.token = ids.data() + first;
    require(dsv3_eval(session, &batch), "evaluate");
    first = ids.size();
    int32_t id = 0;
    require(dsv3_sample(session, batch.n - 1, nullptr, 7, &id), "sample");
    ids.push_back(id);
  }
  return ids;
}

// A text, and its end again through a fork and a saved session.
void write_and_fork(dsv3_model* model, const char* place, bool save, std::vector<int32_t>* text) {
  dsv3_session* session = new_session(model, place);
  *text = write_text(model, session, 3);
  const int32_t length = dsv3_seq_length(session, 0);
  require(dsv3_seq_fork(session, 0, 1, length - 1), "fork");
  if (save) {
    size_t bytes = 0;
    require(dsv3_session_save(session, nullptr, 0, &bytes), "size of a saved session");
    std::vector<char> saved(bytes);
    require(dsv3_session_save(session, saved.data(), saved.size(), &bytes), "save");
    require(dsv3_session_load(session, saved.data(), saved.size()), "load");
  }
  const int32_t last = dsv3_seq_tokens(session, 0)[length - 1], seq = 1;
  dsv3_batch batch = {};
  batch.struct_size = sizeof batch;
  batch.n = 1;
  batch.token = &last;
  batch.seq = &seq;
  require(dsv3_eval(session, &batch), "evaluate the fork");
  int32_t id = 0;
  require(dsv3_sample(session, 0, nullptr, 7, &id), "sample from the fork");
  require(id == text->back(), "the fork's text differs");
  dsv3_session_free(session);
}

// Each thread has its own last error.
void fail_and_look(dsv3_model* model, int i) {
  const char* json = nullptr;
  require(dsv3_model_describe(model, &json), "describe");
  const std::string path = "absent-" + std::to_string(i);
  dsv3_model* none = nullptr;
  require(dsv3_model_open(path.c_str(), nullptr, &none) == DSV3_NOT_FOUND, "open an absent file");
  require(std::string(dsv3_last_error()).find(path) != std::string::npos, "another thread's error");
}

void evaluate_until_cancelled(dsv3_session* session, std::atomic<bool>* started) {
  const std::vector<int32_t> ids(20, 5);  // several passes
  dsv3_batch batch = {};
  batch.struct_size = sizeof batch;
  batch.n = int32_t(ids.size());
  batch.token = ids.data();
  dsv3_status status = DSV3_OK;
  while (status == DSV3_OK) {
    status = dsv3_eval(session, &batch);
    *started = true;
    require(dsv3_seq_length(session, 0) == (status == DSV3_OK ? batch.n : 0), "length after an evaluation");
    require(dsv3_seq_free(session, 0), "free the sequence");
  }
  require(status == DSV3_CANCELLED, "cancelled");
}

void exercise(const char* path, const char* backend, const char* place) {
  dsv3_model_options o = {};
  o.struct_size = sizeof o;
  o.backend = backend;
  dsv3_model* model = nullptr;
  require(dsv3_model_open(path, &o, &model), "open");
  std::vector<std::thread> threads;
  std::vector<int32_t> texts[2];
  dsv3_session* endless = new_session(model, place);
  std::atomic<bool> started = false;
  threads.emplace_back(evaluate_until_cancelled, endless, &started);
  for (int i = 0; i < 2; ++i)
    threads.emplace_back([&, i] { write_and_fork(model, place, i == 1, &texts[i]); });
  for (int i = 0; i < 2; ++i) threads.emplace_back([model, i] { fail_and_look(model, i); });
  require(dsv3_model_close(model) == DSV3_BUSY, "close a model with live sessions");
  while (!started) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  dsv3_cancel(endless);
  for (std::thread& thread : threads) thread.join();
  require(texts[0] == texts[1], "two threads wrote different texts");
  dsv3_session_free(endless);
  require(dsv3_model_close(model), "close");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL.dsv3\n", argv[0]);
    return 2;
  }
  exercise(argv[1], "cpu", nullptr);
  exercise(argv[1], "cuda", "routed_experts=cpu; layers 1 attention=cpu");
  std::puts("threads: all as expected");
  return 0;
}
