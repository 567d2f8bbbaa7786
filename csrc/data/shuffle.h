// Random permutations of any length in constant memory.
#pragma once
#include <cstdint>

#include "csrc/data/random.h"

namespace isentrope::data {

// A permutation of 0 … n − 1 (n ≥ 1) fixed by (seed, epoch): a Feistel network on the smallest even number of
// bits that holds n − 1, walked until it falls below n (Black, Rogaway, "Ciphers with arbitrary finite
// domains", CT-RSA 2002). The walk takes fewer than four steps on average.
class Shuffle {
 public:
  Shuffle(uint64_t seed, uint64_t epoch, uint64_t n) : n_(n) {
    while (half_ < 31 && (uint64_t{1} << (2 * half_)) < n) ++half_;
    Stream stream(seed, Purpose::shuffle, epoch);
    const uint64_t low = stream.bits();
    key_ = (uint64_t{stream.bits()} << 32) | low;
  }

  uint64_t operator()(uint64_t i) const {
    do i = network(i);
    while (i >= n_);
    return i;
  }

 private:
  // Four rounds make a network that cannot be told from a random permutation (Luby, Rackoff); few bits need
  // more.
  static constexpr uint64_t kRounds = 8;

  uint64_t network(uint64_t i) const {
    const uint64_t mask = (uint64_t{1} << half_) - 1;
    uint64_t left = i >> half_, right = i & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (philox(key_, right, round).word[0] & mask);
      left = right;
      right = next;
    }
    return (left << half_) | right;
  }

  uint64_t n_, key_;
  int half_ = 1;  // bits of half a block
};

}  // namespace isentrope::data
