// The inside of the SIMT machine, shared by the files of kernels/simt.
#pragma once
#include <cstdarg>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/simt/fiber.h"
#include "kernels/simt/simt.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace isentrope::simt {

// ---- vector clocks (FastTrack, Flanagan and Freund, PLDI 2009) --------------------------------------------------------
// What a thread knows of the others is a vector shared by all who left the same barrier, and its own counter.
using Clocks = std::shared_ptr<const std::vector<uint32_t>>;

// Joins the knowledge of the threads that meet at one barrier.
class Join {
 public:
  void add(const Clocks& known, int thread, uint32_t clock, int threads);
  Clocks take() { return std::move(joined_); }

 private:
  std::shared_ptr<std::vector<uint32_t>> joined_;
  const void* last_ = nullptr;  // the vector joined last: the next thread mostly brings the same
};

// ---- one block on one OS thread ---------------------------------------------------------------------------------------

enum class State : uint8_t { kReady, kInWarp, kAtBarrier, kDone };

struct PendingCopy {
  char* to;
  const char* from;
  unsigned bytes, valid;
  uint64_t group;
  const char* file;  // where it started
  int line;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  int linear, lane, warp;
  State state;
  const char *what, *file;  // where it waits
  int line;
  unsigned mask;
  Clocks known;
  uint32_t clock;
  std::vector<PendingCopy> copies;
  uint64_t group;
};

enum class WarpOp : uint8_t { kSync, kShuffle, kBallot, kLdmatrix, kMma };

// Lanes that meet in one warp operation; groups of disjoint masks may be under way at once.
struct Group {
  bool used = false;
  unsigned mask, arrived;
  WarpOp op;
  int parameter;
  const char* file;
  int line;
  void* arguments[32];
};
using WarpFunction = void (*)(const Group&);
struct Warp {
  Group groups[32];
  int used = 0;
  unsigned exited = 0;
};

struct Barrier {
  int arrived = 0, expected = 0, votes = 0;
  int result[3] = {0, 0, 0};  // by Vote, of the last release
  const char* file = nullptr;
  int line = 0;
  std::vector<Thread*> waiting;
  Join join;
};

struct Region {  // of shared memory
  const void* key;
  size_t offset, bytes;
  const char* name;
};

struct Worker {
  Fiber main;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Barrier barriers[16];
  std::vector<Thread*> ready;  // a ring, a power of two long
  size_t ready_first = 0, ready_count = 0;
  Thread* current = nullptr;
  int alive = 0;
  uint32_t block = 0;
  uint64_t random = 0;
  void (*body)(const void*) = nullptr;
  const void* closure = nullptr;
  size_t closure_bytes = 0;

  char* shared = nullptr;  // [kSharedArena]
  size_t shared_dynamic = 0, shared_used = 0, shared_static = 0;
  std::vector<Region> regions;

  bool checked = false, failed = false;
  char failure[1024];  // a fiber that fails is abandoned, so it may own no string
  Statistics statistics;
  std::vector<std::string> reports;
  std::set<std::string> reported;
};
extern __thread Worker* worker;

// 227 KB and the gaps between static arrays that make an overrun visible.
constexpr size_t kSharedArena = 256 << 10;
constexpr size_t kSharedGap = 64;

// Ends the block with a report. Called on a fiber.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Adds a report, once a key, and goes on.
void report(const std::string& key, const std::string& text);
std::string name_of(const Thread& thread);
const char* short_path(const char* file);  // the last two components

// Puts t at the end of the ring of those that can run.
void make_ready(Worker& w, Thread* t);
// The current thread waits, at file and line for what, until another makes it ready.
void wait_here(Worker& w, State state, const char* what, unsigned mask, const char* file, int line);
void lane_exited(Worker& w, const Thread& t);

// Lets the lanes of mask meet; the last to arrive calls function for all.
void warp_operation(unsigned mask, WarpOp op, void* argument, WarpFunction function, int parameter, const char* file,
                    int line);

// ---- the checker ------------------------------------------------------------------------------------------------------

// True while kernel code runs in a checked launch: the hooks look at accesses then. The machine's own code must switch
// it off, since the linker may give it the instrumented copy of an inline function of the standard library. A fiber
// waits inside a Quiet, so the flag is right again when it goes on.
extern __thread bool checking;
class Quiet {
 public:
  Quiet() : before_(checking) { checking = false; }
  ~Quiet() { checking = before_; }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  bool before_;
};

void checker_begin_launch(Worker& w);
void checker_begin_block(Worker& w);
void checker_allocate_shared(size_t offset, size_t bytes);
// An asynchronous copy takes aim at (in_flight) or lands on (not in_flight) shared memory.
void checker_copy_started(const void* to, size_t bytes, const void* from, size_t valid, const void* pc);
void checker_copy_landed(const void* to, size_t bytes);
void checker_read_shared(Thread& as, const void* p, size_t bytes, const void* pc);
// File and line of a code address, inlined callers included: "kernels/a.cu:12 < kernels/b.h:7".
std::string source_of(const void* pc);

}  // namespace isentrope::simt
