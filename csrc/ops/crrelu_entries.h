// What crrelu gives the dispatcher: the functions that library.cpp and library_cuda.cpp register. Shapes: ops.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <tuple>

#include "kernels/crrelu.h"

namespace isentrope::ops {

using at::Tensor;

Tensor crrelu_autograd(const Tensor& x, const Tensor& epsilon);
Tensor crrelu_meta(const Tensor& x, const Tensor& epsilon);
Tensor crrelu_cpu(const Tensor& x, const Tensor& epsilon);
Tensor crrelu_run(const Tensor& x, const Tensor& epsilon, void (*launch)(const kernels::CrreluForward&));
// (dx, depsilon [1])
std::tuple<Tensor, Tensor> crrelu_backward_meta(const Tensor& dy, const Tensor& x, const Tensor& epsilon);
std::tuple<Tensor, Tensor> crrelu_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& epsilon);
std::tuple<Tensor, Tensor> crrelu_backward_run(const Tensor& dy, const Tensor& x, const Tensor& epsilon,
                                               void (*launch)(const kernels::CrreluBackward&));

}  // namespace isentrope::ops
