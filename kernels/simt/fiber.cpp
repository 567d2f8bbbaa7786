#include "kernels/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace isentrope::simt {
namespace {

// Untouched pages cost nothing; the sanitizer's red zones make frames several times larger.
#if defined(SIMT_ASAN)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

std::mutex pool_mutex;
std::vector<Stack>& pool() {
  static std::vector<Stack>* stacks = new std::vector<Stack>;  // never destroyed: fibers may outlive statics
  return *stacks;
}

}  // namespace

Stack take_stack() {
  {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    if (!pool().empty()) {
      const Stack stack = pool().back();
      pool().pop_back();
      return stack;
    }
  }
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("simt: no memory for the stack of a fiber");
  mprotect(memory, guard, PROT_NONE);
  return {static_cast<char*>(memory) + guard, kStackBytes};
}

void give_back_stack(Stack stack) {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  pool().push_back(stack);
}

#if defined(__x86_64__)
// void simt_switch(void** save_stack_pointer /* rdi */, void* stack_pointer /* rsi */): the registers a callee must
// keep go on the old stack and come from the new one. It ends in a jump, not a return: the return predictor knows only
// the old stack and would miss every time.
extern "C" void simt_switch(void** save, void* stack_pointer);
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
.p2align 4
simt_switch:
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
  popq %rdx
  jmp *%rdx
.size simt_switch,.-simt_switch
)");

static void prepare_context(Fiber& fiber, void (*entry)()) {
  // From the top: a null return address for entry (and the alignment it expects), entry, six saved registers.
  void** top = reinterpret_cast<void**>(fiber.stack.low + fiber.stack.size);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  top -= 6;
  std::memset(top, 0, 6 * sizeof(void*));
  fiber.stack_pointer = top;
}
static void switch_context(Fiber& from, Fiber& to) { simt_switch(&from.stack_pointer, to.stack_pointer); }
#else
static void prepare_context(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.low;
  fiber.context.uc_stack.ss_size = fiber.stack.size;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
static void switch_context(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

void prepare(Fiber& fiber, void (*entry)()) {
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(fiber.stack.low, fiber.stack.size);  // an abandoned fiber left its red zones there
  fiber.fake_stack = nullptr;
#endif
  prepare_context(fiber, entry);
}

void entered([[maybe_unused]] Fiber& main) {
#if defined(SIMT_ASAN)
  const void* low = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &low, &size);
  if (!main.stack.low) main.stack = {static_cast<char*>(const_cast<void*>(low)), size};
#endif
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool finished) {
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(finished ? nullptr : &from.fake_stack, to.stack.low, to.stack.size);
#endif
  switch_context(from, to);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace isentrope::simt
