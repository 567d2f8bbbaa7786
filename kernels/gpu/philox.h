// Philox4x32-10, the counter-based generator of every random draw here (Salmon, Moraes, Dror, Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A draw is a pure function of (key, counter): it does
// not depend on the order of draws, the number of threads or the device. Plain C++, for host and device alike.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define ISENTROPE_HOST_DEVICE __host__ __device__
#else
// Always inlined, so that a copy compiled for a wide vector unit is never linked in place of a narrow one.
#define ISENTROPE_HOST_DEVICE __attribute__((always_inline))
#endif

namespace isentrope {

struct PhiloxBlock {
  uint32_t word[4];
};

// 128 random bits for a 64-bit key and a 128-bit counter (low, high).
ISENTROPE_HOST_DEVICE inline PhiloxBlock philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace isentrope
