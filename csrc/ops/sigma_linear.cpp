#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <vector>

#include "csrc/ops/autocast.h"
#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/sigma_linear_cpu.h"
#include "csrc/ops/sigma_matrix.h"

namespace isentrope::ops {
namespace {

using kernels::SigmaFactor;

constexpr const char* kOp = "sigma_linear";
constexpr const char* kBackward = "sigma_linear_backward";

bool through(c10::string_view sigma_grad) {
  OP_CHECK(kOp, sigma_grad == "through" || sigma_grad == "detached", "sigma_grad is ", sigma_grad,
           "; wanted through or detached");
  return sigma_grad == "through";
}

void check_arguments(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                     const OptionalTensor& bias, c10::string_view sigma_grad) {
  check_weight(kOp, "weight", weight);
  check_dtype(kOp, "x", x, {weight.scalar_type()});
  OP_CHECK(kOp, x.dim() >= 1 && x.sym_size(-1) == weight.sym_size(1), "x has shape ", x.sym_sizes(), "; wanted [..., ",
           weight.sym_size(1), "], the columns of weight");
  check_device(kOp, "x", x, "weight", weight);
  check_vector(kOp, "gamma", gamma, {}, "one number", weight);
  check_vector(kOp, "u", u, {weight.sym_size(1)}, "the columns of weight", weight);
  if (bias) {
    check_dtype(kOp, "bias", *bias, {weight.scalar_type()});
    check_shape(kOp, "bias", *bias, {weight.sym_size(0)}, "the rows of weight");
    check_device(kOp, "bias", *bias, "weight", weight);
  }
  through(sigma_grad);
}

// x [..., columns] as [N, columns].
Tensor flat(const Tensor& x) { return with_rows(x.reshape({-1, x.size(-1)})); }

const void* factor(const Tensor& factors, SigmaFactor which) {
  return static_cast<const char*>(factors.const_data_ptr()) + which * factors.element_size();
}

// ---- the CPU's backend -----------------------------------------------------------------------------------------------

void matmul_on_cpu(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& factors, SigmaFactor alpha,
                   SigmaFactor beta) {
  auto value = [&](SigmaFactor which) {
    return factors.scalar_type() == at::kDouble ? factors.const_data_ptr<double>()[which]
                                                : static_cast<double>(factors.const_data_ptr<float>()[which]);
  };
  Tensor result = out;
  at::addmm_out(result, out, a, b, value(beta), value(alpha));
}

const SigmaBackend kCpu = {
    [](const kernels::SigmaNorm& p) {
      ISENTROPE_PICK(sigma_norm)
      (p);
    },
    [](const kernels::SigmaDot& p) {
      ISENTROPE_PICK(sigma_dot)
      (p);
    },
    [](const kernels::SigmaRankOne& p) {
      ISENTROPE_PICK(sigma_rank_one)
      (p);
    },
    matmul_on_cpu,
};

}  // namespace

// ---- sigma_linear ----------------------------------------------------------------------------------------------------

SigmaLinearOutputs sigma_linear_run(const Tensor& x, const Tensor& weight_in, const Tensor& gamma, const Tensor& u,
                                    const OptionalTensor& bias, c10::string_view sigma_grad,
                                    const SigmaBackend& backend) {
  check_arguments(x, weight_in, gamma, u, bias, sigma_grad);
  const Tensor weight = with_rows(weight_in), rows = flat(x);
  const int64_t out = weight.size(0);
  const at::ScalarType type = accumulator_type(weight);
  const auto options = weight.options().dtype(type);
  const Tensor sigma = at::empty({}, options), v = at::empty({out}, options),
               factors = at::empty({kernels::kSigmaFactors}, options);
  const Tensor wide_u = u.to(type).contiguous(), wide_gamma = gamma.to(type);
  kernels::SigmaNorm p;
  p.dtype = kernel_dtype(kOp, weight);
  p.weight = matrix_of(weight);
  p.u = wide_u.const_data_ptr();
  p.gamma = wide_gamma.const_data_ptr();
  p.v = v.mutable_data_ptr();
  p.sigma = sigma.mutable_data_ptr();
  p.factors = factors.mutable_data_ptr();
  backend.norm(p);

  const Tensor y = at::empty({rows.size(0), out}, weight.options());
  if (bias) y.copy_(bias->expand_as(y));
  if (rows.size(0) > 0)
    backend.matmul(y, rows, weight.t(), factors, kernels::kScale, bias ? kernels::kOne : kernels::kZero);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out;
  return {y.view(shape), sigma, v, factors};
}

SigmaLinearOutputs sigma_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                    const OptionalTensor& bias, c10::string_view sigma_grad) {
  return sigma_linear_run(x, weight, gamma, u, bias, sigma_grad, kCpu);
}

SigmaLinearOutputs sigma_linear_meta(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                     const OptionalTensor& bias, c10::string_view sigma_grad) {
  check_arguments(x, weight, gamma, u, bias, sigma_grad);
  c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
  shape.back() = weight.sym_size(0);
  const auto options = weight.options().dtype(accumulator_type(weight));
  return {at::empty_symint(shape, weight.options()), at::empty({}, options),
          at::empty_symint({weight.sym_size(0)}, options), at::empty({kernels::kSigmaFactors}, options)};
}

// ---- its backward ----------------------------------------------------------------------------------------------------

SigmaLinearGradients sigma_linear_backward_run(const Tensor& x_in, const Tensor& weight_in, const Tensor& u,
                                               const Tensor& sigma, const Tensor& v, const Tensor& factors,
                                               const OptionalTensor& dy_in, const OptionalTensor& dsigma_in,
                                               c10::string_view sigma_grad, std::array<bool, 4> wanted,
                                               const SigmaBackend& backend) {
  check_weight(kBackward, "weight", weight_in);
  const Tensor weight = with_rows(weight_in), x = flat(x_in);
  const bool differentiates = through(sigma_grad);
  const auto [of_x, of_weight, of_gamma, of_bias] = wanted;
  const at::ScalarType type = accumulator_type(weight);
  const auto options = weight.options().dtype(type);
  const Tensor wide_u = u.to(type).contiguous(), dsigma = dsigma_in ? dsigma_in->to(type) : Tensor();
  auto none = [](const c10::TensorOptions& of) { return at::empty({0}, of); };
  Tensor dx = none(weight.options()), dweight = none(weight.options()), dbias = none(weight.options()),
         dgamma = none(options);

  kernels::SigmaRankOne r;
  r.dtype = kernel_dtype(kBackward, weight);
  r.rows = weight.size(0);
  r.columns = weight.size(1);
  r.v = v.const_data_ptr();
  r.u = wide_u.const_data_ptr();
  auto add_rank_one = [&](const Tensor& to, const void* coefficient, const void* scale) {
    r.dweight = to.mutable_data_ptr();
    r.rank_one = coefficient;
    r.scale = scale;
    backend.rank_one(r);
  };
  auto new_dweight = [&] { return at::empty({weight.size(0), weight.size(1)}, weight.options()); };

  if (!dy_in) {  // only σ was used
    OP_CHECK(kBackward, !of_weight || (differentiates && dsigma.defined()),
             "neither dy nor dsigma is given; wanted one of them");
    if (of_weight) {
      dweight = new_dweight();
      add_rank_one(dweight, dsigma.const_data_ptr(), nullptr);
    }
    return {dx, dweight, dgamma, dbias};
  }
  const Tensor dy = flat(*dy_in);
  OP_CHECK(kBackward, dy.size(0) == x.size(0) && dy.size(1) == weight.size(0), "dy has shape ", dy_in->sizes(),
           "; wanted that of y, with ", x.size(0), " rows of ", weight.size(0));
  const bool rows = x.size(0) > 0;
  // s = ⟨G, W⟩ comes from dx, and then the rank-one term is there before the product of dW adds to it; without dx it comes
  // from G, which is corrected afterwards. From dx it needs a scale that is not 0.
  const bool wants_s = of_gamma || (of_weight && differentiates);
  if (of_x) {
    dx = at::empty({x.size(0), x.size(1)}, weight.options());
    if (rows) backend.matmul(dx, dy, weight, factors, wants_s ? kernels::kScaleOrOne : kernels::kScale, kernels::kZero);
  }
  const Tensor rank_one = at::empty({}, options);
  Tensor G;
  if (wants_s) {
    if (!of_x) {
      G = rows ? new_dweight() : new_dweight().zero_();
      if (rows) backend.matmul(G, dy.t(), x, factors, kernels::kOne, kernels::kZero);
    }
    const Tensor a = of_x ? dx : G, b = (of_x ? x : weight).contiguous();
    const Tensor partial = at::empty({kernels::sigma_dot_parts(a.numel())}, options.dtype(at::kDouble));
    dgamma = at::empty({}, options);
    kernels::SigmaDot p;
    p.dtype = r.dtype;
    p.count = a.numel();
    p.a = a.mutable_data_ptr();
    p.b = b.const_data_ptr();
    p.clear = of_x;
    p.divisor = factor(factors, of_x ? kernels::kScaleOrOne : kernels::kOne);
    p.factors = factors.const_data_ptr();
    p.sigma = sigma.const_data_ptr();
    p.dsigma = dsigma.defined() ? dsigma.const_data_ptr() : nullptr;
    p.through = differentiates;
    p.partial = partial.mutable_data_ptr<double>();
    p.dgamma = dgamma.mutable_data_ptr();
    p.rank_one = rank_one.mutable_data_ptr();
    backend.dot(p);
  }
  if (of_weight) {
    dweight = G.defined() ? G : new_dweight();
    if (G.defined()) {
      add_rank_one(dweight, rank_one.const_data_ptr(), factor(factors, kernels::kScale));
    } else {
      if (differentiates)
        add_rank_one(dweight, rank_one.const_data_ptr(), nullptr);
      else if (!rows)
        dweight.zero_();
      if (rows) {
        backend.matmul(dweight, dy.t(), x, factors, kernels::kScale, differentiates ? kernels::kOne : kernels::kZero);
      }
    }
  }
  if (of_bias) dbias = dy.sum(0);
  return {of_x ? dx.view(x_in.sizes()) : dx, dweight, dgamma, dbias};
}

SigmaLinearGradients sigma_linear_backward_cpu(const Tensor& x, const Tensor& weight, const Tensor& u,
                                               const Tensor& sigma, const Tensor& v, const Tensor& factors,
                                               const OptionalTensor& dy, const OptionalTensor& dsigma,
                                               c10::string_view sigma_grad, std::array<bool, 4> wanted) {
  return sigma_linear_backward_run(x, weight, u, sigma, v, factors, dy, dsigma, sigma_grad, wanted, kCpu);
}

SigmaLinearGradients sigma_linear_backward_meta(const Tensor& x, const Tensor& weight, const Tensor&, const Tensor&,
                                                const Tensor&, const Tensor&, const OptionalTensor& dy,
                                                const OptionalTensor&, c10::string_view sigma_grad,
                                                std::array<bool, 4> wanted) {
  const bool differentiates = through(sigma_grad), given = dy.has_value();
  const auto [of_x, of_weight, of_gamma, of_bias] = wanted;
  const auto options = weight.options(), wide = options.dtype(accumulator_type(weight));
  auto none = [](const c10::TensorOptions& of) { return at::empty({0}, of); };
  const bool wants_s = given && (of_gamma || (of_weight && differentiates));
  return {given && of_x ? at::empty_symint(x.sym_sizes(), options) : none(options),
          of_weight ? at::empty_symint(weight.sym_sizes(), options) : none(options),
          wants_s ? at::empty({}, wide) : none(wide),
          given && of_bias ? at::empty_symint({weight.sym_size(0)}, options) : none(options)};
}

// ---- autograd, autocast ----------------------------------------------------------------------------------------------

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

SigmaLinearOutputs call_forward(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                const OptionalTensor& bias, c10::string_view sigma_grad) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("isentrope::sigma_linear", "").typed<decltype(sigma_linear_cpu)>();
  return op.call(x, weight, gamma, u, bias, sigma_grad);
}

struct SigmaLinearFunction : torch::autograd::Function<SigmaLinearFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& gamma,
                               const Tensor& u, const OptionalTensor& bias, c10::string_view sigma_grad) {
    auto [y, sigma, v, factors] = call_forward(x, weight, gamma, u, bias, sigma_grad);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, weight, u, sigma, v, factors});
    if (sigma_grad == "through")
      ctx->mark_non_differentiable({v, factors});
    else
      ctx->mark_non_differentiable({sigma, v, factors});
    ctx->saved_data["sigma_grad"] = std::string(sigma_grad);
    ctx->saved_data["bias"] = bias.has_value();  // needs_input_grad counts the tensors that were given
    ctx->saved_data["gamma"] = static_cast<int64_t>(gamma.scalar_type());
    return {y, sigma, v, factors};
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::sigma_linear_backward", "")
                               .typed<decltype(sigma_linear_backward_cpu)>();
    variable_list out(6);
    const bool of_y = d[0].defined();
    // Arguments of forward: x, weight, gamma, u, bias, sigma_grad.
    const std::array<bool, 4> wanted = {of_y && ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        of_y && ctx->needs_input_grad(2),
                                        of_y && ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(4)};
    if (!of_y && !(d[1].defined() && wanted[1])) return out;
    const auto saved = ctx->get_saved_variables();
    auto optional = [](const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; };
    const auto [dx, dweight, dgamma, dbias] =
        op.call(saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], optional(d[0]), optional(d[1]),
                ctx->saved_data["sigma_grad"].toStringView(), wanted);
    if (wanted[0]) out[0] = dx;
    if (wanted[1]) out[1] = dweight;
    if (wanted[2]) out[2] = dgamma.to(static_cast<at::ScalarType>(ctx->saved_data["gamma"].toInt()));
    if (wanted[3]) out[4] = dbias;
    return out;
  }
};

}  // namespace

SigmaLinearOutputs sigma_linear_autograd(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                         const OptionalTensor& bias, c10::string_view sigma_grad) {
  check_differentiation(kOp, {{"x", x}, {"weight", weight}, {"gamma", gamma}, {"u", u}, {"bias", bias}});
  const auto out = record<SigmaLinearFunction>(x, weight, gamma, u, bias, sigma_grad);
  return {out[0], out[1], out[2], out[3]};
}

SigmaLinearOutputs sigma_linear_autocast(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                         const OptionalTensor& bias, c10::string_view sigma_grad) {
  const Autocast cast(x);
  // γ and u may be of another lower dtype than autocast's, in a model that was cast; both are float where they are computed with.
  return call_forward(cast.lower(x), cast.lower(weight), cast.single(gamma), cast.single(u), cast.lower(bias),
                      sigma_grad);
}

SigmaLinear sigma_linear(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                         const std::optional<Tensor>& bias, const std::string& sigma_grad) {
  auto [y, sigma, v, factors] = call_forward(x, weight, gamma, u, bias, sigma_grad);
  return {y, sigma};
}

}  // namespace isentrope::ops
