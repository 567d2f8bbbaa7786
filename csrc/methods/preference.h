// Losses on pairs of completions of one prompt, the better w beside the worse l, and what a pair of models tells of one another.
//
//   h = log π(w)/π_ref(w) − log π(l)/π_ref(l), sums over the tokens of a completion     ε = label_smoothing
//   sigmoid, sigmoid_norm   −(1 − ε) log σ(β h) − ε log σ(−β h)        arXiv 2305.18290; ε: conservative DPO
//   robust                  (−(1 − ε) log σ(β h) + ε log σ(−β h)) / (1 − 2ε)      arXiv 2403.00409
//   hinge                   max(0, 1 − β h)                            arXiv 2305.10425
//   ipo                     (h − 1/(2β))²                              arXiv 2310.12036
//
// sigmoid_norm and ipo take log-ratios a token, as TRL 1.16.0 does: who calls divides them.
#pragma once
#include <torch/types.h>

#include <string_view>

namespace isentrope::methods {

using torch::Tensor;

// chosen, rejected: [P] float, log π/π_ref of the two completions, nats → [P] losses, with gradient.
// Throws c10::ValueError for a loss of another name, β not above 0, ε outside [0, 0.5] or 0.5 of robust.
Tensor preference_loss(const Tensor& chosen, const Tensor& rejected, std::string_view loss, double beta,
                       double label_smoothing);
// Whether the loss takes log-ratios a token.
bool preference_by_token(std::string_view loss);

// Entropy, nats, of q = softmax over the last dimension of log π(y) − log π_ref(y): of the differential information distribution
// (arXiv 2505.23761) over K answers drawn for a prompt. Between 0 and log K; it is relative to these K, so that it compares
// checkpoints on the same answers alone. [..., K] float → [...] double; a constant to autograd.
Tensor differential_information(const Tensor& logprob, const Tensor& ref_logprob);

}  // namespace isentrope::methods
