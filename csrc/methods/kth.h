// The k-th largest of many numbers, exact, in linear time: what quantiles and top shares are made of. csrc/methods/kth_cpu.cpp has
// the loops, compiled once an instruction set. Standard library only.
#pragma once
#include <cstdint>
#include <type_traits>

namespace isentrope::methods {

template <class T>
using OrderedBits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// A number as an unsigned integer of the same order, NaN above all others, no number 0.
template <class T>
inline __attribute__((always_inline)) OrderedBits<T> ordered(T x) {
  using Bits = OrderedBits<T>;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(T) - 1);
  const Bits bits = __builtin_bit_cast(Bits, x + T(0));  // −0 is 0
  const Bits key = bits & kSign ? ~bits : bits | kSign;
  return x != x ? ~Bits{0} : key;
}

// Of the numbers x[i] with mask[i] (null: all), n in all: the k-th largest, and how many equal to it are among the k largest.
// 1 ≤ k ≤ how many there are. Two passes: the second gathers what lies between two keys of a sample, in which the k-th is looked
// for; where the sample misleads, all are gone over. What is found depends on the numbers alone.
template <class T>
struct Kth {
  OrderedBits<T> key;  // ordered() of it
  int64_t equal;       // of those that compare equal, so many belong to the k largest

  static Kth largest(const T* x, const bool* mask, int64_t n, int64_t k);
};

// How many of mask [n] are set.
int64_t count_marked(const bool* mask, int64_t n);

// The loop behind them.
struct KthSearch {
  const void* x = nullptr;     // [n]
  const bool* mask = nullptr;  // [n] or null
  int64_t n = 0, k = 0;
  bool wide = false;  // double, else float
  uint64_t key = 0;   // found
  int64_t equal = 0;
};
#define ISENTROPE_DECLARE(ISA)                              \
  namespace ISA {                                           \
  void kth_largest_on_cpu(KthSearch* search);               \
  int64_t count_marked_on_cpu(const bool* mask, int64_t n); \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::methods
