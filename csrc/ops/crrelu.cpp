#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/crrelu_cpu.h"
#include "csrc/ops/crrelu_entries.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace {

constexpr const char* kCrrelu = "crrelu";

at::ScalarType sums_of(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_crrelu(const char* op, const Tensor& x, const Tensor& epsilon) {
  check_dtype(op, "x", x, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  check_dtype(op, "epsilon", epsilon, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  check_shape(op, "epsilon", epsilon, {1}, "one number");
  check_device(op, "epsilon", epsilon, "x", x);
}

void check_crrelu_backward(const Tensor& dy, const Tensor& x, const Tensor& epsilon) {
  constexpr const char* kBackward = "crrelu_backward";
  check_crrelu(kBackward, x, epsilon);
  check_dtype(kBackward, "dy", dy, {x.scalar_type()});
  check_shape(kBackward, "dy", dy, x.sym_sizes(), "as x");
  check_device(kBackward, "dy", dy, "x", x);
}

}  // namespace

Tensor crrelu_run(const Tensor& x_in, const Tensor& epsilon_in, void (*launch)(const kernels::CrreluForward&)) {
  check_crrelu(kCrrelu, x_in, epsilon_in);
  const Tensor x = x_in.contiguous(), epsilon = epsilon_in.to(sums_of(x)).contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return y;
  kernels::CrreluForward p;
  p.dtype = kernel_dtype(kCrrelu, x);
  p.count = x.numel();
  p.x = x.const_data_ptr();
  p.epsilon = epsilon.const_data_ptr();
  p.y = y.mutable_data_ptr();
  launch(p);
  return y;
}

std::tuple<Tensor, Tensor> crrelu_backward_run(const Tensor& dy_in, const Tensor& x_in, const Tensor& epsilon_in,
                                               void (*launch)(const kernels::CrreluBackward&)) {
  check_crrelu_backward(dy_in, x_in, epsilon_in);
  const Tensor dy = dy_in.contiguous(), x = x_in.contiguous(), epsilon = epsilon_in.to(sums_of(x)).contiguous();
  Tensor dx = at::empty(x.sizes(), x.options()), depsilon = at::zeros({1}, epsilon.options());
  if (x.numel() == 0) return {dx, depsilon.to(epsilon_in.scalar_type())};
  const int64_t parts = x.is_cpu() ? (x.numel() + kCrreluRun - 1) / kCrreluRun : kernels::crrelu_parts(x.numel());
  const Tensor sums = at::empty({parts}, x.options().dtype(at::kDouble));
  kernels::CrreluBackward p;
  p.dtype = kernel_dtype(kCrrelu, x);
  p.count = x.numel();
  p.x = x.const_data_ptr();
  p.epsilon = epsilon.const_data_ptr();
  p.dy = dy.const_data_ptr();
  p.dx = dx.mutable_data_ptr();
  p.parts = sums.mutable_data_ptr<double>();
  p.depsilon = depsilon.mutable_data_ptr();
  launch(p);
  if (x.is_cpu()) {
    double sum = 0;
    for (int64_t i = 0; i < parts; ++i) sum += p.parts[i];
    depsilon.fill_(sum);
  }
  return {dx, depsilon.to(epsilon_in.scalar_type())};
}

Tensor crrelu_cpu(const Tensor& x, const Tensor& epsilon) {
  return crrelu_run(x, epsilon, ISENTROPE_PICK(crrelu_forward_on_cpu));
}

std::tuple<Tensor, Tensor> crrelu_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& epsilon) {
  return crrelu_backward_run(dy, x, epsilon, ISENTROPE_PICK(crrelu_backward_on_cpu));
}

Tensor crrelu_meta(const Tensor& x, const Tensor& epsilon) {
  check_crrelu(kCrrelu, x, epsilon);
  return at::empty_symint(x.sym_sizes(), x.options());
}

std::tuple<Tensor, Tensor> crrelu_backward_meta(const Tensor& dy, const Tensor& x, const Tensor& epsilon) {
  check_crrelu_backward(dy, x, epsilon);
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty({1}, epsilon.options())};
}

namespace {

struct CrreluFunction : torch::autograd::Function<CrreluFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& x,
                                                const Tensor& epsilon) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("isentrope::crrelu", "").typed<decltype(crrelu_meta)>();
    ctx->save_for_backward({x, epsilon});
    return {op.call(x, epsilon)};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::crrelu_backward", "")
                               .typed<decltype(crrelu_backward_meta)>();
    const auto saved = ctx->get_saved_variables();
    auto [dx, depsilon] = op.call(d[0], saved[0], saved[1]);
    return {dx, depsilon};
  }
};

}  // namespace

Tensor crrelu_autograd(const Tensor& x, const Tensor& epsilon) {
  check_differentiation(kCrrelu, {{"x", x}, {"epsilon", epsilon}});
  return record<CrreluFunction>(x, epsilon)[0];
}

Tensor crrelu(const Tensor& x, const Tensor& epsilon) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("isentrope::crrelu", "").typed<decltype(crrelu_meta)>();
  return op.call(x, epsilon);
}

}  // namespace isentrope::ops
