// One token drawn from a row of logits.
#pragma once
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "csrc/rl/rollout.h"

namespace isentrope::rl {

struct Draw {
  int64_t token;
  float logprob, entropy;      // of softmax(logits / temperature) over the whole vocabulary; at temperature 0, of
                               // softmax(logits)
  float sum_p2 = 0;            // Σ p² of the same, where SamplingConfig::sum_p2 asks for it
  float sampling_logprob = 0;  // of what is left of it after all changes and cuts, of which the token was drawn; at
                               // temperature 0, where one token is left, 0
};

// Every token that the logits allow is forbidden.
struct NothingAllowed : std::runtime_error {
  NothingAllowed() : std::runtime_error("rollout: every token that the logits allow is forbidden") {}
};

class Sampler {
 public:
  Sampler(const SamplingConfig& config, int64_t vocabulary);

  // logits [V]; uniform in (0, 1) picks the token by the inverse of the cumulative distribution: in the order
  // of tokens, or where top_k or top_p cut, in that of their probabilities. Equal probabilities rank by token.
  // Temperature 0: the first of the likeliest. In this order, that of transformers' generate():
  //   repetition_penalty c: logits x of the tokens of `seen` become x / c, or x · c where they are below 0, each once;
  //   `forbidden`: as if their logits were −infinity; division by temperature;
  //   top_k; top_p, which counts what top_k left as 1; min_p: tokens with p < min_p · max p are not drawn.
  // (vLLM cuts by min_p before top_k and top_p.) logprob and entropy know of none of these but the temperature. Throws
  // NothingAllowed, or std::runtime_error where no finite distribution comes out of the logits.
  Draw draw(const float* logits, double uniform, std::span<const int64_t> forbidden = {},
            std::span<const int64_t> seen = {});

 private:
  // Those after repetition_penalty and without `forbidden` become the weights to draw by, mass_ their sum.
  void change(const float* logits, float scale, std::span<const int64_t> forbidden, std::span<const int64_t> seen);
  int64_t truncated(double uniform);  // what top_k, top_p and min_p leave is mass_
  void cut_unlikely();                // weights that min_p cuts become 0, mass_ the sum of the others
  std::string why_not_finite(const float* logits) const;

  SamplingConfig config_;
  std::vector<float> weight_;     // [V] e^(y − max y)
  std::vector<float> allowed_;    // [V] logits as they were changed
  std::vector<int32_t> ranking_;  // [V]
  std::vector<bool> penalised_;   // [V], of the draw in hand
  float highest_ = 0;             // max y
  double mass_ = 0;               // Σ of the weights that are drawn among
};

}  // namespace isentrope::rl
