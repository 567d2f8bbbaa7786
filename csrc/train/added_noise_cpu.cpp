#include <algorithm>
#include <bit>
#include <cmath>

#include "csrc/train/added_noise.h"

namespace isentrope::train::CPU_CAPABILITY {
namespace {

constexpr int kLanes = kNoiseGroup / 4;

// ln u for 2^-24 ≤ u < 1: u = m 2^e with m in [√½, √2), ln m = 2 artanh((m − 1) / (m + 1)) by its series.
inline float log_of(float u) {
  const int32_t bits = std::bit_cast<int32_t>(u), e = (bits - 0x3f3504f3) >> 23;
  const float f = std::bit_cast<float>(bits - (e << 23)) - 1.0f, s = f / (2.0f + f), z = s * s;
  const float series = 1.0f + z * (1.0f / 3 + z * (1.0f / 5 + z * (1.0f / 7 + z * (1.0f / 9))));
  return static_cast<float>(e) * 0.693147181f + 2.0f * s * series;
}

// Four normal numbers a lane: out[k · kLanes + lane] of block first + lane.
void draw(uint64_t key, uint64_t first, uint64_t high, float* out) {
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    // kernels/gpu/philox.h, whose function the compiler makes no vectors of.
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    uint32_t c0 = static_cast<uint32_t>(first) + static_cast<uint32_t>(lane), c1 = static_cast<uint32_t>(first >> 32);
    uint32_t c2 = static_cast<uint32_t>(high), c3 = static_cast<uint32_t>(high >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<uint32_t>(p1);
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const uint32_t radii[2] = {c0, c2}, angles[2] = {c1, c3};
    for (int pair = 0; pair < 2; ++pair) {
      const float u = (static_cast<float>(static_cast<int32_t>(radii[pair] >> 9)) + 0.5f) * 0x1p-23f;
      const float radius = std::sqrt(-2.0f * log_of(u));
      // Two bits are the quarter of the turn, the others where in it, a in [−π/4, π/4).
      const uint32_t w = angles[pair], quarter = w >> 30;
      const float a = static_cast<float>(static_cast<int32_t>(w & 0x3fffffffu) - (1 << 29)) * (1.57079633f * 0x1p-30f);
      const float z = a * a;
      const float sine = a * (1.0f + z * (-1.0f / 6 + z * (1.0f / 120 + z * (-1.0f / 5040 + z * (1.0f / 362880)))));
      const float cosine =
          1.0f + z * (-0.5f + z * (1.0f / 24 + z * (-1.0f / 720 + z * (1.0f / 40320 + z * (-1.0f / 3628800)))));
      const float x = quarter & 1 ? -sine : cosine, y = quarter & 1 ? cosine : sine;
      const float signed_radius = quarter & 2 ? -radius : radius;
      out[2 * pair * kLanes + lane] = signed_radius * x;
      out[(2 * pair + 1) * kLanes + lane] = signed_radius * y;
    }
  }
}

}  // namespace

void add_noise(const NoiseRun& run) {
  float noise[kNoiseGroup];
  for (int64_t at = 0; at < run.count; at += kNoiseGroup) {
    const int64_t count = std::min(kNoiseGroup, run.count - at);
    draw(run.key, static_cast<uint64_t>((run.first + at) / 4), run.counter_high, noise);
    float* gradient = run.gradient + at;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) gradient[i] = gradient[i] * run.scale + run.deviation * noise[i];
  }
}

}  // namespace isentrope::train::CPU_CAPABILITY
