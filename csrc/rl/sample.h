// One token drawn from a row of logits.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "csrc/rl/rollout.h"

namespace isentrope::rl {

struct Draw {
  int64_t token;
  float logprob, entropy;  // of softmax(logits / temperature) over the whole vocabulary; at temperature 0, of
                           // softmax(logits)
};

class Sampler {
 public:
  Sampler(const SamplingConfig& config, int64_t vocabulary);

  // logits [V]; uniform in (0, 1) picks the token by the inverse of the cumulative distribution: in the order
  // of tokens, or where top_k or top_p cut, in that of their probabilities. top_k cuts first; top_p counts
  // what it left as 1. Equal probabilities rank by token. Temperature 0: the first of the likeliest. Tokens of
  // `forbidden` are not drawn: it is as if their logits were −infinity, but for logprob and entropy. Throws
  // std::runtime_error where no finite distribution comes out of the logits.
  Draw draw(const float* logits, double uniform, std::span<const int64_t> forbidden = {});

 private:
  int64_t truncated(double uniform, float total);
  std::string why_not_finite(const float* logits) const;

  SamplingConfig config_;
  std::vector<float> weight_;     // [V] e^(y − max y)
  std::vector<float> allowed_;    // [V] logits with those of forbidden tokens at −infinity
  std::vector<int32_t> ranking_;  // [V]
};

}  // namespace isentrope::rl
