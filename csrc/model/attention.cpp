#include "csrc/model/attention.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "csrc/model/cpu_kernels.h"
#include "csrc/model/layers.h"

namespace isentrope::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows that are contiguous in themselves; other strides are free.
Tensor with_plain_rows(const Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

struct Heads {
  Tensor q, out, lse;  // [B, H, T, D], [B, H, T, D], [B, H, T]
  Tensor k, v;         // [B, G, T, D]
  Tensor dout, dq;     // [B, H, T, D]; backward pass only
  Tensor dk, dv;       // [B, G, T, D]

  template <class T>
  AttentionHead<T> head(int64_t b, int64_t h) const {
    const int64_t D = q.size(3), g = h / (q.size(1) / k.size(1));
    auto rows = [](const Tensor& x, int64_t b, int64_t h) {
      return Rows<T>{x.data_ptr<T>() + b * x.stride(0) + h * x.stride(1), x.stride(2)};
    };
    auto read = [&](const Tensor& x, int64_t b, int64_t h) {
      const Rows<T> from = rows(x, b, h);
      return Rows<const T>{from.data, from.ld};
    };
    AttentionHead<T> head{.length = q.size(2),
                          .head_size = D,
                          .scale = static_cast<T>(1 / std::sqrt(static_cast<double>(D))),
                          .q = read(q, b, h),
                          .k = read(k, b, g),
                          .v = read(v, b, g),
                          .out = rows(out, b, h),
                          .lse = lse.data_ptr<T>() + b * lse.stride(0) + h * lse.stride(1),
                          .dout = {},
                          .dq = {},
                          .dk = {},
                          .dv = {}};
    if (dout.defined()) {
      head.dout = read(dout, b, h);
      head.dq = rows(dq, b, h);
      head.dk = rows(dk, b, g);
      head.dv = rows(dv, b, g);
    }
    return head;
  }
};

// f(head, scratch) for every query head; those of one key head follow each other in one task.
template <class T, class F>
void for_heads(const Heads& heads, const F& f) {
  const int64_t G = heads.k.size(1), group = heads.q.size(1) / G;
  at::parallel_for(0, heads.q.size(0) * G, 1, [&](int64_t begin, int64_t end) {
    const Tensor scratch =
        at::empty({attention_scratch(heads.q.size(2), heads.q.size(3))}, heads.q.options());
    for (int64_t task = begin; task < end; ++task)
      for (int64_t i = 0; i < group; ++i) {
        const int64_t b = task / G, h = task % G * group + i;
        f(heads.head<T>(b, h), scratch.data_ptr<T>());
      }
  });
}

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in) {
    const Tensor q = with_plain_rows(q_in), k = with_plain_rows(k_in), v = with_plain_rows(v_in);
    const int64_t B = q.size(0), H = q.size(1), T = q.size(2), D = q.size(3);
    const Tensor out = at::empty({B, T, H, D}, q.options()).transpose(1, 2);
    const Tensor lse = at::empty({B, H, T}, q.options());
    const Heads heads{q, out, lse, k, v, {}, {}, {}, {}};
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "causal_attention", [&] {
      for_heads<scalar_t>(heads, [](const AttentionHead<scalar_t>& head, scalar_t* scratch) {
        cpu_kernels<scalar_t>().attention(head, scratch);
      });
    });
    ctx->save_for_backward({q, k, v, out, lse});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1];
    const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::zeros(k.sizes(), k.options());
    const Heads heads{q,  saved[3], saved[4],          k, saved[2], with_plain_rows(grads[0]),
                      dq, dk,       at::zeros_like(dk)};
    AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "causal_attention_backward", [&] {
      for_heads<scalar_t>(heads, [](const AttentionHead<scalar_t>& head, scalar_t* scratch) {
        cpu_kernels<scalar_t>().attention_backward(head, scratch);
      });
    });
    return {dq, dk, heads.dv};
  }
};

}  // namespace

Tensor causal_attention(const Tensor& q, const Tensor& k, const Tensor& v) {
  if (has_cpu_kernels(q)) return CausalAttention::apply(q, k, v);
  return at::scaled_dot_product_attention(q, k, v, {}, 0.0, true, std::nullopt, q.size(1) != k.size(1));
}

}  // namespace isentrope::model
