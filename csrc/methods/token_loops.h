// What the loops over tokens of csrc/methods/*_cpu.cpp share. For files that are compiled once for every instruction set.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "csrc/methods/kth.h"
#include "csrc/methods/weight_cpu.h"
#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/grpo_blocks.h"  // exponential(), whose float form makes vectors, and kLanes

namespace isentrope::methods {
namespace CPU_CAPABILITY {
namespace {

using ops::for_tasks;
using ops::CPU_CAPABILITY::exponential;
using ops::CPU_CAPABILITY::kLanes;

constexpr int64_t kBlock = 512;  // tokens at once: a handful of arrays of them stay in the first-level cache
// exp of less is taken as exp of this: the float form makes 2^n of its bits, and nothing that small counts beside 1.
constexpr double kLeastExponent = -80;

// Calls function(T()) for the type of the arrays.
template <class Function>
void with_type(const TokenRows& p, Function&& function) {
  if (p.wide)
    function(double());
  else
    function(float());
}

// body(begin, end) over all tokens, in chunks, on torch's threads.
template <class Body>
void for_chunks(const TokenRows& p, const Body& body) {
  constexpr int64_t kChunk = 32768;
  const int64_t size = p.size();
  for_tasks((size + kChunk - 1) / kChunk, [&](int64_t i) { body(i * kChunk, std::min((i + 1) * kChunk, size)); });
}

inline const uint8_t* flags(const bool* mask) { return reinterpret_cast<const uint8_t*>(mask); }

// Whether one of the flags [count], each 0 or 1, is set, and whether all are. Completions are padded: of most blocks all tokens count or none,
// and one of padding is passed over.
inline bool any_flag(const uint8_t* flag, int64_t count) {
  uint8_t any = 0;
  for (int64_t i = 0; i < count; ++i) any |= flag[i];
  return any != 0;
}
inline bool all_flags(const uint8_t* flag, int64_t count) {
  uint8_t all = 1;
  for (int64_t i = 0; i < count; ++i) all &= flag[i];
  return all != 0;
}
template <class T>
const T* of(const void* x, int64_t at = 0) {
  return static_cast<const T*>(x) + at;
}

// Adds x(0), …, x(count − 1) to lanes, number i to lane i mod kLanes: the order of a sum is the same for every vector length.
template <class A, class Function>
inline __attribute__((always_inline)) void add(int64_t count, A* __restrict lanes, const Function& x) {
  int64_t first = 0;
  for (; first + kLanes <= count; first += kLanes)
    for (int i = 0; i < kLanes; ++i) lanes[i] += x(first + i);
  for (int i = 0; first + i < count; ++i) lanes[i] += x(first + i);
}
template <class T, class Function>
inline __attribute__((always_inline)) void raise(int64_t count, T* __restrict lanes, const Function& x) {
  int64_t first = 0;
  for (; first + kLanes <= count; first += kLanes)
    for (int i = 0; i < kLanes; ++i) lanes[i] = x(first + i) > lanes[i] ? x(first + i) : lanes[i];
  for (int i = 0; first + i < count; ++i) lanes[i] = x(first + i) > lanes[i] ? x(first + i) : lanes[i];
}
// The same of at most kBlock numbers, of those alone whose flag is set: chosen first, since the compiler makes no vectors of a choice among lanes.
template <class T, class Function>
inline __attribute__((always_inline)) void raise_marked(int64_t count, const uint8_t* mask, T* __restrict lanes,
                                                        const Function& x) {
  T chosen[kBlock];
  for (int64_t i = 0; i < count; ++i) chosen[i] = mask[i] != 0 ? x(i) : -std::numeric_limits<T>::infinity();
  raise(count, lanes, [&](int64_t i) { return chosen[i]; });
}
template <class T, class Function>
inline __attribute__((always_inline)) void add_marked(int64_t count, const uint8_t* mask, double* __restrict lanes,
                                                      const Function& x) {
  T chosen[kBlock];
  for (int64_t i = 0; i < count; ++i) chosen[i] = mask[i] != 0 ? x(i) : T(0);
  add(count, lanes, [&](int64_t i) { return static_cast<double>(chosen[i]); });
}
template <class T>
T most(const T* lanes) {
  T value = lanes[0];
  for (int i = 1; i < kLanes; ++i) value = lanes[i] > value ? lanes[i] : value;
  return value;
}
inline double total(const double* lanes) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// body(begin, end) over the runs of blocks of a chunk of which a token counts; p.factor ← 0 over the others.
template <class T, class Loop, class Body>
void for_marked(const Loop& p, int64_t begin, int64_t end, const Body& body) {
  int64_t first = begin;  // of the run, which ends before at
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = std::min(kBlock, end - at);
    if (any_flag(flags(p.mask) + at, count)) continue;
    if (first < at) body(first, at);
    std::fill_n(static_cast<T*>(p.factor) + at, count, T(0));
    first = at + count;
  }
  if (first < end) body(first, end);
}

// An entry of csrc/methods/weight_cpu.h from the loop over a chunk, or over a row, of one type; a loop over marked tokens makes
// p.factor [rows, length] alone.
#define ISENTROPE_CHUNKS(name, Loop)                                         \
  void name##_on_cpu(const Loop& p) {                                        \
    for_chunks(p, [&](int64_t begin, int64_t end) {                          \
      with_type(p, [&](auto type) { name<decltype(type)>(p, begin, end); }); \
    });                                                                      \
  }
#define ISENTROPE_MARKED(name, Loop)                                                                 \
  void name##_on_cpu(const Loop& p) {                                                                \
    for_chunks(p, [&](int64_t begin, int64_t end) {                                                  \
      with_type(p, [&](auto type) {                                                                  \
        using T = decltype(type);                                                                    \
        for_marked<T>(p, begin, end, [&](int64_t first, int64_t last) { name<T>(p, first, last); }); \
      });                                                                                            \
    });                                                                                              \
  }
#define ISENTROPE_ROWS(name, Loop)                                                                           \
  void name##_on_cpu(const Loop& p) {                                                                        \
    for_tasks(p.rows, [&](int64_t row) { with_type(p, [&](auto type) { name<decltype(type)>(p, row); }); }); \
  }

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace isentrope::methods
