// The short causal convolution of recurrent mixers.
#pragma once
#include <ATen/core/Tensor.h>

namespace isentrope::model {

using at::Tensor;

// y_n = Σ_l w_{K−1−l} ⊙ x_{n−l} over the l < K for which token n − l is of the same sequence: x [N, channels], weight [channels, 1, K],
// position [N] int64, of each token in its sequence. float and double on the CPU: own loops, whose results do not depend on the
// number of threads; elsewhere ATen. Gradients of first order for x and weight.
Tensor short_convolution(const Tensor& x, const Tensor& weight, const Tensor& position);

// The same of B sequences that go on from tail [B, K − 1, channels], the inputs before x [B, T, channels]; tail becomes the last inputs.
Tensor continued_convolution(const Tensor& x, const Tensor& weight, Tensor& tail);

// The same of one token x [channels], with taps [K, channels], K ≥ 2, and a SiLU behind it → y [channels]. from, to [K − 1, channels]: the
// inputs before it and, which may be the same, those of the next, the oldest first.
void convolve_token(int64_t channels, int64_t K, const float* taps, const float* x, const float* from, float* to,
                    float* y);

}  // namespace isentrope::model
