// Controller: the entropy of the tokens that hesitate most is held where it was (arXiv 2509.25133, "SIREN": selective entropy
// regularisation).
//
//   loss + coef (m − anchor)²,    m the mean of the kept entropies of the share of tokens of highest entropy
#pragma once
#include <tuple>

#include "csrc/methods/method.h"

namespace isentrope::methods {

// The bonus that has the gradient of this term: its coefficient [] double, −2 coef (m − anchor); a token's weight in it [B, T] of
// entropy's dtype, N over their number on the max(1, round(share N)) tokens of highest entropy of the N that mask marks (as
// csrc/methods/top_entropy.h chooses), else 0; and m [] double. −coefficient · Σ weight · kept / N has the gradient of the term by the
// kept entropies. entropy, kept [B, T] nats; kept: over the part of the vocabulary that is held, or all of it. anchor NaN: the
// coefficient is 0, as with coef 0. No token: m and the coefficient are 0. coef ≥ 0, share in (0, 1]. float32 or float64.
std::tuple<Tensor, Tensor, Tensor> siren(const Tensor& entropy, const Tensor& kept, const Tensor& mask, double anchor,
                                         double coef, double share);

}  // namespace isentrope::methods
