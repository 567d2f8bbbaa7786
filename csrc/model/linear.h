// The product with a weight, of which a decoder mostly consists.
#pragma once
#include <ATen/core/Tensor.h>

namespace isentrope::model {

// x [N, K], weight [M, K] → x · weightᵀ [N, M]; gradients of first order for both.
// Float and double on the CPU: own kernels, in which every element is one sum in a fixed order. So no bit of
// a row, or of a gradient, depends on the number of threads, nor a row on the rows beside it; the BLAS in
// torch promises neither. Elsewhere torch's linear.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight);

}  // namespace isentrope::model
