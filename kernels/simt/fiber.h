// Fibers: stacks that one OS thread switches between by hand. A fiber never moves to another OS thread, since
// compilers keep addresses of thread-local variables across calls.
#pragma once
#include <cstddef>
#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN
#endif
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace isentrope::simt {

// A stack above a guard page, from a pool that outlives the launch.
struct Stack {
  char* low = nullptr;
  size_t size = 0;
};
Stack take_stack();
void give_back_stack(Stack stack);

struct Fiber {
  Stack stack;  // of an OS thread's own fiber: filled at the first switch away, for the address sanitizer
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* fake_stack = nullptr;  // the address sanitizer's
};

// Makes fiber start at entry, on its own stack, when first switched to. entry must not return.
void prepare(Fiber& fiber, void (*entry)());
// First statement of an entry: tells the address sanitizer of the switch. main: the fiber that all were started from.
void entered(Fiber& main);
// Leaves from (finished: for good) and goes on in to.
void switch_fiber(Fiber& from, Fiber& to, bool finished);

}  // namespace isentrope::simt
