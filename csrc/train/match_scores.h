// How well texts match, of the vectors of their tokens, and the loss that learns it. q_i: vector of token i of a text of the first kind, of n
// tokens; y_j: of one of the second, of m; cos: the cosine.
//
//   soft  s = Σ_i Σ_j A_ij cos(q_i, y_j),  A_ij = exp(q_i · y_j / τ_a) / Σ_k exp(q_i · y_k / τ_a)     (soft late interaction)
//   max   s = Σ_i max_j cos(q_i, y_j)                                                                 (arXiv 2004.12832)
//   mean  s = cos(Σ_i q_i / n, Σ_j y_j / m)
//
// Many-to-many InfoNCE of scores s [Q, N], P(q): the texts that match q,
//
//   L = mean over q of mean over y in P(q) of −ln(exp(s_qy / τ) / Σ_z exp(s_qz / τ))
//
// and, symmetric, the same of sᵀ added; rows of which nothing matches are left out. Its least value is the mean of ln |P|. Loss and soft
// late interaction are those of Unified Work Embeddings, as a reader of the paper tells them.
#pragma once
#include <torch/types.h>

#include "csrc/data/contrastive_config.h"

namespace isentrope::train {

// A vector shorter than this counts as that long in a cosine.
inline constexpr double kLeastLength = 1e-8;

// a [Q, T, D], lengths [Q]; b [N, S, D], lengths [N] → s [Q, N], in a's dtype. Lengths are at least 1.
torch::Tensor match_scores(const data::ContrastiveConfig& config, const torch::Tensor& a,
                           const torch::Tensor& a_lengths, const torch::Tensor& b, const torch::Tensor& b_lengths);

// s [Q, N], matches [Q, N] bool → L, a scalar in s's dtype; 0 where nothing matches.
torch::Tensor contrastive_loss(const data::ContrastiveConfig& config, const torch::Tensor& s,
                               const torch::Tensor& matches);

}  // namespace isentrope::train
