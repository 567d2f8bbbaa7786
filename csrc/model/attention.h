// Causal attention of whole sequences, the training path.
#pragma once
#include <ATen/core/Tensor.h>

namespace isentrope::model {

// q [B, H, T, D], k, v [B, G, T, D], H a multiple of G → out [B, H, T, D], out_t = Σ_{s ≤ t} p_ts v_s with
// p_t = softmax over s ≤ t of q_t·k_s / √D; query head h reads key head h / (H / G).
// Float and double on the CPU: own kernels, one task a sequence and key head; out lies in memory as [B, T, H,
// D], so that joining the heads copies nothing. Elsewhere torch's scaled_dot_product_attention. Gradients are
// first order.
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

}  // namespace isentrope::model
