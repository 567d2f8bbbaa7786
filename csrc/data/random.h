// Named streams of random numbers. A stream is fixed by (seed, purpose, and up to three indices such as step, prompt
// and sample); its n-th draw is a pure function of those and n, so that a run that was killed and resumed, or cut into
// other batches, draws the same numbers.
#pragma once
#include <cstdint>

#include "kernels/gpu/philox.h"

namespace isentrope::data {

enum class Purpose : uint64_t {
  initialisation = 1,
  example,
  noise,
  shuffle,
  rollout,
  selection,
  evaluation,
  window,
  gradient,
  prefix,
  mask
};

class Stream {
 public:
  Stream(uint64_t seed, Purpose purpose, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0)
      : key_(mix(mix(seed) ^ static_cast<uint64_t>(purpose))), high_(mix(mix(mix(key_ ^ a) ^ b) ^ c)) {}

  uint32_t bits() {
    if (used_ == 4) {
      block_ = philox(key_, low_++, high_);
      used_ = 0;
    }
    return block_.word[used_++];
  }
  // Uniform in (0, 1): never 0, so that its logarithm is finite.
  double uniform() { return (static_cast<double>(bits()) + 0.5) * 0x1p-32; }
  // Uniform in 0 … n − 1, without bias (Lemire's multiplication with rejection).
  uint32_t below(uint32_t n) {
    uint64_t product = static_cast<uint64_t>(bits()) * n;
    for (const uint32_t floor = (0u - n) % n; static_cast<uint32_t>(product) < floor;)
      product = static_cast<uint64_t>(bits()) * n;
    return static_cast<uint32_t>(product >> 32);
  }

 private:
  // The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64 bits that mixes them all.
  static uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }

  uint64_t key_, high_, low_ = 0;
  PhiloxBlock block_{};
  int used_ = 4;
};

}  // namespace isentrope::data
