// Warp operations of the SIMT machine: lanes of one mask meet, the last to arrive computes for all.
#include "kernels/simt/machine.h"

namespace isentrope::simt {

static const char* name_of(WarpOp op) {
  static const char* const names[] = {"__syncwarp", "shuffle", "ballot", "ldmatrix", "mma"};
  return names[static_cast<int>(op)];
}

// Lanes of the warp that were launched: the last warp of a block may be short.
static unsigned existing_lanes(const Worker& w, int warp) {
  const int lanes = static_cast<int>(w.threads.size()) - warp * 32;
  return lanes >= 32 ? ~0u : (1u << lanes) - 1;
}

static bool complete(const Warp& warp, const Group& g) { return ((g.mask ^ g.arrived) & ~warp.exited) == 0; }

static void finish_group(Worker& w, int warp_index, Group& g, WarpFunction function) {
  Warp& warp = w.warps[warp_index];
  const bool aligned = g.op == WarpOp::kLdmatrix || g.op == WarpOp::kMma;
  if (aligned && (g.arrived & g.mask) != ~0u)
    fail("EXITED LANES: %s at %s:%d needs all 32 lanes, has %08x", name_of(g.op), short_path(g.file), g.line,
         g.arrived);
  if (function) function(g);
  if (g.op == WarpOp::kSync && w.checked) {
    Join join;
    const auto lane = [&](unsigned mask) -> Thread& { return *w.threads[warp_index * 32 + __builtin_ctz(mask)]; };
    for (unsigned m = g.arrived; m; m &= m - 1)
      join.add(lane(m).known, lane(m).linear, lane(m).clock++, static_cast<int>(w.threads.size()));
    const Clocks joined = join.take();
    for (unsigned m = g.arrived; m; m &= m - 1) lane(m).known = joined;
  }
  g.used = false;
  --warp.used;
  for (unsigned m = g.arrived; m; m &= m - 1) {
    Thread* t = w.threads[warp_index * 32 + __builtin_ctz(m)].get();
    if (t != w.current) make_ready(w, t);
  }
}

static Group& find_group(Worker& w, Warp& warp, unsigned mask, WarpOp op, int parameter, const char* file, int line) {
  const bool aligned = op == WarpOp::kLdmatrix || op == WarpOp::kMma;
  Group* free = nullptr;
  for (Group& g : warp.groups) {
    if (!g.used) {
      if (!free) free = &g;
      if (warp.used == 0) break;
      continue;
    }
    if (!(g.mask & mask)) continue;
    if (g.mask != mask)
      fail("OVERLAPPING MASKS: %s with mask %08x at %s:%d, while lanes wait in %s with mask %08x at %s:%d", name_of(op),
           mask, short_path(file), line, name_of(g.op), g.mask, short_path(g.file), g.line);
    if (g.op != op || g.parameter != parameter || (aligned && (g.line != line || std::strcmp(g.file, file) != 0)))
      fail("DIVERGENT WARP: thread %d comes to %s at %s:%d, while lanes wait in %s at %s:%d", w.current->linear,
           name_of(op), short_path(file), line, name_of(g.op), short_path(g.file), g.line);
    return g;
  }
  *free = Group{true, mask, 0, op, parameter, file, line, {}};
  ++warp.used;
  return *free;
}

void warp_operation(unsigned mask, WarpOp op, void* argument, WarpFunction function, int parameter, const char* file,
                    int line) {
  const Quiet quiet;
  Worker& w = *worker;
  Thread& t = *w.current;
  Warp& warp = w.warps[t.warp];
  ++w.statistics.warp_operations;
  if (!(mask >> t.lane & 1))
    fail("BAD MASK: thread %d is not in its own mask %08x of %s at %s:%d", t.linear, mask, name_of(op),
         short_path(file), line);
  Group& g = find_group(w, warp, mask & existing_lanes(w, t.warp), op, parameter, file, line);
  g.arrived |= 1u << t.lane;
  g.arguments[t.lane] = argument;
  if (complete(warp, g))
    finish_group(w, t.warp, g, function);
  else
    wait_here(w, State::kInWarp, name_of(op), mask, file, line);
}

void sync_warp(unsigned mask, const char* file, int line) {
  warp_operation(mask, WarpOp::kSync, nullptr, nullptr, 0, file, line);
}

namespace {
struct ShuffleArgument {
  uint64_t value, result;
  int operand, width;
};
}  // namespace

static void shuffle_lanes(const Group& g) {
  for (unsigned m = g.arrived; m; m &= m - 1) {
    const int lane = __builtin_ctz(m);
    auto& a = *static_cast<ShuffleArgument*>(g.arguments[lane]);
    const int first = lane & ~(a.width - 1), end = first + a.width;
    int from = lane;
    switch (static_cast<Shuffle>(g.parameter)) {
      case Shuffle::kIndex:
        from = first + (a.operand & (a.width - 1));
        break;
      case Shuffle::kUp:
        from = lane - a.operand < first ? lane : lane - a.operand;
        break;
      case Shuffle::kDown:
        from = lane + a.operand >= end ? lane : lane + a.operand;
        break;
      case Shuffle::kXor:
        from = (lane ^ a.operand) >= end ? lane : lane ^ a.operand;
        break;
    }
    if (!(g.arrived >> from & 1))
      fail("INACTIVE LANE: lane %d of the shuffle at %s:%d reads lane %d, which takes no part in it", lane,
           short_path(g.file), g.line, from);
    a.result = static_cast<ShuffleArgument*>(g.arguments[from])->value;
  }
}

uint64_t shuffle(unsigned mask, uint64_t bits, Shuffle kind, int operand, int width, const char* file, int line) {
  ShuffleArgument a{bits, 0, operand, width};
  warp_operation(mask, WarpOp::kShuffle, &a, shuffle_lanes, static_cast<int>(kind), file, line);
  return a.result;
}

namespace {
struct BallotArgument {
  bool predicate;
  unsigned result;
};
}  // namespace

static void count_ballot(const Group& g) {
  unsigned result = 0;
  for (unsigned m = g.arrived; m; m &= m - 1)
    if (static_cast<BallotArgument*>(g.arguments[__builtin_ctz(m)])->predicate) result |= m & -m;
  for (unsigned m = g.arrived; m; m &= m - 1)
    static_cast<BallotArgument*>(g.arguments[__builtin_ctz(m)])->result = result;
}

unsigned ballot(unsigned mask, bool predicate, const char* file, int line) {
  BallotArgument a{predicate, 0};
  warp_operation(mask, WarpOp::kBallot, &a, count_ballot, 0, file, line);
  return a.result;
}

static WarpFunction function_of(WarpOp op) {
  return op == WarpOp::kShuffle ? shuffle_lanes : op == WarpOp::kBallot ? count_ballot : nullptr;
}

// The lanes that wait for this one go on without it.
void lane_exited(Worker& w, const Thread& t) {
  Warp& warp = w.warps[t.warp];
  warp.exited |= 1u << t.lane;
  for (Group& g : warp.groups)
    if (warp.used && g.used && complete(warp, g)) finish_group(w, t.warp, g, function_of(g.op));
}

}  // namespace isentrope::simt
