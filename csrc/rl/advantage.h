// From the rewards of a group of completions to one advantage a completion, and what is done to rewards and
// groups before it. Pure functions; rewards, lengths and results live on the CPU.
//
// P prompts, K completions a prompt (the group); s = reward of a completion, n = its length in tokens.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <string>

#include "csrc/field.h"

namespace isentrope::rl {

struct AdvantageConfig {
  std::string kind = "grpo";
  double eps = 1e-6;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind, "How the rewards of a group become advantages (csrc/rl/advantage.h).",
      one_of({"grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "opo"}));
    v("eps", eps, "grpo: added to the standard deviation of the group's rewards.", at_least(0));
  }
};

// rewards [P, K] double, lengths [P, K] int64 (≥ 0) → advantages [P, K] double; every token of a completion has its
// completion's.
//
//   grpo                           (s − mean s) / (std s + eps), std with K − 1             arXiv 2402.03300
//   dr_grpo                        s − mean s                                               arXiv 2503.20783
//   rloo                           s − mean of the others' s                                arXiv 2402.14740
//   opo                            s − Σ n s / Σ n                                          arXiv 2505.23585
//   reinforce_plus_plus_baseline   a = s − mean s, then (a − m) / √(v + 1e-8), m and v the mean and the unbiased
//                                  variance of a over all tokens of the batch               arXiv 2501.03262
//
// Means without a mark are over the group. A group of one has no baseline: its mean counts as 0 and its std as 1, so
// grpo gives s / (1 + eps) and the others s. A group without tokens has baseline 0 in opo; a batch of fewer than two
// tokens is centred but not scaled. No prompts: an empty result. Throws c10::Error on other shapes and dtypes, a
// reward that is not finite, a negative length, an unknown kind.
torch::Tensor advantages(const torch::Tensor& rewards, const torch::Tensor& lengths,
                         const AdvantageConfig& config);

// rewards [P, K] double → [P] bool: true where the rewards of a group differ, so that it has something to say
// (dynamic sampling, DAPO, arXiv 2503.14476). A group of one is kept.
torch::Tensor keep_groups(const torch::Tensor& rewards);

struct OverlongConfig {
  int64_t buffer = 4096;
  double factor = 1.0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("buffer", buffer, "The penalty grows from 0 over this many tokens before the length limit.",
      at_least(1));
    v("factor", factor, "Penalty of a completion as long as the limit.", at_least(0));
  }
};

// lengths [P, K] int64 → [P, K] double to be added to the rewards (soft overlong punishment, DAPO):
//   min(0, −factor · (n − (max_len − buffer)) / buffer)
// Throws c10::Error where buffer is not in 1 … max_len.
torch::Tensor overlong_penalty(const torch::Tensor& lengths, const OverlongConfig& config, int64_t max_len);

}  // namespace isentrope::rl
