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
//
// Truncated entropy, of the tokens that are kept (a set K of the vocabulary) and their probabilities renormalised:
//
//   K: top_p q            the fewest likeliest tokens whose probabilities reach q, the one that crosses included; 0 < q ≤ 1
//      without_lowest s   all but the floor(s V) least likely; 0 ≤ s < 1 (the product in double)
//      of equal logits those of lower ids are the likelier, so K is {v: z_v > t, or z_v = t and v ≤ last}
//   p'_v = p_v / Σ_K p      kept_entropy H_K = -Σ_K p' log p'
//   dz_v += (1/τ) · -dkept · p'_v (log p'_v + H_K) in K: K is held constant
//
// K is found by passes over digits of the logits, without a sort. What decides whether q is reached is the mass of a token,
// floor(2^39 exp(s - anchor/τ)), the exponential in the type sums are kept in: sums of masses are integers, the same in whatever order,
// and K depends on the row alone. It differs from that of exact arithmetic only where q lies within their rounding of the sum that
// decides: relative to a mass 2^-23 (1 + log2(p_max / p)) in float, and V · 2^-39 in all. Vocabularies of up to 2^23 tokens fit 64 bits. q = 1 and
// s V < 1 keep every token: kept_entropy has the bits of entropy.
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

enum class Keep { kTopP, kWithoutLowest };

// What is left of a row, as the gradient reads it; of a row that is ignored all 0, of one of NaN all NaN.
struct KeptTokens {
  double entropy;  // H_K
  double log_sum;  // log Σ_K exp((z - anchor)/τ)
  double logit;    // t
  double last;     // an id
};

// After the forward pass, whose outputs it reads.
struct TokenEntropyKeep {
  DType dtype = DType::kFloat;
  LogitRows layout;
  const void* logits = nullptr;     // [N, V] dtype, as layout says
  const int64_t* target = nullptr;  // [N]
  int64_t ignore_index = -100;
  double temperature = 1.0;
  Keep keep = Keep::kTopP;
  double share = 1.0;             // q or s
  const void* entropy = nullptr;  // [N]
  const void* anchor = nullptr;   // [N]
  const void* log_sum = nullptr;  // [N]
  void* kept_entropy = nullptr;   // [N] like entropy
  KeptTokens* kept = nullptr;     // [N]
};

// What the gradient of the logits is made of.
struct TokenEntropyRowGradients {
  const void* entropy = nullptr;     // [N] as the forward pass gave it, like the next two
  const void* anchor = nullptr;      // [N]
  const void* log_sum = nullptr;     // [N]
  const void* dlogprob = nullptr;    // [N], or null for 0
  const void* dentropy = nullptr;    // [N], or null for 0
  const void* dlse = nullptr;        // [N], or null for 0
  const void* dkept = nullptr;       // [N] of kept_entropy, or null for 0
  const KeptTokens* kept = nullptr;  // [N], null where dkept is
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
// A read of the logits for each digit of a logit, and for each of an id where equal logits are at the edge, and one for the sums.
void token_entropy_keep_cuda(const TokenEntropyKeep& p, void* stream);
// One read of the logits, one write of their gradient.
void token_entropy_backward_cuda(const TokenEntropyBackward& p, void* stream);

}  // namespace isentrope::kernels
