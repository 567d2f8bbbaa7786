// Accuracy on held-out prompts: greedy, sampled, pass@k, and the policy's entropy on the samples.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/source.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"
#include "csrc/model/decoder.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/rollout.h"

namespace isentrope::train {

struct EvaluationConfig {
  int64_t every = 0;
  int64_t from = 0;
  int64_t prompts = 256;
  int64_t sampled_prompts = 128;
  int64_t samples = 8;
  double temperature = 1.0;
  int64_t max_new_tokens = 0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("every", every, "Steps between evaluations; 0 for the end of the phase alone.", at_least(0));
    v("from", from, "First step that is evaluated.", at_least(0));
    v("prompts", prompts, "Held-out prompts answered greedily.", at_least(1));
    v("sampled_prompts", sampled_prompts, "Held-out prompts answered by samples.", at_least(1));
    v("samples", samples, "Samples a prompt (k of pass@k).", at_least(1));
    v("temperature", temperature, "Temperature of the samples.", above(0));
    v("max_new_tokens", max_new_tokens, "Longest answer in tokens; 0 for that of the rollouts, or what the context leaves.",
      at_least(0));
  }
};

struct Evaluation {
  double greedy;    // share of prompts answered right at temperature 0
  double sampled;   // mean share of right samples
  double pass_k;    // share of prompts with at least one right sample
  int64_t k;
  double entropy;   // mean token entropy of the samples, nats
  double length;    // mean tokens of the samples
};

// The held-out prompts of a data set and what a right answer to them is.
class HeldOut {
 public:
  // A completion is right where the first of rewards gives it at least 0.5; no reward: exact.
  // max_new_tokens: for evaluations that do not set their own. tint: the largest of its sizes, the one training is for.
  HeldOut(const data::DataConfig& data, const std::vector<rl::RewardConfig>& rewards,
          const std::map<std::string, rl::RewardFunction>& custom, const data::Tokenizer& tokenizer, data::Split split,
          int64_t max_new_tokens);

  // Draws depend on (prompt, sample) alone: two evaluations of the same weights agree.
  Evaluation evaluate(const model::Decoder& model, const EvaluationConfig& config) const;

 private:
  const data::Tokenizer& tokenizer_;
  std::unique_ptr<data::ExampleSource> source_;
  rl::RewardSum score_;
  int64_t max_new_tokens_;
};

}  // namespace isentrope::train
