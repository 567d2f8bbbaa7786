// The batch source of a policy phase: prompts → rollouts → rewards → advantages → one batch an update. It draws, asks and collects;
// what is done to rewards and advantages stands in lists of methods (csrc/methods).
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
#include "csrc/methods/chain.h"
#include "csrc/model/decoder.h"
#include "csrc/rl/allocation.h"
#include "csrc/rl/peers.h"
#include "csrc/rl/policy_batch.h"
#include "csrc/rl/reference_logprob.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/reward_list.h"
#include "csrc/rl/rollout.h"
#include "csrc/rl/saved_step.h"

namespace isentrope::rl {

// Where sequences branch (csrc/rl/rollout.h); the threshold is found while the run goes on.
struct BranchConfig {
  int64_t window = 4;
  double quantile = 0.95;
  double decay = 0.9;
  int64_t sequences = 0;
  int64_t tokens = 0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("window", window, "Tokens of a window of entropy, and least distance of two branches of a sequence.",
      at_least(1));
    v("quantile", quantile,
      "Sequences branch where a window is as high as the threshold: this quantile of a completion's windows, its mean "
      "over the "
      "completions of a step, and the running mean of that over the steps before. No branch in the first step.",
      between(0, 1));
    v("decay", decay, "Decay of that running mean.", between(0, 1));
    v("sequences", sequences, "Most sequences of a prompt, its samples included; 0 for twice rollout.num_generations.",
      at_least(0));
    v("tokens", tokens,
      "Most tokens that the branches of a prompt draw, each counted as its longest; 0 for any number.", at_least(0));
  }
};

// Completions that a step draws besides its own, for the prompts that it keeps, and of whose rewards the policy learns too: the loss has
// − coef Σ R ℓ more.
struct SecondSet {
  std::string name;  // of its metrics
  double temperature;
  double coef;
  int64_t num_generations;  // a prompt
};

// A second set of completions of a step's prompts, drawn at another temperature, whose rewards R the policy learns from besides (AEPO,
// arXiv 2510.08141). The loss has − coef Σ R ℓ more, over the tokens of the second set and aggregated as the loss is, with ℓ their
// log-probabilities under the policy itself, at rollout.temperature. What colder completions teach lowers the policy's entropy, what
// hotter ones teach raises it: they are drawn at `high` where the mean entropy of the step's own completions is below the target, else at
// `low`. The authors publish neither temperature nor coefficient; those here are ours.
struct TemperedConfig {
  double target = 0.5;
  double low = 0.8;
  double high = 1.2;
  double coef = 0.1;
  int64_t num_generations = 1;

  std::string problem() const { return low > high ? "low: is above high; wanted at most as large" : ""; }
  // entropy: mean of the step's own completions, nats a token.
  SecondSet second(double entropy) const {
    return {.name = "tempered",
            .temperature = entropy < target ? high : low,
            .coef = coef,
            .num_generations = num_generations};
  }
  template <class Visitor>
  void visit(Visitor& v) {
    v("target", target, "Mean entropy of a token, nats, that is steered to (the authors' scripts: 0.5).", at_least(0));
    v("low", low, "Temperature of the second set at or above the target.", between(1e-3, 100));
    v("high", high, "Temperature of the second set below the target.", between(1e-3, 100));
    v("coef", coef, "Weight of what it teaches; 0: none is drawn.", at_least(0));
    v("num_generations", num_generations,
      "Completions a prompt of it: as few as hold the entropy (the authors' scripts: 60 a step of 512 prompts).",
      between(1, 1 << 16));
  }
};

struct RolloutConfig {
  int64_t prompts = 32;
  int64_t num_generations = 8;
  int64_t mini_batches = 1;
  int64_t epochs = 1;
  SamplingConfig sampling;
  CacheConfig cache;
  std::optional<BranchConfig> branch;
  std::optional<AllocationConfig> allocation;
  std::optional<TemperedConfig> tempered;
  bool mask_truncated = false;
  int64_t save_every = 0;

  std::string problem() const;
  int64_t most_samples() const {
    return allocation->most > 0 ? allocation->most : 2 * num_generations;
  }  // with allocation
  bool draws_second() const { return tempered && tempered->coef > 0; }
  SecondSet second(double entropy) const { return tempered->second(entropy); }  // where it does

  template <class Visitor>
  void visit(Visitor& v) {
    v("prompts", prompts, "Prompts a step.", between(1, 1 << 20));
    v("num_generations", num_generations, "Completions a prompt: the group whose rewards are compared.",
      between(1, 1 << 16));
    v("mini_batches", mini_batches, "Parts that the prompts of a step are cut into, an optimiser update each.",
      at_least(1));
    v("epochs", epochs,
      "Times that a step's updates go over its completions (TRL: num_iterations, verl: ppo_epochs); objective.max_kl "
      "ends them early.",
      between(1, 1024));
    sampling.visit(v);
    cache.visit(v);
    v("branch", branch, "Let sequences branch where the policy hesitates; absent: they do not.");
    v("allocation", allocation,
      "Share a step's prompts · num_generations completions out by how often each prompt was answered right before; "
      "absent: "
      "evenly.");
    v("tempered", tempered,
      "Draw a second set of completions at another temperature, which steers the entropy (AEPO); absent: none.");
    v("mask_truncated", mask_truncated, "Leave completions that reached the length limit out of the loss.");
    v("save_every", save_every,
      "Steps between those whose completions go to <run.dir>/rollouts/<phase>.jsonl, with rewards, advantages, and "
      "log-probability and entropy by token; 0 for none.",
      at_least(0));
  }
};

// Takes all completions of a step that draws any, in the order in which they were drawn.
using SaveRollouts = std::function<void(int64_t step, const std::vector<SavedRollout>& rollouts)>;

// What is done to the rewards of a step, and how they become advantages; no advantage at all: grpo.
struct Methods {
  std::vector<Shaping> reward = {};
  std::vector<methods::Advantage> advantage = {};

  std::optional<methods::Selection> selection() const;  // nothing: every group is kept
  std::string needs_reference() const;  // the kind of a reward that is measured against one, "" for none
  // What is wrong with them for these rollouts; "" if nothing is.
  std::string problem(const RolloutConfig& rollout) const;
};

class RolloutSource : public data::BatchSource {
 public:
  // save: called within next() at every config.save_every-th step. peers: draw and judge the completions of a step together, each its
  // part, and all learn from all of them. reference: what rewards are measured against; throws std::invalid_argument where one is and
  // there is none.
  RolloutSource(const RolloutConfig& config, const model::Decoder& model, const data::Tokenizer& tokenizer,
                std::shared_ptr<const data::ExampleSource> examples, RewardSum reward, Methods methods, uint64_t seed,
                SaveRollouts save = {}, std::shared_ptr<const Peers> peers = std::make_shared<Peers>(),
                std::optional<Reference> reference = std::nullopt);

  data::StepData next(int64_t step) override;
  void observe(const std::map<std::string, double>& seen) override;
  void commit() override;
  std::map<std::string, torch::Tensor> state() const override;
  void restore(const std::map<std::string, torch::Tensor>& state) override;

 private:
  // What passes from step to step.
  struct Passed {
    int64_t taken = 0;                // prompts drawn so far
    int64_t empty = 0;                // steps in a row that found too few groups
    std::optional<double> threshold;  // of branches, nats
    PassRecord record;
    methods::Chain<Shaping> shaping;
    methods::Chain<methods::Advantage> advantage;
    int64_t told = 0;  // bits of Told
  };
  enum Told : int64_t { kUnscored = 1, kTimedOut = 2 };
  struct Drawn;  // a batch of prompts with what was drawn for them
  struct Tally;  // what is told of a step

  std::optional<Branching> branching() const;
  // How many completions each prompt gets, prompts · samples in all.
  std::vector<int64_t> samples_of(const std::vector<data::Example>& examples) const;
  Drawn draw(int64_t step, const std::optional<Branching>& branching);
  void score(Drawn& drawn) const;
  std::vector<double> greedy_rewards(const Drawn& drawn) const;  // of each prompt
  // The second set for the prompts kept, and each update's share of it.
  void draw_second(int64_t step, const SecondSet& set, const Kept& kept, data::StepData& data, Tally& tally) const;
  void tally(const Drawn& drawn, Tally& tally) const;
  void warn(const Drawn& drawn, std::vector<std::string>& warnings);    // of its rewards, each kind once
  void keep(Drawn& drawn, Kept& kept, Tally& tally, SavedStep* saved);  // the groups that the step learns from
  void count_empty_step(int64_t groups);                                // stops a run that finds none
  void tell(const Tally& tally, int64_t groups, const std::optional<Branching>& branching,
            std::map<std::string, double>& stats) const;

  RolloutConfig config_;
  model::Decoder model_;
  const data::Tokenizer& tokenizer_;
  std::shared_ptr<const data::ExampleSource> examples_;
  RewardSum reward_;
  Methods methods_;
  std::optional<methods::Selection> selection_;
  uint64_t seed_;
  SaveRollouts save_;
  std::shared_ptr<const Peers> peers_;
  std::optional<Reference> reference_;  // where a reward asks for it
  Passed whole_;                        // after the last step that is whole: what state() tells
  Passed pending_;                      // of the step in hand; next() begins it anew, commit() takes it over
};

}  // namespace isentrope::rl
