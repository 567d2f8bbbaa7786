#include "csrc/train/composition_pieces.h"

namespace isentrope::train::CPU_CAPABILITY {

void compose_sum(const ComposePiece& p) {
  for (int64_t i = 0; i < p.count; ++i) p.out[i] = p.base[i];
  for (int64_t v = 0; v < p.vectors; ++v) {
    const float *base = p.base, *other = p.others[v];
    float* out = p.out;
    const float factor = p.factors[v];
#pragma omp simd
    for (int64_t i = 0; i < p.count; ++i) out[i] += factor * (other[i] - base[i]);
  }
}

void compose_products(const ComposePiece& p) {
  constexpr int64_t kLanes = 32;
  for (int64_t v = 0; v < p.vectors; ++v) {
    const float *base = p.base, *other = p.others[v], *gradient = p.gradient;
    float lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= p.count; i += kLanes)
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane)
        lanes[lane] += gradient[i + lane] * (other[i + lane] - base[i + lane]);
    for (int64_t lane = 0; i < p.count; ++i, ++lane) lanes[lane] += gradient[i] * (other[i] - base[i]);
    double sum = 0;
    for (const float lane : lanes) sum += lane;
    p.products[v] = sum;
  }
}

}  // namespace isentrope::train::CPU_CAPABILITY
