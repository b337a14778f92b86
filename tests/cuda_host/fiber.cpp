#include "tests/cuda_host/fiber.h"

#include <sys/mman.h>

#include "tests/cuda_host/block.h"

#if defined(__SANITIZE_ADDRESS__)
#define DSV3_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DSV3_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#include <sanitizer/tsan_interface.h>
#define DSV3_TSAN 1
#endif
#endif
#ifdef DSV3_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the registers that calls keep, and the stack pointer to *from; takes those of `to`.
extern "C" void lite_cuda_host_switch(void** from, void* to);
asm(R"(
.text
.type lite_cuda_host_switch, @function
lite_cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lite_cuda_host_switch, . - lite_cuda_host_switch
)");
#endif

namespace lite::cuda::host {

namespace {
thread_local Fiber* came_from = nullptr;
}

Fiber::Fiber(void (*entry)()) : bottom_(nullptr), size_(kStack) {
  void* memory =
      mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for the stack of a fiber");
#ifdef DSV3_TSAN
  tsan_ = __tsan_create_fiber(0);
#endif
  stack_ = static_cast<std::byte*>(memory);
  bottom_ = stack_;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stack_ + kStack) - 1;  // a call has left its return address there
  *--top = reinterpret_cast<void*>(entry);
  sp_ = top - 6;  // the registers
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStack;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

Fiber::~Fiber() {
  if (!stack_) return;
#ifdef DSV3_TSAN
  __tsan_destroy_fiber(tsan_);
#endif
#ifdef DSV3_ASAN
  __asan_unpoison_memory_region(stack_, kStack);  // the next mapping there is no stack
#endif
  munmap(stack_, kStack);
}

void Fiber::go(Fiber* from, Fiber* to) {
  came_from = from;
#ifdef DSV3_TSAN
  if (!from->stack_) from->tsan_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to->tsan_, 0);
#endif
#ifdef DSV3_ASAN
  __sanitizer_start_switch_fiber(&from->fake_stack_, to->bottom_, to->size_);
#endif
#if defined(__x86_64__)
  lite_cuda_host_switch(&from->sp_, to->sp_);
#else
  swapcontext(&from->context_, &to->context_);
#endif
#ifdef DSV3_ASAN
  __sanitizer_finish_switch_fiber(from->fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::entered() {
#ifdef DSV3_ASAN
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!came_from->stack_) came_from->bottom_ = bottom, came_from->size_ = size;  // the thread's own
#endif
}

}  // namespace lite::cuda::host
