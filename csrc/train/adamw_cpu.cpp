#include <cmath>

#include "csrc/train/adamw.h"

namespace isentrope::train::CPU_CAPABILITY {

void adamw(const AdamwRun& run) {
  const AdamwRule& r = run.rule;
  const float* gradient = run.gradient;
  float *weight = run.weight, *first = run.first, *second = run.second;
#pragma omp simd
  for (int64_t i = 0; i < run.count; ++i) {
    const float g = gradient[i] * r.gradient_scale;
    const float m = first[i] + r.rate1 * (g - first[i]);
    const float v = r.beta2 * second[i] + r.rate2 * (g * g);
    first[i] = m;
    second[i] = v;
    weight[i] = weight[i] * r.decay - r.step_size * m / (std::sqrt(v) / r.root_correction + r.eps);
  }
}

}  // namespace isentrope::train::CPU_CAPABILITY
