// Whether all numbers of a tensor are finite.
#pragma once
#include <torch/types.h>

namespace isentrope::train {

// Reads a float32 tensor on the CPU once, where torch::isfinite(x).all() writes three of its size: it is asked of all weights in every step.
bool all_finite(const torch::Tensor& x);
// The same of `size` numbers, in the calling thread.
bool all_finite(const float* x, int64_t size);

}  // namespace isentrope::train
