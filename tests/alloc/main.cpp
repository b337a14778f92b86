// Evaluation allocates nothing: this program takes the place of malloc and its relatives, mmap and
// pthread_create, and counts what a session asks of them while it evaluates. Usage: dsv3-alloc MODEL.dsv3.
// Exit: 0 nothing, 1 something.
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "dsv3.h"

#if defined(__SANITIZE_ADDRESS__)
#define HAS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_SANITIZER 1
#endif
#endif

#ifdef HAS_SANITIZER
int main() {
  std::puts("alloc: skipped: the address sanitizer has its own malloc");
  return 0;
}
#else

// ---- counting ---------------------------------------------------------------------------------------------

namespace {

struct Call {
  const char* function;
  size_t bytes;
  void* caller;
};

std::atomic<bool> armed{false};
std::atomic<int> calls{0};
constexpr int kRemembered = 8;
Call remembered[kRemembered];

void count(const char* function, size_t bytes, void* caller) {
  if (!armed.load(std::memory_order_relaxed)) return;
  const int i = calls.fetch_add(1, std::memory_order_relaxed);
  if (i < kRemembered) remembered[i] = {function, bytes, caller};
}

}  // namespace

#define COUNT(bytes) count(__func__, bytes, __builtin_return_address(0))

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t n) {
  COUNT(n);
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) {
  COUNT(n * size);
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) {
  COUNT(n);
  return __libc_realloc(p, n);
}
void* memalign(size_t alignment, size_t n) {
  COUNT(n);
  return __libc_memalign(alignment, n);
}
void* aligned_alloc(size_t alignment, size_t n) {
  COUNT(n);
  return __libc_memalign(alignment, n);
}
int posix_memalign(void** p, size_t alignment, size_t n) {
  COUNT(n);
  *p = __libc_memalign(alignment, n);
  return *p ? 0 : ENOMEM;
}
void* mmap(void* at, size_t n, int protection, int flags, int file, off_t offset) {
  COUNT(n);
  return reinterpret_cast<void*>(syscall(SYS_mmap, at, n, protection, flags, file, offset));
}
void* mmap64(void* at, size_t n, int protection, int flags, int file, off_t offset) {
  COUNT(n);
  return reinterpret_cast<void*>(syscall(SYS_mmap, at, n, protection, flags, file, offset));
}
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) {
  COUNT(0);
  using Function = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto next = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "pthread_create"));
  return next(thread, attributes, start, argument);
}
}

// ---- evaluating -------------------------------------------------------------------------------------------

namespace {

void require(dsv3_status status, const char* what) {
  armed = false;
  if (status == DSV3_OK) return;
  std::fprintf(stderr, "alloc: %s: %s\n", what, dsv3_last_error());
  std::exit(2);
}

struct Variant {
  const char* name;
  dsv3_attention attention;
  dsv3_gemm gemm;
  dsv3_kv kv;
  uint32_t keep;
  int mtp;
};

// A prompt in several passes, 100 decode steps of two sequences, truncation, a fork; returns the allocations during
// all that.
int run(dsv3_model* model, int32_t vocab_size, const Variant& v) {
  dsv3_session_options o = {};
  o.struct_size = sizeof o;
  o.context = 192;
  o.max_seqs = 2;
  o.max_batch_tokens = v.keep ? 64 : 16;
  o.n_threads = 2;
  o.attention = v.attention;
  o.gemm = v.gemm;
  o.kv = v.kv;
  o.keep = v.keep;
  o.mtp = v.mtp;
  dsv3_session* session = nullptr;
  require(dsv3_session_new(model, &o, &session), v.name);

  std::vector<int32_t> ids, seqs;
  for (int32_t i = 0; i < 50; ++i) ids.push_back((7 * i + 3) % vocab_size), seqs.push_back(i % 3 == 0);
  const int32_t last[2] = {49, 48};  // of sequence 0 and 1
  dsv3_batch batch = {};
  batch.struct_size = sizeof batch;
  batch.n = 50;
  batch.token = ids.data();
  batch.seq = seqs.data();
  require(dsv3_eval(session, &batch), "a first prompt");
  dsv3_sampling sampling = {};
  sampling.struct_size = sizeof sampling;
  sampling.temperature = 0.8;
  sampling.top_k = 40;
  sampling.top_p = 0.95;
  int32_t next[2];
  for (int s = 0; s < 2; ++s)
    require(dsv3_sample(session, last[s], &sampling, 1, &next[s]), "a first sample");

  calls = 0;
  const auto counted = [](auto&& call, const char* what) {
    armed = true;
    require(call(), what);  // disarms
  };
  // The same prompt again, now counted.
  for (int32_t s = 0; s < 2; ++s) counted([&] { return dsv3_seq_truncate(session, s, 0); }, "truncate");
  counted([&] { return dsv3_eval(session, &batch); }, "a prompt");
  const int32_t both[2] = {0, 1};
  batch.n = 2;
  batch.seq = both;
  batch.token = next;
  for (int step = 0; step < 100; ++step) {
    counted([&] { return dsv3_eval(session, &batch); }, "decode");
    for (int32_t s = 0; s < 2; ++s)
      counted([&] { return dsv3_sample(session, s, &sampling, 1, &next[s]); }, "sample");
    if (v.mtp) {
      const float* row;
      counted([&] { return dsv3_mtp_logits(session, 0, &row); }, "MTP logits");
    }
  }
  // A fork, and the copies that its sequences make when they part.
  counted([&] { return dsv3_seq_fork(session, 0, 1, dsv3_seq_length(session, 0)); }, "fork");
  counted([&] { return dsv3_eval(session, &batch); }, "decode a fork");
  dsv3_session_free(session);

  std::printf("alloc: %s: %d\n", v.name, calls.load());
  for (int i = 0; i < calls && i < kRemembered; ++i) {
    Dl_info about = {};
    dladdr(remembered[i].caller, &about);
    const auto offset =
        reinterpret_cast<uintptr_t>(remembered[i].caller) - reinterpret_cast<uintptr_t>(about.dli_fbase);
    std::printf("  %s of %zu bytes from %s+0x%zx %s\n", remembered[i].function, remembered[i].bytes,
                about.dli_fname ? about.dli_fname : "?", size_t(offset),
                about.dli_sname ? about.dli_sname : "");
  }
  return calls;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL.dsv3\n", argv[0]);
    return 2;
  }
  // Whether counting works at all.
  armed = true;
  void* volatile p = std::malloc(100);
  std::free(p);
  p = ::operator new(100);
  ::operator delete(p);
  armed = false;
  if (calls != 2) {
    std::fprintf(stderr, "alloc: two allocations were counted as %d\n", calls.load());
    return 2;
  }

  dsv3_model* model = nullptr;
  require(dsv3_model_open(argv[1], nullptr, &model), "open");
  dsv3_model_info info = {};
  info.struct_size = sizeof info;
  require(dsv3_model_get_info(model, &info), "info");
  const uint32_t all = DSV3_KEEP_HIDDEN | DSV3_KEEP_ROUTING;
  const Variant variants[] = {
      {"absorbed", DSV3_ATTENTION_ABSORBED, DSV3_GEMM_F32, DSV3_KV_F32, 0, 0},
      {"expanded, bf16 cache", DSV3_ATTENTION_EXPANDED, DSV3_GEMM_F32, DSV3_KV_BF16, 0, 0},
      {"FP8 activations, kept results", DSV3_ATTENTION_ABSORBED, DSV3_GEMM_FP8, DSV3_KV_F32, all, 0},
      {"multi-token prediction", DSV3_ATTENTION_ABSORBED, DSV3_GEMM_F32, DSV3_KV_F32, 0, 1},
  };
  int total = 0;
  for (const Variant& v : variants)
    if (!v.mtp || info.n_mtp_layers) total += run(model, info.vocab_size, v);
  require(dsv3_model_close(model), "close");
  std::printf("alloc: %d allocations during evaluation, expected 0\n", total);
  return total ? 1 : 0;
}

#endif
