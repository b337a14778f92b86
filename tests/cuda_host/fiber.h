// Fibers: stacks that one thread of the host switches between.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace lite::cuda::host {

class Fiber {
 public:
  Fiber() = default;  // the thread's own stack
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  void operator=(const Fiber&) = delete;

  // Goes on where `to` stopped, or at its entry, which must not return; comes back when somebody switches to `from`.
  static void go(Fiber* from, Fiber* to);
  // The first thing that an entry does.
  static void entered();

 private:
  static constexpr size_t kStack = 256 << 10;  // bytes of addresses; memory only as it is used

  std::byte* stack_ = nullptr;
#if defined(__x86_64__)
  void* sp_ = nullptr;
#else
  ucontext_t context_;
#endif
  // What the thread sanitizer and the address sanitizer want to know.
  void* tsan_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace lite::cuda::host
