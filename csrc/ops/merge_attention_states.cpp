#include <ATen/ATen.h>

#include <cmath>
#include <tuple>

#include "csrc/ops/attention_entries.h"
#include "csrc/ops/check.h"
#include "csrc/ops/ops.h"

namespace isentrope::ops {

// With weights w_i = exp(lse_i - lse): out = Σ w_i out_i, H = Σ w_i (H_i - log w_i). A state without keys has w_i = 0.
AttentionStates merge_attention_states_composite(const Tensor& out, const Tensor& lse, const Tensor& entropy,
                                                 const Tensor& max_logit) {
  constexpr const char* op = "merge_attention_states";
  OP_CHECK(op, lse.dim() >= 1 && lse.sym_size(0) >= 1, "lse has shape ", lse.sym_sizes(),
           "; wanted [states, …], at least one state");
  OP_CHECK(op, out.dim() == lse.dim() + 1, "out has ", out.dim(), " dimensions; wanted ", lse.dim() + 1,
           ", those of lse and D");
  check_shape(op, "lse", lse, out.sym_sizes().slice(0, out.dim() - 1), "out without its last dimension");
  // [0] stands for none: no statistic of at least one state has that shape.
  const bool with_entropy = entropy.dim() != 1 || entropy.sym_size(0) != 0,
             with_max = max_logit.dim() != 1 || max_logit.sym_size(0) != 0;
  if (with_entropy) check_shape(op, "entropy", entropy, lse.sym_sizes(), "as lse");
  if (with_max) check_shape(op, "max_logit", max_logit, lse.sym_sizes(), "as lse");
  for (const auto& [name, x, there] :
       {std::tuple("out", out, true), std::tuple("lse", lse, true), std::tuple("entropy", entropy, with_entropy),
        std::tuple("max_logit", max_logit, with_max)}) {
    if (!there) continue;
    check_dtype(op, name, x, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
    check_device(op, name, x, "lse", lse);
  }
  const Tensor empty = lse.eq(-INFINITY), anchor = std::get<0>(lse.detach().max(0));
  const Tensor far = (lse - anchor.masked_fill(anchor.eq(-INFINITY), 0)).masked_fill(empty, 0);  // lse_i - anchor ≤ 0
  const Tensor weight = far.exp().masked_fill(empty, 0), sum = weight.sum(0), none = sum.eq(0);
  const Tensor log_sum = sum.masked_fill(none, 1).log(), share = weight / sum.masked_fill(none, 1);
  const Tensor merged = (out.to(lse.scalar_type()) * share.unsqueeze(-1)).sum(0).to(out.scalar_type());
  return {merged, (log_sum + anchor.masked_fill(none, 0)).masked_fill(none, -INFINITY),
          with_entropy ? (share * (entropy - far)).sum(0) + log_sum : entropy,
          with_max ? std::get<0>(max_logit.detach().max(0)) : max_logit};
}

EntropyAttention merge_attention_states(const Tensor& out, const Tensor& lse, const Tensor& entropy,
                                        const Tensor& max_logit) {
  const Tensor none = at::empty({0}, lse.options());
  auto [o, l, H, m] = merge_attention_states_composite(out, lse, entropy.defined() ? entropy : none,
                                                       max_logit.defined() ? max_logit : none);
  return {o, l, entropy.defined() ? H : Tensor(), max_logit.defined() ? m : Tensor()};
}

}  // namespace isentrope::ops
