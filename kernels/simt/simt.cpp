// Scheduling, barriers, shared memory and launches of the SIMT machine.
#include "kernels/simt/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <thread>

#include "kernels/simt/machine.h"

namespace isentrope::simt {

__thread Here here __attribute__((tls_model("initial-exec")));
__thread Worker* worker __attribute__((tls_model("initial-exec"))) = nullptr;
__thread bool checking __attribute__((tls_model("initial-exec"))) = false;
static thread_local Statistics last_statistics;

Config& config() {
  static Config current = [] {
    Config c;
    const char *order = std::getenv("SIMT_ORDER"), *seed = std::getenv("SIMT_SEED"),
               *threads = std::getenv("SIMT_THREADS");
    if (order) {
      const std::string name = order;
      if (name != "fifo" && name != "lifo" && name != "random")
        throw std::invalid_argument("SIMT_ORDER is " + name + "; wanted fifo, lifo or random");
      c.order = name == "fifo" ? Order::kFifo : name == "lifo" ? Order::kLifo : Order::kRandom;
    }
    if (seed) c.seed = std::strtoull(seed, nullptr, 10);
    if (threads) c.os_threads = std::max(1, std::atoi(threads));
    return c;
  }();
  return current;
}

const Statistics& statistics() { return last_statistics; }

// ---- reports ---------------------------------------------------------------------------------------------------------

const char* short_path(const char* file) {
  const char *last = file, *before = file;
  for (const char* c = file; *c; ++c)
    if (*c == '/') before = last, last = c + 1;
  return before;
}

std::string name_of(const Thread& thread) {
  return "block " + std::to_string(worker->block) + " thread " + std::to_string(thread.linear);
}

void report(const std::string& key, const std::string& text) {
  Worker& w = *worker;
  if (w.reported.insert(key).second && static_cast<int>(w.reports.size()) < config().max_reports)
    w.reports.push_back(text);
}

void fail(const char* format, ...) {
  Worker& w = *worker;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(w.failure, sizeof w.failure, format, arguments);
  va_end(arguments);
  w.failed = true;
  switch_fiber(w.current->fiber, w.main, true);
  std::abort();  // nobody switches back to a fiber that failed
}

static void report_deadlock(Worker& w) {
  std::map<std::string, std::vector<int>> places;
  for (const auto& t : w.threads) {
    std::string place = "exited";
    if (t->state == State::kAtBarrier || t->state == State::kInWarp) {
      place = std::string(t->what) + " at " + short_path(t->file) + ":" + std::to_string(t->line);
      char mask[32];
      std::snprintf(mask, sizeof mask, " (mask %08x)", t->mask);
      if (t->state == State::kInWarp) place += mask;
    }
    places[place].push_back(t->linear);
  }
  std::string text = "DEADLOCK in block " + std::to_string(w.block) + ":";
  for (const auto& [place, threads] : places)
    text += "\n    " + std::to_string(threads.size()) + " threads (" + std::to_string(threads.front()) + " to " +
            std::to_string(threads.back()) + "): " + place;
  report("deadlock", text);
}

// ---- scheduling ------------------------------------------------------------------------------------------------------

void make_ready(Worker& w, Thread* t) {
  t->state = State::kReady;
  w.ready[(w.ready_first + w.ready_count++) & (w.ready.size() - 1)] = t;
}

static Thread* take_ready(Worker& w) {
  const size_t wrap = w.ready.size() - 1;
  if (config().order != Order::kFifo && w.ready_count > 1) {
    size_t pick = w.ready_count - 1;
    if (config().order == Order::kRandom) {
      w.random = w.random * 6364136223846793005ull + 1442695040888963407ull;  // Knuth's MMIX generator
      pick = (w.random >> 33) % w.ready_count;
    }
    std::swap(w.ready[w.ready_first], w.ready[(w.ready_first + pick) & wrap]);
  }
  Thread* t = w.ready[w.ready_first];
  w.ready_first = (w.ready_first + 1) & wrap;
  --w.ready_count;
  return t;
}

// Leaves the current thread, which waits or is done, for the next ready one; with none left, for the OS thread's own
// fiber, which ends the block.
static void run_next(Worker& w, bool finished = false) {
  Thread* self = w.current;
  if (w.ready_count == 0) {
    switch_fiber(self->fiber, w.main, finished);
    return;
  }
  Thread* next = take_ready(w);
  ++w.statistics.switches;
  w.current = next;
  here.thread = next->index;
  switch_fiber(self->fiber, next->fiber, finished);
}

void wait_here(Worker& w, State state, const char* what, unsigned mask, const char* file, int line) {
  Thread& t = *w.current;
  t.state = state;
  t.what = what;
  t.mask = mask;
  t.file = file;
  t.line = line;
  run_next(w);
}

// ---- barriers --------------------------------------------------------------------------------------------------------

static void release(Worker& w, Barrier& b) {
  const Clocks joined = b.join.take();
  b.result[static_cast<int>(Vote::kOr)] = b.votes > 0;
  b.result[static_cast<int>(Vote::kAnd)] = b.votes == b.arrived;
  b.result[static_cast<int>(Vote::kCount)] = b.votes;
  for (Thread* t : b.waiting) {
    if (w.checked) t->known = joined;
    if (t != w.current) make_ready(w, t);
  }
  b.waiting.clear();
  b.arrived = b.votes = 0;
  b.join = Join();
  ++w.statistics.barriers;
}

static void enter_barrier(int id, int threads, int vote, const char* file, int line) {
  const Quiet quiet;
  Worker& w = *worker;
  Thread& t = *w.current;
  if (id < 0 || id > 15 || threads % 32 != 0)
    fail("BAD BARRIER: id %d of %d threads at %s:%d; wanted an id of 0 to 15 and a multiple of 32", id, threads,
         short_path(file), line);
  Barrier& b = w.barriers[id];
  if (b.arrived == 0) {
    b.expected = threads;
    b.file = file;
    b.line = line;
  } else if (b.expected != threads) {
    fail("DIVERGENT BARRIER: %d threads of barrier %d were announced at %s:%d, %d by thread %d at %s:%d", b.expected,
         id, short_path(b.file), b.line, threads, t.linear, short_path(file), line);
  } else if (threads == 0 && (b.line != line || std::strcmp(b.file, file) != 0)) {
    fail("DIVERGENT BARRIER: block %u waits at %s:%d, thread %d comes to the one at %s:%d", w.block, short_path(b.file),
         b.line, t.linear, short_path(file), line);
  }
  if (w.checked) b.join.add(t.known, t.linear, t.clock++, static_cast<int>(w.threads.size()));
  b.waiting.push_back(&t);
  ++b.arrived;
  b.votes += vote != 0;
  if (b.arrived >= (threads ? threads : w.alive))
    release(w, b);
  else
    wait_here(w, State::kAtBarrier, "barrier", 0, file, line);
}

void barrier(int id, int threads, const char* file, int line) { enter_barrier(id, threads, 0, file, line); }

int barrier_vote(Vote vote, int predicate, const char* file, int line) {
  enter_barrier(0, 0, predicate, file, line);
  return worker->barriers[0].result[static_cast<int>(vote)];
}

// ---- shared memory ---------------------------------------------------------------------------------------------------

void* dynamic_shared() { return worker->shared; }

void* static_shared(const void* key, size_t bytes, size_t alignment, const char* name) {
  const Quiet quiet;
  Worker& w = *worker;
  for (const Region& r : w.regions)
    if (r.key == key) return w.shared + r.offset;
  alignment = std::max<size_t>(alignment, 16);
  const size_t offset = (w.shared_used + kSharedGap + alignment - 1) / alignment * alignment;
  w.shared_static += bytes;
  if (w.shared_static > 48 << 10 || offset + bytes + kSharedGap > kSharedArena)
    fail(
        "TOO MUCH SHARED MEMORY: static %s brings the block to %zu bytes beside %zu dynamic ones; wanted at most 48 KB "
        "static",
        name, w.shared_static, w.shared_dynamic);
  w.regions.push_back({key, offset, bytes, name});
  w.shared_used = offset + bytes;
  std::memset(w.shared + offset, 0xff, bytes);
  if (w.checked) checker_allocate_shared(offset, bytes);
  return w.shared + offset;
}

// ---- launch ----------------------------------------------------------------------------------------------------------

static void thread_main() {
  entered(worker->main);
  checking = worker->checked;
  worker->body(worker->closure);
  checking = false;
  Worker& w = *worker;
  Thread& t = *w.current;
  if (!t.copies.empty())
    fail("IN FLIGHT: block %u thread %d exits while its copy of %s:%d is under way (no copy_async_wait)", w.block,
         t.linear, short_path(t.copies[0].file), t.copies[0].line);
  t.state = State::kDone;
  --w.alive;
  lane_exited(w, t);
  for (Barrier& b : w.barriers)
    if (b.arrived && b.expected == 0 && b.arrived >= w.alive) release(w, b);
  run_next(w, true);
  std::abort();  // nobody switches back to a thread that is done
}

static void run_block(Worker& w, uint32_t block) {
  w.block = block;
  w.random = (config().seed * 0x9E3779B97F4A7C15ull) ^ block;
  w.failed = false;
  w.alive = static_cast<int>(w.threads.size());
  w.ready_first = w.ready_count = 0;
  w.regions.assign(1, {nullptr, 0, w.shared_dynamic, "dynamic"});
  w.shared_used = w.shared_dynamic;
  w.shared_static = 0;
  std::memset(w.shared, 0xff, w.shared_dynamic);
  if (w.checked) checker_begin_block(w);
  for (Warp& warp : w.warps) {
    warp.used = 0;
    warp.exited = 0;
    for (Group& g : warp.groups) g.used = false;
  }
  for (Barrier& b : w.barriers) b = Barrier();
  for (auto& t : w.threads) {
    t->known = nullptr;
    t->clock = 1;
    t->group = 0;
    t->copies.clear();
    prepare(t->fiber, thread_main);
    make_ready(w, t.get());
  }
  w.statistics.threads += w.threads.size();
  w.current = take_ready(w);
  here.thread = w.current->index;
  switch_fiber(w.main, w.current->fiber, false);
  checking = false;
  if (w.failed)
    report(w.failure, w.failure);
  else if (w.alive > 0)
    report_deadlock(w);
}

static void prepare_worker(Worker& w, dim3 block, size_t shared_bytes) {
  const unsigned count = block.x * block.y * block.z;
  w.shared_dynamic = shared_bytes;
  w.shared = static_cast<char*>(
      mmap(nullptr, kSharedArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (w.shared == MAP_FAILED) throw std::runtime_error("simt: no memory for a block's shared memory");
  w.warps.resize((count + 31) / 32);
  w.ready.resize(std::bit_ceil(count));
  for (unsigned i = 0; i < count; ++i) {
    w.threads.push_back(std::make_unique<Thread>());
    Thread& t = *w.threads.back();
    t.fiber.stack = take_stack();
    t.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    t.linear = static_cast<int>(i);
    t.lane = t.linear % 32;
    t.warp = t.linear / 32;
  }
}

static void add(Statistics& to, const Statistics& s) {
  to.threads += s.threads;
  to.switches += s.switches;
  to.barriers += s.barriers;
  to.warp_operations += s.warp_operations;
  to.mma += s.mma;
  to.ldmatrix += s.ldmatrix;
  to.copies += s.copies;
  to.bank_conflicts += s.bank_conflicts;
}

void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* closure,
            size_t closure_bytes, bool checked) {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const int os_threads = checked ? 1 : static_cast<int>(std::min<uint64_t>(config().os_threads, blocks));
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < os_threads; ++i) {
    workers.push_back(std::make_unique<Worker>());
    Worker& w = *workers.back();
    w.body = body;
    w.closure = closure;
    w.closure_bytes = closure_bytes;
    w.checked = checked;
    prepare_worker(w, block, shared_bytes);
  }
  // Worker i takes blocks i, i + n, ...: which OS thread runs a block never depends on timing.
  const auto work = [&](int i) {
    worker = workers[i].get();
    here.block_size = {block.x, block.y, block.z};
    here.grid_size = {grid.x, grid.y, grid.z};
    if (checked) checker_begin_launch(*worker);
    for (uint64_t b = i; b < blocks; b += os_threads) {
      here.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / (uint64_t{grid.x} * grid.y))};
      run_block(*worker, static_cast<uint32_t>(b));
    }
    worker = nullptr;
  };
  std::vector<std::thread> others;
  for (int i = 1; i < os_threads; ++i) others.emplace_back(work, i);
  work(0);
  for (auto& t : others) t.join();

  last_statistics = {};
  std::string text;
  for (const auto& w : workers) {
    add(last_statistics, w->statistics);
    for (const std::string& r : w->reports) text += (text.empty() ? "" : "\n") + r;
    for (const auto& t : w->threads) give_back_stack(t->fiber.stack);
    munmap(w->shared, kSharedArena);
  }
  if (!text.empty()) throw Failure(text);
}

}  // namespace isentrope::simt
