#include "csrc/model/linear.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>

#include "csrc/model/bfloat16_training.h"
#include "csrc/model/cpu_product.h"
#include "csrc/model/layers.h"
#include "csrc/model/lora.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/sigma_linear_cpu.h"

namespace isentrope::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of one task of the passes over biases.
constexpr int64_t kRows = 48;

template <class T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? x.const_data_ptr<T>() : nullptr;
}

// y [rows, M] += bias [M]
template <class T>
void add_bias(int64_t rows, int64_t M, const T* bias, T* y) {
  at::parallel_for(0, rows, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t m = 0; m < M; ++m) y[row * M + m] += bias[m];
  });
}

// dbias [M] = Σ over rows of dy [rows, M], one row after the other in double precision.
template <class T>
void bias_gradient(int64_t rows, int64_t M, const T* dy, T* dbias) {
  constexpr int64_t kColumns = 64;  // of a task
  at::parallel_for(0, (M + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kColumns; first < std::min(end * kColumns, M); first += kColumns) {
      const int64_t columns = std::min(kColumns, M - first);
      double sums[kColumns] = {};
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t m = 0; m < columns; ++m) sums[m] += dy[row * M + first + m];
      for (int64_t m = 0; m < columns; ++m) dbias[first + m] = static_cast<T>(sums[m]);
    }
  });
}

// ---- parts of learned spectral norm ----------------------------------------------------------------------------------

// What the forward pass finds of P parts of W [M, K].
struct Norms {
  Tensor sigma;    // [P]
  Tensor v;        // [M]: W_i u_i / σ_i in the rows of part i, the others unused
  Tensor factors;  // [P, kSigmaFactors]
  Tensor scale;    // [M]: γ_i / σ_i in the rows of part i, 1 elsewhere
};

template <class T>
constexpr kernels::DType kType = std::is_same_v<T, double> ? kernels::DType::kDouble : kernels::DType::kFloat;

// parts: first row and number of rows, one after the other, as a node of autograd can keep them.
std::vector<int64_t> flat(const std::vector<SigmaPart>& parts) {
  std::vector<int64_t> rows;
  for (const SigmaPart& part : parts) rows.insert(rows.end(), {part.first, part.rows});
  return rows;
}

// All contiguous and of one type that has CPU kernels.
Norms norms_of(const Tensor& weight, const Tensor& gamma, const Tensor& u, const std::vector<int64_t>& parts) {
  const int64_t P = gamma.size(0), M = weight.size(0), K = weight.size(1);
  const auto options = weight.options().requires_grad(false);
  Norms norms{at::empty({P}, options), at::empty({M}, options), at::empty({P, kernels::kSigmaFactors}, options),
              at::ones({M}, options)};
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "spectral_norm", [&] {
    for (int64_t i = 0; i < P; ++i) {
      const int64_t first = parts[2 * i], rows = parts[2 * i + 1];
      scalar_t* factors = norms.factors.data_ptr<scalar_t>() + i * kernels::kSigmaFactors;
      kernels::SigmaNorm p;
      p.dtype = kType<scalar_t>;
      p.weight = {weight.const_data_ptr<scalar_t>() + first * K, rows, K, K};
      p.u = u.const_data_ptr<scalar_t>() + i * K;
      p.gamma = gamma.const_data_ptr<scalar_t>() + i;
      p.v = norms.v.data_ptr<scalar_t>() + first;
      p.sigma = norms.sigma.data_ptr<scalar_t>() + i;
      p.factors = factors;
      using namespace ops;
      ISENTROPE_PICK(sigma_norm)(p);
      std::fill_n(norms.scale.data_ptr<scalar_t>() + first, rows, factors[kernels::kScale]);
    }
  });
  return norms;
}

// From G = dyᵀx in dweight: dW_i = c G_i + r v_i u_iᵀ, and returns dγ [P]. Rows of no part stay G.
template <class T>
Tensor sigma_gradient(const Tensor& weight, const Tensor& u, const Norms& norms, const std::vector<int64_t>& parts,
                      bool through, const Tensor& dweight) {
  using namespace ops;
  const int64_t P = u.size(0), K = weight.size(1);
  Tensor dgamma = at::empty_like(norms.sigma), rank_one = at::empty_like(norms.sigma);
  for (int64_t i = 0; i < P; ++i) {
    const int64_t first = parts[2 * i], rows = parts[2 * i + 1];
    const T* factors = norms.factors.data_ptr<T>() + i * kernels::kSigmaFactors;
    T* d = dweight.data_ptr<T>() + first * K;
    kernels::SigmaDot dot;
    dot.dtype = kType<T>;
    dot.count = rows * K;
    dot.a = d;
    dot.b = weight.const_data_ptr<T>() + first * K;
    dot.divisor = factors + kernels::kOne;
    dot.factors = factors;
    dot.sigma = norms.sigma.data_ptr<T>() + i;
    dot.through = through;
    const Tensor partial = at::empty({kernels::sigma_dot_parts(dot.count)}, at::kDouble);
    dot.partial = partial.data_ptr<double>();
    dot.dgamma = dgamma.data_ptr<T>() + i;
    dot.rank_one = rank_one.data_ptr<T>() + i;
    ISENTROPE_PICK(sigma_dot)(dot);
    kernels::SigmaRankOne update;
    update.dtype = kType<T>;
    update.rows = rows;
    update.columns = K;
    update.scale = factors + kernels::kScale;
    update.rank_one = dot.rank_one;
    update.v = norms.v.data_ptr<T>() + first;
    update.u = u.const_data_ptr<T>() + i * K;
    update.dweight = d;
    ISENTROPE_PICK(sigma_rank_one)(update);
  }
  return dgamma;
}

// ---- the node --------------------------------------------------------------------------------------------------------

// Where operands are to be of bfloat16 and the processor has no products of it: x as it would enter them, in float.
Tensor as_bfloat16(const Tensor& x) { return x.to(at::kBFloat16).to(at::kFloat); }

Tensor rounded(const Tensor& weight, const Norms& norms) {
  return as_bfloat16(norms.scale.defined() ? weight * norms.scale.unsqueeze(1) : weight);
}

// x as the products take it.
Tensor operand_of(const Tensor& x, bool bfloat16) {
  if (!bfloat16) return x.contiguous();
  return takes_bfloat16_weights() ? bfloat16_operand(x) : as_bfloat16(x).contiguous();
}

// What the node keeps of a projection beside tensors.
struct Held : torch::CustomClassHolder {
  explicit Held(std::shared_ptr<Bfloat16Copy> given) : bfloat16(std::move(given)) {}
  std::shared_ptr<Bfloat16Copy> bfloat16;
};

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, const Tensor& weight_in,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
                        const std::optional<Tensor>& u, const std::vector<int64_t>& parts, bool through,
                        const std::shared_ptr<Bfloat16Copy>& bfloat16, const Origin& origin) {
    const bool pairs = bfloat16 && takes_bfloat16_weights();
    const Tensor weight = weight_in.contiguous(), x = operand_of(x_in, bfloat16 != nullptr);
    const int64_t N = x.size(0), K = weight.size(1), M = weight.size(0);
    const Norms norms = parts.empty() ? Norms() : norms_of(weight, *gamma, *u, parts);
    Tensor y = pairs ? bfloat16_product_with(x, *bfloat16->for_output(weight, norms.scale))
                     : at::empty({N, M}, weight.options());
    AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "linear", [&] {
      if (bfloat16 && !pairs) {
        const Tensor copy = rounded(weight, norms);
        multiply<scalar_t>(N, M, K, x.data_ptr<scalar_t>(), K, copy.data_ptr<scalar_t>(), 1, K, nullptr, nullptr,
                           y.data_ptr<scalar_t>(), M, false);
      } else if (!pairs) {
        multiply<scalar_t>(N, M, K, x.data_ptr<scalar_t>(), K, weight.data_ptr<scalar_t>(), 1, K, nullptr,
                           data_or_null<scalar_t>(norms.scale), y.data_ptr<scalar_t>(), M, false);
      }
      if (bias) add_bias<scalar_t>(N, M, bias->contiguous().const_data_ptr<scalar_t>(), y.data_ptr<scalar_t>());
    });
    ctx->saved_data["bias"] = bias.has_value();
    ctx->saved_data["pairs"] = pairs;
    // A frozen weight has no gradient, for which alone x is wanted.
    const bool kept = weight_in.requires_grad() && origin.made == Origin::kElsewhere;
    variable_list saved{kept ? x : Tensor(), weight,     u.value_or(Tensor()), norms.sigma, norms.v,
                        norms.factors,       norms.scale};
    if (weight_in.requires_grad()) saved.insert(saved.end(), origin.from.begin(), origin.from.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["made"] = static_cast<int64_t>(weight_in.requires_grad() ? origin.made : Origin::kElsewhere);
    ctx->saved_data["parts"] = parts;
    ctx->saved_data["through"] = through;
    ctx->saved_data["dtype"] = static_cast<int64_t>(x_in.scalar_type());
    if (bfloat16) ctx->saved_data["held"] = c10::IValue::make_capsule(c10::make_intrusive<Held>(bfloat16));
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &weight = saved[1], &u = saved[2], dy = grads[0].contiguous();
    std::shared_ptr<Bfloat16Copy> bfloat16;
    if (const auto held = ctx->saved_data.find("held"); held != ctx->saved_data.end())
      bfloat16 = static_cast<const Held&>(*held->second.toCapsule()).bfloat16;
    const Origin origin{static_cast<Origin::Made>(ctx->saved_data["made"].toInt()), {saved.begin() + 7, saved.end()}};
    const Tensor x = origin.made == Origin::kElsewhere ? saved[0] : operand_of(origin.again(), bfloat16 != nullptr);
    const bool pairs = ctx->saved_data["pairs"].toBool();
    const Norms norms{saved[3], saved[4], saved[5], saved[6]};
    const int64_t N = dy.size(0), K = weight.size(1), M = weight.size(0);
    Tensor dx, dweight, dgamma, dbias;
    if (pairs) {
      const Tensor operand = bfloat16_operand(dy);
      if (ctx->needs_input_grad(0)) dx = bfloat16_product_with(operand, *bfloat16->for_gradient(weight, norms.scale));
      if (x.defined()) dweight = bfloat16_weight_gradient(operand, x, M, K);
    } else {
      if (ctx->needs_input_grad(0)) dx = at::empty({N, K}, dy.options());
      if (x.defined()) dweight = N > 0 ? at::empty_like(weight) : at::zeros_like(weight);
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) dbias = at::empty({M}, weight.options());
    AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "linear_backward", [&] {
      if (!pairs) {
        const Tensor operand = bfloat16 ? as_bfloat16(dy) : dy, factor = bfloat16 ? rounded(weight, norms) : weight;
        if (dx.defined())
          multiply<scalar_t>(N, K, M, operand.data_ptr<scalar_t>(), M, factor.data_ptr<scalar_t>(), K, 1,
                             bfloat16 ? nullptr : data_or_null<scalar_t>(norms.scale), nullptr, dx.data_ptr<scalar_t>(),
                             K, false);
        if (dweight.defined() && N > 0)
          weight_gradient<scalar_t>(N, M, K, operand.data_ptr<scalar_t>(), M, x.data_ptr<scalar_t>(), K,
                                    dweight.data_ptr<scalar_t>());
      }
      if (dbias.defined()) bias_gradient<scalar_t>(N, M, dy.data_ptr<scalar_t>(), dbias.data_ptr<scalar_t>());
      if (u.defined())
        dgamma = sigma_gradient<scalar_t>(weight, u, norms, ctx->saved_data["parts"].toIntVector(),
                                          ctx->saved_data["through"].toBool(), dweight);
    });
    if (dx.defined()) dx = dx.to(static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt()));
    return {dx, dweight, dbias, dgamma, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor weight_of(const Projection& p, size_t i) {
  return p.weight.slice(0, p.parts[i].first, p.parts[i].first + p.parts[i].rows);
}

namespace {

// linear() without its low-rank term.
Tensor full_rank(const Tensor& x, const Projection& p, const Origin& origin) {
  const auto bfloat16 = p.weight.scalar_type() == at::kFloat ? p.bfloat16 : nullptr;
  if (has_cpu_kernels(p.weight)) {
    const auto given = [](const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    return Linear::apply(x, p.weight, given(p.bias), given(p.gamma), given(p.u), flat(p.parts), p.through, bfloat16,
                         origin);
  }
  std::vector<Tensor> columns;
  int64_t done = 0;  // rows of the weight
  const auto plain_until = [&](int64_t row) {
    if (done < row && bfloat16)
      columns.push_back(at::linear(x.to(at::kBFloat16), p.weight.slice(0, done, row).to(at::kBFloat16)).to(at::kFloat));
    else if (done < row)
      columns.push_back(at::linear(x, p.weight.slice(0, done, row)));
    done = row;
  };
  for (size_t i = 0; i < p.parts.size(); ++i) {
    plain_until(p.parts[i].first);
    const char* gradient = p.through ? "through" : "detached";
    columns.push_back(
        ops::sigma_linear(x.to(p.weight.scalar_type()), weight_of(p, i), p.gamma[i], p.u[i], {}, gradient).y);
    done += p.parts[i].rows;
  }
  plain_until(p.weight.size(0));
  const Tensor y = columns.size() == 1 ? columns[0] : at::cat(columns, 1);
  return p.bias.defined() ? y + p.bias : y;
}

}  // namespace

Tensor linear(const Tensor& x, const Projection& p, const Origin& origin) {
  const Tensor y = full_rank(x, p, origin);
  return p.lora.empty() ? y : add_lora(y, x.to(y.scalar_type()), p, origin);
}

Tensor linear(const Tensor& x, const Projection& p) { return linear(x, p, Origin()); }

Tensor spectral_norms(const Projection& p) {
  const at::NoGradGuard no_grad;
  if (has_cpu_kernels(p.weight)) return norms_of(p.weight.contiguous(), p.gamma, p.u, flat(p.parts)).sigma;
  std::vector<Tensor> sigmas;
  for (size_t i = 0; i < p.parts.size(); ++i) sigmas.push_back(at::linalg_vector_norm(weight_of(p, i).mv(p.u[i])));
  return at::stack(sigmas);
}

Tensor norm_scale(const Projection& p) {
  TORCH_CHECK(p.parts.size() == 1 && p.parts[0].rows == p.weight.size(0), p.name, ": ", p.parts.size(),
              " parts with a learned norm; wanted one, of all rows");
  const Tensor none = at::empty({0, p.weight.size(1)}, p.weight.options());  // σ is wanted alone
  const Tensor sigma =
      ops::sigma_linear(none, p.weight, p.gamma[0], p.u[0], {}, p.through ? "through" : "detached").sigma;
  const Tensor zero = sigma == 0;
  return (p.gamma[0] / sigma.masked_fill(zero, 1)).masked_fill(zero, 0);
}

Tensor folded(const Projection& p) {
  if (!p.lora.empty()) return merged(p);
  if (p.parts.empty()) return p.weight;
  const at::NoGradGuard no_grad;
  if (has_cpu_kernels(p.weight))
    return p.weight * norms_of(p.weight.contiguous(), p.gamma, p.u, flat(p.parts)).scale.unsqueeze(1);
  const Tensor sigma = spectral_norms(p), scale = at::where(sigma == 0, at::zeros_like(sigma), p.gamma / sigma);
  Projection out{.name = p.name, .weight = p.weight.clone(), .bias = {}, .parts = p.parts, .gamma = {}, .u = {}};
  for (size_t i = 0; i < p.parts.size(); ++i) weight_of(out, i).mul_(scale[i]);
  return out.weight;
}

}  // namespace isentrope::model
