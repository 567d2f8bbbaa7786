// The batch source of a policy phase: prompts → rollouts → rewards → advantages → one batch an update.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"
#include "csrc/model/decoder.h"
#include "csrc/rl/advantage.h"
#include "csrc/rl/ares.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/rollout.h"

namespace isentrope::rl {

struct RolloutConfig {
  int64_t prompts = 32;
  int64_t samples = 8;
  int64_t updates = 1;
  SamplingConfig sampling;
  AdvantageConfig advantage;
  std::optional<OverlongConfig> overlong;
  std::optional<AresConfig> ares;
  bool filter_groups = false;
  int64_t max_draws = 10;
  bool mask_truncated = false;

  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("prompts", prompts, "Prompts a step.", at_least(1));
    v("samples", samples, "Completions a prompt: the group whose rewards are compared.", at_least(1));
    v("updates", updates, "Optimiser updates a step, each on its own share of the prompts.", at_least(1));
    sampling.visit(v);
    v("advantage", advantage, "How rewards of a group become advantages.");
    v("overlong", overlong, "Soft penalty of completions near the length limit (DAPO); absent: none.");
    v("ares", ares, "Shape rewards by the entropy of completions and the difficulty of prompts (ARES); absent: none.");
    v("filter_groups", filter_groups,
      "Draw more prompts in place of groups whose rewards are all equal (DAPO); with ares: all right or all wrong.");
    v("max_draws", max_draws, "filter_groups: batches of prompts drawn in one step before it stops with an error.", at_least(1));
    v("mask_truncated", mask_truncated, "Leave completions that reached the length limit out of the loss.");
  }
};

class RolloutSource : public data::BatchSource {
 public:
  RolloutSource(const RolloutConfig& config, const model::Decoder& model, const data::Tokenizer& tokenizer,
                std::shared_ptr<const data::ExampleSource> examples, RewardSum reward, uint64_t seed);

  data::StepData next(int64_t step) override;
  void observe(const std::map<std::string, double>& seen) override;
  std::map<std::string, torch::Tensor> state() const override;
  void restore(const std::map<std::string, torch::Tensor>& state) override;

 private:
  RolloutConfig config_;
  model::Decoder model_;
  const data::Tokenizer& tokenizer_;
  std::shared_ptr<const data::ExampleSource> examples_;
  RewardSum reward_;
  uint64_t seed_;
  std::optional<Ares> ares_;
  int64_t taken_ = 0;  // prompts drawn so far
};

}  // namespace isentrope::rl
