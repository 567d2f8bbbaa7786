// The checker: shadow memory behind the hooks that compilers emit for -fsanitize=thread, in place of that sanitizer's
// runtime. Every byte of shared and of device memory has flags (inside a buffer, written, target of a copy in flight)
// and a cell with its last writer and two of its readers. An access races with an earlier one by another thread of the
// block unless a barrier or __syncwarp came between, and with any by another block. Shuffles, votes, ldmatrix and mma
// order nothing, as in CUDA. Holes: a third concurrent reader of a byte may be forgotten; a wild index may land
// inside another buffer; register-only mistakes are invisible.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>

#include "kernels/simt/machine.h"

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#define SIMT_POISON(p, n) __asan_poison_memory_region(p, n)
#define SIMT_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define SIMT_POISON(p, n) (void)(p), (void)(n)
#define SIMT_UNPOISON(p, n) (void)(p), (void)(n)
#endif

extern "C" const char __executable_start __attribute__((weak));
extern "C" const char _end __attribute__((weak));

namespace isentrope::simt {
namespace {

constexpr size_t kRedZone = 256;
constexpr size_t kArenaBytes = size_t{512} << 20;  // of device memory; address space alone until it is touched
constexpr uint8_t kInside = 1, kWritten = 2, kInFlight = 4;
constexpr unsigned char kRedZoneByte = 0xa5;

// Who made an access: block and thread + 1 (0: nobody), at which count of its clock, from where in the executable.
struct Access {
  uint32_t who, clock, pc;
};
// A cell of an earlier epoch (launch for device memory, block for shared memory) counts as empty.
struct Cell {
  uint32_t epoch;
  Access write, atomic, read[2];
};

struct Buffer {
  size_t bytes;
  std::string name;
};

template <class T>
T* reserve(size_t count) {
  void* p =
      mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("simt: no address space for device memory and its shadow");
  return static_cast<T*>(p);
}

// Device memory. The flags are kept in every build; cells exist once a checked launch needs them.
struct Device {
  std::mutex mutex;
  char* arena = reserve<char>(kArenaBytes);
  uint8_t* flags = reserve<uint8_t>(kArenaBytes);
  Cell* cells = nullptr;
  std::map<size_t, Buffer> buffers;  // by offset
  uint32_t epoch = 0;
};
Device& device() {
  static Device* d = new Device;  // never destroyed: buffers of statics may outlive it
  return *d;
}

struct SharedShadow {
  uint8_t flags[kSharedArena];
  Cell* cells = nullptr;
  uint32_t epoch = 0;
  size_t used = 0;
};
SharedShadow shared_shadow;

}  // namespace

// ---- device memory ----------------------------------------------------------------------------------------------------

void* device_malloc(size_t bytes, const char* name) {
  Device& d = device();
  const std::lock_guard<std::mutex> lock(d.mutex);
  const auto padded = [](size_t n) { return (n + 255) / 256 * 256; };
  size_t offset = kRedZone;
  for (const auto& [start, buffer] : d.buffers) {
    if (offset + padded(bytes) + kRedZone <= start) break;
    offset = start + padded(buffer.bytes) + kRedZone;
  }
  if (offset + padded(bytes) + kRedZone > kArenaBytes)
    throw std::runtime_error("simt: " + std::to_string(bytes) + " bytes for " + name +
                             " do not fit into the machine's " + std::to_string(kArenaBytes >> 20) +
                             " MiB of device memory");
  d.buffers[offset] = {bytes, name};
  char* p = d.arena + offset;
  SIMT_UNPOISON(p - kRedZone, padded(bytes) + 2 * kRedZone);
  std::memset(p - kRedZone, kRedZoneByte, kRedZone);
  std::memset(p, 0xff, bytes);
  std::memset(p + bytes, kRedZoneByte, padded(bytes) - bytes + kRedZone);
  SIMT_POISON(p - kRedZone, kRedZone);
  SIMT_POISON(p + bytes, padded(bytes) - bytes + kRedZone);
  std::memset(d.flags + offset, kInside, bytes);
  return p;
}

void device_free(void* p) {
  if (!p) return;
  Device& d = device();
  const std::lock_guard<std::mutex> lock(d.mutex);
  const auto buffer = d.buffers.find(static_cast<char*>(p) - d.arena);
  if (buffer == d.buffers.end())
    throw std::invalid_argument("simt: device_free of an address that device_malloc did not give");
  std::memset(d.flags + buffer->first, 0, buffer->second.bytes);
  SIMT_POISON(p, buffer->second.bytes);
  d.buffers.erase(buffer);
}

void mark_initialised(const void* p, size_t bytes) {
  Device& d = device();
  uint8_t* flags = d.flags + (static_cast<const char*>(p) - d.arena);
  for (size_t i = 0; i < bytes; ++i) flags[i] |= kWritten;
}

__attribute__((no_sanitize("address"))) void check_red_zones(const void* p) {
  Device& d = device();
  const std::lock_guard<std::mutex> lock(d.mutex);
  const auto buffer = d.buffers.find(static_cast<const char*>(p) - d.arena);
  if (buffer == d.buffers.end())
    throw std::invalid_argument("simt: check_red_zones of an address that device_malloc did not give");
  const auto bytes = static_cast<std::ptrdiff_t>(buffer->second.bytes);
  const volatile unsigned char* c = static_cast<const unsigned char*>(p);
  for (std::ptrdiff_t i = -static_cast<std::ptrdiff_t>(kRedZone); i < bytes + static_cast<std::ptrdiff_t>(kRedZone);
       ++i) {
    if (i == 0) i = bytes;
    if (c[i] != kRedZoneByte)
      throw Failure("OUT OF BOUNDS: something wrote byte " + std::to_string(i) + " of " + buffer->second.name +
                    ", which has " + std::to_string(bytes) + " bytes (run the checked tests for the line)");
  }
}

// ---- launches and blocks ----------------------------------------------------------------------------------------------

void Join::add(const Clocks& known, int thread, uint32_t clock, int threads) {
  if (!joined_) {
    joined_ = known ? std::make_shared<std::vector<uint32_t>>(*known)
                    : std::make_shared<std::vector<uint32_t>>(static_cast<size_t>(threads), 0u);
  } else if (known && known.get() != last_) {
    for (int i = 0; i < threads; ++i) (*joined_)[i] = std::max((*joined_)[i], (*known)[i]);
  }
  last_ = known.get();
  (*joined_)[thread] = std::max((*joined_)[thread], clock);
}

void checker_begin_launch(Worker&) {
  Device& d = device();
  if (!d.cells) d.cells = reserve<Cell>(kArenaBytes);
  if (!shared_shadow.cells) shared_shadow.cells = reserve<Cell>(kSharedArena);
  ++d.epoch;
}

void checker_begin_block(Worker& w) {
  std::memset(shared_shadow.flags, 0, shared_shadow.used);
  shared_shadow.used = 0;
  ++shared_shadow.epoch;
  checker_allocate_shared(0, w.shared_dynamic);
}

void checker_allocate_shared(size_t offset, size_t bytes) {
  std::memset(shared_shadow.flags + offset, kInside, bytes);
  shared_shadow.used = offset + bytes;
}

// ---- one access -------------------------------------------------------------------------------------------------------

namespace {

const void* code_address(uint32_t pc) { return &__executable_start + pc; }

std::string describe(const Access& a) {
  const uint32_t linear = a.who - 1;
  return "block " + std::to_string(linear >> 10) + " thread " + std::to_string(linear & 1023) + " at " +
         source_of(code_address(a.pc));
}

std::string name_shared(size_t offset) {
  const Region* nearest = &worker->regions.front();
  for (const Region& r : worker->regions)
    if (r.offset <= offset && (nearest->bytes == 0 || r.offset >= nearest->offset)) nearest = &r;
  return std::string("shared ") + nearest->name + " + " + std::to_string(offset - nearest->offset) + " (of " +
         std::to_string(nearest->bytes) + " bytes)";
}

std::string name_global(size_t offset) {
  const auto& buffers = device().buffers;
  auto next = buffers.upper_bound(offset);
  if (next == buffers.begin() && next == buffers.end()) return "device memory";
  // Before the next buffer by less than a red zone: an index below zero. Otherwise past the end of the one before.
  if (next != buffers.end() && (next == buffers.begin() || next->first - offset <= kRedZone))
    if (next == buffers.begin() || offset >= std::prev(next)->first + std::prev(next)->second.bytes + kRedZone)
      return next->second.name + " - " + std::to_string(next->first - offset);
  const auto& [start, buffer] = *std::prev(next);
  return buffer.name + " + " + std::to_string(offset - start) + " (of " + std::to_string(buffer.bytes) + " bytes)";
}

struct Memory {
  uint8_t* flags;  // from the first byte of the access
  Cell* cells;
  uint32_t epoch;
  size_t offset;
  bool shared;
  std::string name(size_t i) const { return shared ? name_shared(offset + i) : name_global(offset + i); }
};

// a came before what t now does: same block, and t or a barrier it passed saw that clock.
bool before(const Access& a, const Thread& t) {
  const uint32_t linear = a.who - 1;
  if (linear >> 10 != worker->block) return false;
  const int thread = static_cast<int>(linear & 1023);
  return thread == t.linear || (t.known && (*t.known)[thread] >= a.clock);
}

enum class Kind { kRead, kWrite, kAtomic };

void report_race(const Memory& m, size_t i, Kind kind, const Access& now, const char* earlier_kind,
                 const Access& earlier) {
  const char* names[] = {"read", "write", "atomic"};
  const char* name = names[static_cast<int>(kind)];
  report("race" + std::to_string(now.pc) + "/" + std::to_string(earlier.pc),
         std::string("RACE: ") + name + " of " + m.name(i) + " by " + describe(now) + "\n    and an earlier " +
             earlier_kind + " by " + describe(earlier));
}

void check_byte(const Memory& m, size_t i, const Thread& t, Kind kind, const Access& now) {
  Cell& c = m.cells[i];
  if (c.epoch != m.epoch) c = Cell{m.epoch, {}, {}, {}};
  const uint8_t flags = m.flags[i];
  if (flags & kInFlight) {
    report("flight" + std::to_string(now.pc),
           std::string("IN FLIGHT: ") + (kind == Kind::kRead ? "read" : "write") + " of " + m.name(i) + " by " +
               describe(now) + "\n    while a copy into it is under way, started by " + describe(c.write));
  } else {
    if (kind == Kind::kRead && !(flags & kWritten))
      report("unwritten" + std::to_string(now.pc), "UNINITIALISED: read of " + m.name(i) + " by " + describe(now));
    if (c.write.who && !before(c.write, t))
      report_race(m, i, kind, now, "write", c.write);
    else if (kind != Kind::kAtomic && c.atomic.who && !before(c.atomic, t))
      report_race(m, i, kind, now, "atomic", c.atomic);
  }
  if (kind != Kind::kRead) {
    for (const Access& r : c.read)
      if (r.who && !before(r, t)) {
        report_race(m, i, kind, now, "read", r);
        break;
      }
    m.flags[i] |= kWritten;
    (kind == Kind::kAtomic ? c.atomic : c.write) = now;
    if (kind == Kind::kWrite) c.read[0].who = c.read[1].who = 0;
  } else if (c.read[0].who == 0 || c.read[0].who == now.who) {
    c.read[0] = now;
  } else if (c.read[1].who == 0 || c.read[1].who == now.who || !before(c.read[0], t)) {
    c.read[1] = now;
  } else {
    c.read[0] = now;
  }
}

Access make_access(const Thread& t, const void* pc) {
  return {(worker->block << 10 | static_cast<uint32_t>(t.linear)) + 1, t.clock,
          static_cast<uint32_t>(static_cast<const char*>(pc) - &__executable_start)};
}

void check_span(const Memory& m, size_t bytes, const Thread& t, Kind kind, const void* pc) {
  const Access now = make_access(t, pc);
  for (size_t i = 0; i < bytes; ++i) {
    if (!(m.flags[i] & kInside)) {
      fail("OUT OF BOUNDS: %s of %zu bytes at %s by %s", kind == Kind::kRead ? "read" : "write", bytes,
           m.name(i).c_str(), describe(now).c_str());
    }
    check_byte(m, i, t, kind, now);
  }
}

Memory shared_at(const char* p) {
  const size_t offset = p - worker->shared;
  return {shared_shadow.flags + offset, shared_shadow.cells + offset, shared_shadow.epoch, offset, true};
}

bool within(const char* p, const void* low, size_t bytes) {
  return p >= static_cast<const char*>(low) && p < static_cast<const char*>(low) + bytes;
}

void check(const void* address, size_t bytes, Kind kind, const void* pc) {
  const Quiet quiet;
  Worker& w = *worker;
  const char* p = static_cast<const char*>(address);
  const Stack& stack = w.current->fiber.stack;
  if (within(p, stack.low, stack.size)) return;
  Device& d = device();
  if (within(p, w.shared, kSharedArena)) {
    check_span(shared_at(p), bytes, *w.current, kind, pc);
  } else if (within(p, d.arena, kArenaBytes)) {
    const size_t offset = p - d.arena;
    check_span({d.flags + offset, d.cells + offset, d.epoch, offset, false}, bytes, *w.current, kind, pc);
  } else if (!within(p, &here, sizeof here) && !within(p, w.closure, w.closure_bytes) &&
             !within(p, &__executable_start, &_end - &__executable_start)) {
    fail("NOT DEVICE MEMORY: %s of %zu bytes at %p by %s", kind == Kind::kRead ? "read" : "write", bytes, address,
         describe(make_access(*w.current, pc)).c_str());
  }
}

}  // namespace

void checker_read_shared(Thread& as, const void* p, size_t bytes, const void* pc) {
  check_span(shared_at(static_cast<const char*>(p)), bytes, as, Kind::kRead, pc);
}

void checker_copy_started(const void* to, size_t bytes, const void* from, size_t valid, const void* pc) {
  if (valid) check(from, valid, Kind::kRead, pc);
  const Memory m = shared_at(static_cast<const char*>(to));
  check_span(m, bytes, *worker->current, Kind::kWrite, pc);
  for (size_t i = 0; i < bytes; ++i) m.flags[i] |= kInFlight;
}

void checker_copy_landed(const void* to, size_t bytes) {
  const Thread& t = *worker->current;
  const Memory m = shared_at(static_cast<const char*>(to));
  for (size_t i = 0; i < bytes; ++i) {
    m.flags[i] &= static_cast<uint8_t>(~kInFlight);
    m.cells[i].write.clock = t.clock;  // it counts as written now: only barriers from here on order it
  }
}

void require_vector_alignment(const void* p, const char* file, int line);

__attribute__((noinline)) void vector_access(const void* p, bool write, const char* file, int line) {
  require_vector_alignment(p, file, line);
  if (checking) check(p, 16, write ? Kind::kWrite : Kind::kRead, __builtin_return_address(0));
}

void atomic_access(const void* p, size_t bytes, const void* pc) {
  if (checking) check(p, bytes, Kind::kAtomic, pc);
}

bool compare_exchange(void* p, void* expected, const void* desired, size_t bytes) {
  const auto exchange = [&](auto word) {
    using Word = decltype(word);
    return __atomic_compare_exchange(static_cast<Word*>(p), static_cast<Word*>(expected),
                                     const_cast<Word*>(static_cast<const Word*>(desired)), false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
  };
  return bytes == 8 ? exchange(uint64_t{}) : bytes == 4 ? exchange(uint32_t{}) : exchange(uint16_t{});
}

}  // namespace isentrope::simt

// ---- the hooks --------------------------------------------------------------------------------------------------------

namespace {
inline void seen(const void* p, size_t bytes, bool write, const void* pc) {
  if (isentrope::simt::checking)
    isentrope::simt::check(p, bytes, write ? isentrope::simt::Kind::kWrite : isentrope::simt::Kind::kRead, pc);
}
}  // namespace

extern "C" {
#define PC __builtin_return_address(0)
#define SIMT_HOOKS(n)                                                        \
  void __tsan_read##n(void* p) { seen(p, n, false, PC); }                    \
  void __tsan_write##n(void* p) { seen(p, n, true, PC); }                    \
  void __tsan_unaligned_read##n(void* p) { seen(p, n, false, PC); }          \
  void __tsan_unaligned_write##n(void* p) { seen(p, n, true, PC); }          \
  void __tsan_volatile_read##n(void* p) { seen(p, n, false, PC); }           \
  void __tsan_volatile_write##n(void* p) { seen(p, n, true, PC); }           \
  void __tsan_unaligned_volatile_read##n(void* p) { seen(p, n, false, PC); } \
  void __tsan_unaligned_volatile_write##n(void* p) { seen(p, n, true, PC); } \
  void __tsan_read_write##n(void* p) {                                       \
    seen(p, n, false, PC);                                                   \
    seen(p, n, true, PC);                                                    \
  }
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
#undef SIMT_HOOKS
void __tsan_read_range(void* p, size_t n) { seen(p, n, false, PC); }
void __tsan_write_range(void* p, size_t n) { seen(p, n, true, PC); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  seen(from, n, false, PC);
  seen(to, n, true, PC);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  seen(from, n, false, PC);
  seen(to, n, true, PC);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  seen(to, n, true, PC);
  return memset(to, value, n);
}
#undef PC
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Atomics of the instrumented test code itself (std::atomic, statics, shared_ptr): done, not checked. Kernels use the
// CUDA names, which report themselves.
#define SIMT_FETCH(bits, operation)                                                                           \
  uint##bits##_t __tsan_atomic##bits##_fetch_##operation(volatile uint##bits##_t* p, uint##bits##_t v, int) { \
    return __atomic_fetch_##operation(p, v, __ATOMIC_SEQ_CST);                                                \
  }
#define SIMT_ATOMICS(bits)                                                                                           \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* p, int) {                                 \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                                     \
  }                                                                                                                  \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* p, uint##bits##_t v, int) {                              \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                                        \
  }                                                                                                                  \
  uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t* p, uint##bits##_t v, int) {                 \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                              \
  }                                                                                                                  \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile uint##bits##_t* p, uint##bits##_t* e, uint##bits##_t v, \
                                                    int, int) {                                                      \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                          \
  }                                                                                                                  \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile uint##bits##_t* p, uint##bits##_t* e, uint##bits##_t v,   \
                                                  int, int) {                                                        \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                          \
  }                                                                                                                  \
  SIMT_FETCH(bits, add) SIMT_FETCH(bits, sub) SIMT_FETCH(bits, and) SIMT_FETCH(bits, or) SIMT_FETCH(bits, xor)
SIMT_ATOMICS(8)
SIMT_ATOMICS(16)
SIMT_ATOMICS(32)
SIMT_ATOMICS(64)
void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}
}
