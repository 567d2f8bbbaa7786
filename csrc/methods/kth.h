// The k-th largest of many numbers, exact, in two passes over them (float) or four (double): what quantiles and top shares are made
// of. Standard library only.
#pragma once
#include <bit>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace isentrope::methods {

// A number as an unsigned integer of the same order, NaN above all others.
template <class T>
auto ordered(T x) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(T) - 1);
  if (x != x) return static_cast<Bits>(~Bits{0});
  const Bits bits = std::bit_cast<Bits>(x + T(0));  // −0 is 0
  return static_cast<Bits>((bits & kSign) ? ~bits : bits | kSign);
}

// Of the numbers x[i] with mask[i] (null: all), n in all: the k-th largest, and how many equal to it are among the k largest.
// 1 ≤ k ≤ how many there are.
template <class T>
struct Kth {
  decltype(ordered(T())) key;  // ordered() of it
  int64_t equal;               // of those that compare equal, so many belong to the k largest

  static Kth largest(const T* x, const bool* mask, int64_t n, int64_t k) {
    using Bits = decltype(ordered(T()));
    constexpr int kBits = 16;
    Bits prefix = 0;
    std::vector<int64_t> count(size_t{1} << kBits);
    for (int shift = 8 * sizeof(T) - kBits; shift >= 0; shift -= kBits) {
      std::fill(count.begin(), count.end(), 0);
      const bool first = shift == 8 * sizeof(T) - kBits;
      for (int64_t i = 0; i < n; ++i) {
        const Bits key = ordered(x[i]);
        if ((mask == nullptr || mask[i]) && (first || key >> (shift + kBits) == prefix >> (shift + kBits)))
          ++count[key >> shift & ((Bits{1} << kBits) - 1)];
      }
      size_t bin = count.size() - 1;
      for (; count[bin] < k; --bin) k -= count[bin];
      prefix |= static_cast<Bits>(bin) << shift;
    }
    return {prefix, k};
  }
};

}  // namespace isentrope::methods
