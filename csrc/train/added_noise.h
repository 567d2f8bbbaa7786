// Gaussian noise on gradients (optimizer.noise), as pointers and sizes; added_noise_cpu.cpp is compiled once an instruction set.
//
//   g ← scale · g + deviation · n,   n normal by Box and Muller from Philox4x32-10 (kernels/gpu/philox.h)
//
// Element i of a tensor is drawn from (key, counter_high, i) alone: from block 16 ⌊i / 64⌋ + i mod 16, its number ⌊i mod 64 / 16⌋ of four. So no bit
// depends on how a tensor is cut into runs, on threads or on ranks. Uniform numbers have 23 bits: no draw is beyond 5.8 deviations,
// which one in 10⁸ would be.
#pragma once
#include <cstdint>

namespace isentrope::train {

inline constexpr double kMostDeviations = 5.8;
inline constexpr int64_t kNoiseGroup = 64;  // elements that are drawn together

struct NoiseRun {
  uint64_t key = 0, counter_high = 0;  // of the update; of the tensor
  float scale = 1, deviation = 0;
  int64_t first = 0, count = 0;  // elements of the tensor; first is a multiple of kNoiseGroup
  float* gradient = nullptr;     // [count], at element first
};

void add_noise(const NoiseRun& run);

}  // namespace isentrope::train
