// What the entropy of attention is at least, from the spread of the logits alone: a certificate against collapse.
//
// A row of n > 1 keys in sight with logits s_j (scaled, capped and divided by the temperature, as the softmax sees them):
//
//   r = ‖s - mean(s)‖₂      β = exp(-r √(n/(n-1)))
//   entropy ≥ log(1 + (n-1) β) + r √(n(n-1)) β / (1 + (n-1) β)
//
// with equality where one logit stands above all others alike. From log n at r = 0 it falls like n r exp(-r): r = 3 still
// promises 94 % of log n at n = 128, r = 10 a hundredth. Theorem 3.1 of "Stabilizing Transformer Training by Preventing Attention
// Entropy Collapse" (Zhai et al., ICML 2023, arXiv:2303.06296) has for r the product of norms ‖W_K W_Qᵀ‖ ‖X Xᵀ‖, which is never
// smaller; the proof asks for no more than the length of the centred row.
#pragma once
#include <ATen/core/Tensor.h>

#include "csrc/ops/ops.h"

namespace isentrope::model {

// q [B, H, T, D], k [B, G, T, D] of a causal attention → [B, H, T] nats, 0 for rows of one key. No gradient. Of the options
// window, softcap, scale and temperature are taken. Logits are made again, for a block of queries at a time: as many products as
// the forward pass of attention needs for its logits.
at::Tensor entropy_bound(const at::Tensor& q, const at::Tensor& k, const ops::EntropyAttentionOptions& options);

}  // namespace isentrope::model
