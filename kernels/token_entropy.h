// Log-probability of a target token, entropy and log-sum-exp of each row of logits, and their gradient.
//
//   s_v = z_v / τ          p_v = exp(s_v) / Σ_w exp(s_w)          natural logarithms, nats
//   lse = log Σ_v exp(s_v)      logprob = s_y - lse      entropy H = -Σ_v p_v log p_v
//   sum_p2 = Σ p_v²             sum_p2_logp = Σ p_v² log p_v        (the terms of the covariance of p and log p)
//   dz_v = (1/τ) · [ dlogprob · (1[v = y] - p_v) - dentropy · p_v (log p_v + H) + dlse · p_v ]
//
// The entropy is kept centred while the row goes by: with a reference m near the maximum, l = Σ exp(s - m) and
// e = Σ exp(s - m)(s - m) give H = log l - e/l. The usual lse - Σ p·s loses every digit at large logits, and so would a
// gradient taken from lse alone in float: the backward pass reads (anchor, log_sum), with lse = anchor/τ + log_sum.
//
// Rows of a special kind:
//   target == ignore_index    every output 0, gradient 0, the row is not read
//   target outside [0, V)     every output NaN, gradient NaN (the CPU op refuses it instead); nothing is read out of bounds
//   a logit of -inf           p = 0, adds nothing; as the target: logprob = -inf
//   all logits -inf           logprob = lse = -inf, entropy 0, moments 0, gradient 0
//   any NaN or +inf           every output NaN (anchor: unspecified), gradient NaN
//   all incoming gradients 0  gradient 0, the row is not read
#pragma once
#include <cstdint>

#include "kernels/gpu/dtype.h"

namespace isentrope::kernels {

// N rows of V logits, in groups of group_rows rows: row n begins at
// (n / group_rows) * group_stride + (n % group_rows) * row_stride elements. V is contiguous.
struct LogitRows {
  int64_t rows = 0;          // N
  int64_t vocab = 0;         // V
  int64_t group_rows = 1;    // T of [B, T, V]
  int64_t group_stride = 0;  // in elements
  int64_t row_stride = 0;    // in elements
};

// Row outputs are float, or double where the logits are double; so are their gradients.
struct TokenEntropyRows {
  void* logprob = nullptr;      // [N]
  void* entropy = nullptr;      // [N]
  void* lse = nullptr;          // [N]
  void* anchor = nullptr;       // [N] a logit: the maximum, or at most 2·ln(2)·τ below it
  void* log_sum = nullptr;      // [N] log Σ exp((z - anchor)/τ)
  void* sum_p2 = nullptr;       // [N], or null: no moments
  void* sum_p2_logp = nullptr;  // [N], null where sum_p2 is
};

struct TokenEntropyForward : TokenEntropyRows {
  DType dtype = DType::kFloat;
  LogitRows layout;
  const void* logits = nullptr;     // [N, V] dtype, as layout says
  const int64_t* target = nullptr;  // [N]
  int64_t ignore_index = -100;
  double temperature = 1.0;  // τ > 0
};

// What the gradient of the logits is made of.
struct TokenEntropyRowGradients {
  const void* entropy = nullptr;   // [N] as the forward pass gave it, like the next two
  const void* anchor = nullptr;    // [N]
  const void* log_sum = nullptr;   // [N]
  const void* dlogprob = nullptr;  // [N], or null for 0
  const void* dentropy = nullptr;  // [N], or null for 0
  const void* dlse = nullptr;      // [N], or null for 0
};

struct TokenEntropyBackward : TokenEntropyRowGradients {
  DType dtype = DType::kFloat;
  LogitRows layout;                 // of logits
  LogitRows dlogits_layout;         // of dlogits: same N and V
  const void* logits = nullptr;     // [N, V] dtype
  const int64_t* target = nullptr;  // [N]
  int64_t ignore_index = -100;
  double temperature = 1.0;
  void* dlogits = nullptr;  // [N, V] dtype; may be the logits themselves, with the same layout
};

// One read of the logits. stream is a cudaStream_t; returns before the work is done. Throws std::invalid_argument for a
// dtype out of the list.
void token_entropy_forward_cuda(const TokenEntropyForward& p, void* stream);
// One read of the logits, one write of their gradient.
void token_entropy_backward_cuda(const TokenEntropyBackward& p, void* stream);

}  // namespace isentrope::kernels
