#include "csrc/model/layers.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "csrc/model/cpu_kernels.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows of one task, and of one partial sum of a weight's gradient: fixed, so that sums do not depend on
// threads.
constexpr int64_t kRowsAtOnce = 128;

template <class T>
T* data_if_any(const Tensor& x) {
  return x.defined() ? x.data_ptr<T>() : nullptr;
}

// f(first, count) for each run of kRowsAtOnce rows, over torch's threads.
template <class F>
void for_rows(int64_t rows, const F& f) {
  at::parallel_for(0, (rows + kRowsAtOnce - 1) / kRowsAtOnce, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i * kRowsAtOnce, std::min(kRowsAtOnce, rows - i * kRowsAtOnce));
  });
}

struct AddRmsNorm : Function<AddRmsNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x_in, const std::optional<Tensor>& delta_in,
                               const Tensor& weight, double eps) {
    const Tensor x = x_in.contiguous(), delta = delta_in ? delta_in->contiguous() : Tensor();
    const int64_t N = x.size(0), C = x.size(1);
    Tensor sum = delta.defined() ? at::empty_like(x) : Tensor();
    Tensor y = at::empty_like(x), inverse_rms = at::empty({N}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "add_rms_norm", [&] {
      for_rows(N, [&](int64_t row, int64_t count) {
        const int64_t at = row * C;
        scalar_t *d = data_if_any<scalar_t>(delta), *s = data_if_any<scalar_t>(sum);
        cpu_kernels<scalar_t>().rms_norm(count, C, eps, x.data_ptr<scalar_t>() + at, d ? d + at : d,
                                         weight.data_ptr<scalar_t>(), s ? s + at : s, y.data_ptr<scalar_t>() + at,
                                         inverse_rms.data_ptr<scalar_t>() + row);
      });
    });
    ctx->save_for_backward({delta.defined() ? sum : x, weight, inverse_rms});
    ctx->mark_non_differentiable({inverse_rms});
    ctx->set_materialize_grads(false);
    if (delta.defined()) return {sum, y, inverse_rms};
    return {y, inverse_rms};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &inverse_rms = saved[2];
    const int64_t N = sum.size(0), C = sum.size(1);
    const bool added = grads.size() == 3;
    const Tensor& dy_in = grads[added ? 1 : 0];
    const Tensor dsum = added && grads[0].defined() ? grads[0].contiguous() : Tensor();
    if (!dy_in.defined()) return {dsum, dsum, Tensor(), Tensor()};
    const Tensor dy = dy_in.contiguous();
    Tensor dx = at::empty_like(sum), partial = at::zeros({(N + kRowsAtOnce - 1) / kRowsAtOnce, C}, sum.options());
    AT_DISPATCH_FLOATING_TYPES(sum.scalar_type(), "add_rms_norm_backward", [&] {
      for_rows(N, [&](int64_t row, int64_t count) {
        const int64_t at = row * C;
        scalar_t* through = data_if_any<scalar_t>(dsum);
        cpu_kernels<scalar_t>().rms_norm_backward(count, C, sum.data_ptr<scalar_t>() + at, weight.data_ptr<scalar_t>(),
                                                  inverse_rms.data_ptr<scalar_t>() + row, dy.data_ptr<scalar_t>() + at,
                                                  through ? through + at : through, dx.data_ptr<scalar_t>() + at,
                                                  partial.data_ptr<scalar_t>() + row / kRowsAtOnce * C);
      });
    });
    return {dx, added ? dx : Tensor(), partial.sum(0), Tensor()};
  }
};

// y of AddRmsNorm from what it keeps.
Tensor normed_again(const Tensor& sum, const Tensor& weight, const Tensor& inverse_rms) {
  const int64_t C = sum.size(1);
  const Tensor y = at::empty_like(sum);
  AT_DISPATCH_FLOATING_TYPES(sum.scalar_type(), "rms_norm_again", [&] {
    const auto *s = sum.const_data_ptr<scalar_t>(), *w = weight.const_data_ptr<scalar_t>(),
               *inverse = inverse_rms.const_data_ptr<scalar_t>();
    auto* to = y.data_ptr<scalar_t>();
    for_rows(sum.size(0), [&](int64_t first, int64_t count) {
      for (int64_t row = first; row < first + count; ++row)
        for (int64_t c = 0; c < C; ++c) to[row * C + c] = s[row * C + c] * inverse[row] * w[c];
    });
  });
  return y;
}

Tensor swiglu_of(const Tensor& gate_up) {
  const int64_t N = gate_up.size(0), M = gate_up.size(1) / 2;
  Tensor y = at::empty({N, M}, gate_up.options().requires_grad(false));
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "swiglu", [&] {
    for_rows(N, [&](int64_t row, int64_t count) {
      cpu_kernels<scalar_t>().swiglu(count, M, gate_up.data_ptr<scalar_t>() + row * 2 * M,
                                     y.data_ptr<scalar_t>() + row * M);
    });
  });
  return y;
}

struct SwiGlu : Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input) {
    const Tensor gate_up = input.contiguous(), y = swiglu_of(gate_up);
    ctx->save_for_backward({gate_up});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor gate_up = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const int64_t N = dy.size(0), M = dy.size(1);
    Tensor dgate_up = at::empty_like(gate_up);
    AT_DISPATCH_FLOATING_TYPES(dy.scalar_type(), "swiglu_backward", [&] {
      for_rows(N, [&](int64_t row, int64_t count) {
        cpu_kernels<scalar_t>().swiglu_backward(count, M, gate_up.data_ptr<scalar_t>() + row * 2 * M,
                                                dy.data_ptr<scalar_t>() + row * M,
                                                dgate_up.data_ptr<scalar_t>() + row * 2 * M);
      });
    });
    return {dgate_up};
  }
};

// Moves rows between qkv [B, T, H + 2G, D] and parts[0] [B, H, T, D], parts[1], parts[2] [B, G, T, D]: out of
// qkv and turned forwards, or back into it and turned backwards.
void rotary_move(const Tensor& qkv, const Tensor (&parts)[3], const Tensor& cosine, const Tensor& sine, bool forwards) {
  const int64_t T = parts[0].size(2), D = parts[0].size(3), width = qkv.size(1);
  AT_DISPATCH_FLOATING_TYPES(qkv.scalar_type(), "rotary_split", [&] {
    const auto rotate = cpu_kernels<scalar_t>().rotate;
    const int64_t heads[3] = {parts[0].size(1), parts[1].size(1), parts[2].size(1)};
    scalar_t* const data[3] = {parts[0].data_ptr<scalar_t>(), parts[1].data_ptr<scalar_t>(),
                               parts[2].data_ptr<scalar_t>()};
    scalar_t* const rows = qkv.data_ptr<scalar_t>();
    const scalar_t *cosines = cosine.data_ptr<scalar_t>(), *sines = sine.data_ptr<scalar_t>();
    for_rows(qkv.size(0), [&](int64_t first, int64_t count) {
      for (int64_t row = first; row < first + count; ++row) {
        const int64_t b = row / T, t = row % T;
        const scalar_t *c = cosines + t * (D / 2), *s = sines + t * (D / 2);
        scalar_t* joined = rows + row * width;
        for (int i = 0; i < 3; ++i) {
          scalar_t* part = data[i] + (b * heads[i] * T + t) * D;
          if (i < 2 && forwards)
            rotate(heads[i], D, joined, D, part, T * D, c, s, 1);
          else if (i < 2)
            rotate(heads[i], D, part, T * D, joined, D, c, s, -1);
          else
            for (int64_t h = 0; h < heads[i]; ++h)
              if (forwards)
                std::copy_n(joined + h * D, D, part + h * T * D);
              else
                std::copy_n(part + h * T * D, D, joined + h * D);
          joined += heads[i] * D;
        }
      }
    });
  });
}

struct RotarySplit : Function<RotarySplit> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& cosine, const Tensor& sine,
                               int64_t H, int64_t G) {
    const Tensor qkv = input.contiguous();
    const int64_t T = cosine.size(0), D = 2 * cosine.size(1), B = qkv.size(0) / T;
    const Tensor parts[3] = {at::empty({B, H, T, D}, qkv.options()), at::empty({B, G, T, D}, qkv.options()),
                             at::empty({B, G, T, D}, qkv.options())};
    rotary_move(qkv, parts, cosine, sine, true);
    ctx->save_for_backward({cosine, sine});
    return {parts[0], parts[1], parts[2]};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor parts[3] = {grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()};
    const int64_t B = parts[0].size(0), T = parts[0].size(2), D = parts[0].size(3);
    Tensor dqkv = at::empty({B * T, (parts[0].size(1) + 2 * parts[1].size(1)) * D}, parts[0].options());
    rotary_move(dqkv, parts, saved[0], saved[1], false);
    return {dqkv, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor turned(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine}, -1);
}

}  // namespace

bool has_cpu_kernels(const Tensor& x) {
  return x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
}

Tensor Origin::again() const {
  const at::NoGradGuard no_grad;
  switch (made) {
    case kByNorm:
      return normed_again(from[0], from[1], from[2]);
    case kBySwiglu:
      return swiglu_of(from[0]);
    case kByHeads:
      return token_rows(from[0]);
    case kElsewhere:
      break;
  }
  TORCH_INTERNAL_ASSERT(false, "made elsewhere");
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight,
                                                double eps) {
  if (has_cpu_kernels(x)) {
    const std::optional<Tensor> given = delta.defined() ? std::optional(delta) : std::nullopt;
    variable_list out = AddRmsNorm::apply(x, given, weight, eps);
    return {out.size() == 3 ? out[0] : x, out[out.size() - 2], out.back()};
  }
  const Tensor sum = delta.defined() ? x + delta : x;
  const Tensor wide = sum.to(at::kFloat);
  return {sum, weight * (wide * (wide.square().mean(-1, true) + eps).rsqrt()).to(sum.scalar_type()), Tensor()};
}

Residual residual(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps, bool norm_after) {
  if (!weight.defined()) {
    const Tensor sum = delta.defined() ? x + delta : x;
    return {sum, sum};
  }
  const auto [sum, normed, inverse_rms] = add_rms_norm(x, delta, weight, eps);
  Residual found{norm_after ? normed : sum, normed};
  if (inverse_rms.defined() && sum.is_contiguous())  // what the norm's own backward pass keeps
    found.origin = {Origin::kByNorm, {sum.detach(), weight.detach(), inverse_rms.detach()}};
  return found;
}

Tensor swiglu(const Tensor& gate_up) {
  if (has_cpu_kernels(gate_up)) return SwiGlu::apply(gate_up);
  const auto halves = gate_up.chunk(2, -1);
  return at::silu(halves[0]) * halves[1];
}

Tensor activated(const std::string& activation, const Tensor& x, const Tensor& epsilon) {
  if (activation == "crrelu") return ops::crrelu(x, epsilon.to(x.scalar_type()));
  return activation == "gelu" ? at::gelu(x) : at::relu(x);
}

Origin swiglu_origin(const Tensor& gate_up) {
  if (!has_cpu_kernels(gate_up) || !gate_up.is_contiguous()) return {};
  return {Origin::kBySwiglu, {gate_up.detach()}};
}

Tensor token_rows(const Tensor& x) { return x.transpose(1, 2).reshape({x.size(0) * x.size(2), x.size(1) * x.size(3)}); }

Origin token_rows_origin(const Tensor& x) {
  if (!x.is_cpu()) return {};
  return {Origin::kByHeads, {x.detach()}};
}

std::tuple<Tensor, Tensor, Tensor> rotary_split(const Tensor& qkv, const Tensor& cosine, const Tensor& sine,
                                                int64_t heads, int64_t kv_heads) {
  if (has_cpu_kernels(qkv)) {
    variable_list out = RotarySplit::apply(qkv, cosine, sine, heads, kv_heads);
    return {out[0], out[1], out[2]};
  }
  const int64_t T = cosine.size(0), D = 2 * cosine.size(1);
  const auto parts =
      qkv.view({-1, T, heads + 2 * kv_heads, D}).transpose(1, 2).split_with_sizes({heads, kv_heads, kv_heads}, 1);
  return {turned(parts[0], cosine, sine), turned(parts[1], cosine, sine), parts[2]};
}

}  // namespace isentrope::model
