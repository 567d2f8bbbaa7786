// The update of AdamW (csrc/train/optimizer.h) for float on the CPU, in one pass: gradient, weight and moments are read once, the last
// three written once. Pointers and sizes only; adamw_cpu.cpp is compiled once an instruction set.
#pragma once
#include <cstdint>

namespace isentrope::train {

// One update of a tensor. All as float, computed from its step and the configuration in double.
struct AdamwRule {
  float gradient_scale;       // clipping: g is the gradient times this
  float decay;                // 1 - η decay
  float rate1, beta2, rate2;  // 1 - β₁, β₂, 1 - β₂
  float step_size;            // η / (1 - β₁ᵗ)
  float root_correction;      // √(1 - β₂ᵗ)
  float eps;
};

// `count` numbers of a tensor, one run of a thread.
struct AdamwRun {
  AdamwRule rule;
  int64_t count;
  const float* gradient;           // [count]
  float *weight, *first, *second;  // [count]
};

// m ← m + (1-β₁)(g - m),  v ← β₂ v + (1-β₂) g²,  w ← decay · w - step_size · m / (√v / root_correction + eps)
void adamw(const AdamwRun& run);

}  // namespace isentrope::train
