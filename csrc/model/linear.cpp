#include "csrc/model/linear.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "csrc/model/cpu_kernels.h"
#include "csrc/model/layers.h"

namespace isentrope::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of x that one task multiplies with the whole weight: a multiple of the tiles of every instruction set
// (12, 6, 4), small enough that they stay in the first-level cache for widths of a few hundred.
constexpr int64_t kRows = 48;
// Rows over which a weight's gradient is summed in registers before it goes to memory, and rows of that
// gradient which are visited together: both operands and the sums stay in the second-level cache at widths of
// a thousand.
constexpr int64_t kDepth = 384, kGradientRows = 96;

// c [rows, N] = a [rows, K] · b [K, N]; element (k, n) of b at b[k · k_stride + n · n_stride].
template <class T>
void multiply(int64_t rows, int64_t N, int64_t K, const T* a, const T* b, int64_t k_stride, int64_t n_stride,
              T* c) {
  const auto& kernels = cpu_kernels<T>();
  const Tensor packed = at::empty({packed_size(K, N, kernels.panel)}, c10::CppTypeToScalarType<T>::value);
  kernels.pack(K, N, b, k_stride, n_stride, packed.data_ptr<T>());
  at::parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kRows; row < std::min(end * kRows, rows); row += kRows)
      kernels.packed_product(std::min(kRows, rows - row), N, K, a + row * K, K, false, packed.data_ptr<T>(),
                             c + row * N, N, false);
  });
}

// dw [M, K] = dyᵀ x of dy [rows, M], x [rows, K]. Tasks are shares of dw's rows: the sums do not depend on
// them.
template <class T>
void weight_gradient(int64_t rows, int64_t M, int64_t K, const T* dy, const T* x, T* dw) {
  const auto& kernels = cpu_kernels<T>();
  at::parallel_for(0, (M + 11) / 12, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * 12, last = std::min(end * 12, M);
    const Tensor packed =
        at::empty({packed_size(kDepth, K, kernels.panel)}, c10::CppTypeToScalarType<T>::value);
    for (int64_t row = 0; row < rows; row += kDepth) {
      const int64_t depth = std::min(kDepth, rows - row);
      kernels.pack(depth, K, x + row * K, K, 1, packed.data_ptr<T>());
      for (int64_t m = first; m < last; m += kGradientRows)
        kernels.packed_product(std::min(kGradientRows, last - m), K, depth, dy + row * M + m, M, true,
                               packed.data_ptr<T>(), dw + m * K, K, row > 0);
    }
  });
}

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, const Tensor& weight_in) {
    const Tensor x = x_in.contiguous(), weight = weight_in.contiguous();
    const int64_t N = x.size(0), K = x.size(1), M = weight.size(0);
    Tensor y = at::empty({N, M}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "linear", [&] {
      multiply<scalar_t>(N, M, K, x.data_ptr<scalar_t>(), weight.data_ptr<scalar_t>(), 1, K,
                         y.data_ptr<scalar_t>());
    });
    ctx->save_for_backward({x, weight});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], dy = grads[0].contiguous();
    const int64_t N = x.size(0), K = x.size(1), M = weight.size(0);
    Tensor dx = at::empty_like(x), dweight = N > 0 ? at::empty_like(weight) : at::zeros_like(weight);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "linear_backward", [&] {
      multiply<scalar_t>(N, K, M, dy.data_ptr<scalar_t>(), weight.data_ptr<scalar_t>(), K, 1,
                         dx.data_ptr<scalar_t>());
      weight_gradient<scalar_t>(N, M, K, dy.data_ptr<scalar_t>(), x.data_ptr<scalar_t>(),
                                dweight.data_ptr<scalar_t>());
    });
    return {dx, dweight};
  }
};

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight) {
  if (has_cpu_kernels(x)) return Linear::apply(x, weight);
  return at::linear(x, weight);
}

}  // namespace isentrope::model
