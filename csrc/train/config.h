// The configuration of a run: one YAML file, every key declared by the struct that owns it (csrc/field.h).
//
// read_config parses the file, applies key.path=value overrides, and validates. Every error is a ConfigError that names
// file, line, dotted path, what came and what was wanted; an unknown key also names the nearest valid one.
#pragma once
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/data/source.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"
#include "csrc/message.h"
#include "csrc/methods/combinations.h"
#include "csrc/model/decoder.h"
#include "csrc/rl/environment_config.h"
#include "csrc/rl/mined_pairs.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/reward_list.h"
#include "csrc/rl/rollout_source.h"
#include "csrc/train/evaluation.h"
#include "csrc/train/objective.h"
#include "csrc/train/optimizer.h"
#include "csrc/train/schedule.h"
#include "csrc/train/trackers.h"

namespace isentrope::train {

struct RunConfig {
  std::string dir = "runs/run";
  int64_t seed = 1;
  int64_t threads = 0;
  std::string device = "auto";
  std::string start;
  std::vector<std::string> libraries;
  int64_t checkpoint_every = 200;
  int64_t keep = 2;
  double time_limit_s = 0;
  double save_before_s = 60;
  double timeout_s = 600;

  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("dir", dir, "Folder of the run: metrics.jsonl, checkpoints, the resolved configuration.");
    v("seed", seed, "Fixes every random draw of the run.",
      between(0, 9007199254740992));  // 2^53: exact in every JSON reader
    v("threads", threads, "CPU threads; 0 for as many as the process may use.", between(0, 1024));
    v("device", device, "Where the model lives: auto takes a GPU where there is one.", one_of({"auto", "cpu", "cuda"}));
    v("start", start,
      "Checkpoint, run or folder of transformers to start from: its weights are taken, and the phases up to its own "
      "are "
      "skipped (docs/resume.md).");
    v("libraries", libraries,
      "Shared libraries that are loaded before anything else: torch operators of one's own, for methods of kind op.");
    v("checkpoint_every", checkpoint_every, "Steps between checkpoints; 0 for the ends of phases alone.", at_least(0));
    v("keep", keep, "Checkpoints kept within a phase; those at the ends of phases always stay.", at_least(1));
    v("time_limit_s", time_limit_s,
      "Seconds that the process may run, from its start; 0 where that is not known, or Slurm says it "
      "(SLURM_JOB_END_TIME).",
      at_least(0));
    v("save_before_s", save_before_s,
      "Seconds before the end of a known limit at which the run has saved and leaves with exit code 75 "
      "(docs/resume.md); no step begins that would take longer. 0: it does not look at the limit.",
      at_least(0));
    // The limit that torch has for NCCL. A rank waits for another as long as that one takes longer over rollouts and rewards.
    v("timeout_s", timeout_s,
      "Several processes (torchrun): seconds that a rank waits for the others, at the start and within a step, before "
      "the "
      "run ends with the name of the rank that did not come.",
      between(1, 1e6));
  }
};

struct StopConfig {
  std::optional<double> sampled = {};
  std::optional<double> greedy = {};
  std::optional<double> bits_per_byte = {};

  bool reached(const Evaluation& evaluation) const;  // all that are given

  template <class Visitor>
  void visit(Visitor& v) {
    v("sampled", sampled, "Least sampled accuracy at which the phase may end.", between(0, 1));
    v("greedy", greedy, "Least greedy accuracy at which the phase may end.", between(0, 1));
    v("bits_per_byte", bits_per_byte, "Most bits per byte of held-out text at which a pretrain phase may end.",
      at_least(0));
  }
};

struct PhaseConfig {
  std::string name;
  ObjectiveConfig objective;
  data::DataConfig data;
  BatchConfig batch;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  int64_t steps = 100;
  std::optional<rl::RolloutConfig> rollout;
  std::optional<rl::PairsConfig> pairs;
  std::optional<rl::EnvironmentConfig> environment;
  std::vector<rl::RewardEntry> reward;
  std::vector<methods::Advantage> advantage;
  std::vector<methods::Weight> weight;
  EvaluationConfig evaluation;
  std::optional<StopConfig> stop;

  std::string problem() const;  // keys that do not go together: a grpo phase without rollout or reward, …
  std::vector<rl::RewardConfig> scores() const { return rl::scores_of(reward); }  // the rewards that score completions
  // Those, or where there is none what an environment calls the answer.
  std::vector<rl::RewardConfig> judging() const {
    std::vector<rl::RewardConfig> all = scores();
    if (all.empty() && environment) all.push_back({.kind = "environment", .name = "answer"});
    return all;
  }
  bool draws() const { return rollout || pairs; }  // completions, of the prompts of its training data
  rl::PythonEnvironment* in_python() {             // the environment, where it is one in Python
    return environment ? std::get_if<rl::PythonEnvironment>(&environment->value) : nullptr;
  }
  // Of the rollouts and of evaluations, with the environment if there is one.
  rl::SamplingConfig sampling(const data::Tokenizer& tokenizer) const;
  rl::Methods methods() const { return {rl::shaping_of(reward), advantage}; }
  methods::Chosen chosen() const;  // what the rules of csrc/methods/combinations.h look at
  // Whether the phase measures a divergence from a reference, in its loss or in its rewards.
  bool needs_reference() const { return objective.has_reference() || !methods().needs_reference().empty(); }
  bool evaluates() const { return evaluation.every > 0 && !evaluation.skip; }  // while it runs
  // As of its objective, or that its rewards are shaped by entropy.
  std::string holds_entropy() const {
    for (const rl::RewardEntry& entry : reward)
      if (entry.get<methods::AresConfig>())
        return "ares shapes rewards by entropy";
      else if (entry.get<methods::KlReward>())
        return "kl in the reward holds the policy back";
    if (!weight.empty()) return weight.front().kind() + " chooses the tokens that learn";
    if (rollout && rollout->allocation) return "rollout.allocation chooses by their rewards whose completions count";
    return objective.holds_entropy();
  }

  template <class Visitor>
  void visit(Visitor& v) {
    v("name", name, "Name of the phase, unique in the run; it names its checkpoints and its metrics.");
    v("objective", objective, "What is minimised.");
    v("data", data, "Where text, or prompts and completions, come from.");
    v("batch", batch, "How many sequences an update takes, and how they are cut into micro-batches.");
    v("optimizer", optimizer, "The update rule.");
    v("schedule", schedule, "The learning rate over the steps of the phase.");
    v("steps", steps, "Steps of the phase; a grpo step is one batch of rollouts with all its updates.", at_least(1));
    v("rollout", rollout, "How completions are drawn; grpo phases only.");
    v("pairs", pairs,
      "How a dpo phase draws its pairs itself as it begins, of the prompts of its data by the policy as it stands then "
      "(docs/environments.md); absent: its data have them.");
    v("environment", environment,
      "What answers the policy, so that completions are conversations (docs/environments.md); absent: nobody does. In "
      "sft phases it is for evaluations alone.");
    v("reward", reward,
      "Rewards, added up by their weights, and what is done to their sum, in order; grpo phases. In dpo phases with "
      "pairs "
      "the first says which completions are right.");
    v("advantage", advantage,
      "How rewards become advantages, then what is done to these, in order; empty: [{kind: grpo}]. grpo phases only.");
    v("weight", weight,
      "Factors of the tokens' policy terms, in order: which tokens learn, and how much; empty: all alike. grpo phases; "
      "in "
      "sft phases those that look at log-probability and entropy alone, entropy_sft above all.");
    v("evaluation", evaluation,
      "Validation on held-out data: of a pretrain phase its loss, of the others the accuracy of answers.");
    v("stop", stop, "End the phase when an evaluation reaches all these values.");
  }
};

struct TrainConfig {
  RunConfig run;
  MetricsConfig metrics;
  model::DecoderConfig model;
  data::TokenizerConfig tokenizer;
  std::vector<PhaseConfig> phases;
  EvaluationConfig test;

  std::string problem() const;  // no phase, two phases of one name, …

  template <class Visitor>
  void visit(Visitor& v) {
    v("run", run, "The run itself.");
    v("metrics", metrics, "Where metrics go beside metrics.jsonl, and what is measured besides.");
    v("model", model, "The decoder.");
    v("tokenizer", tokenizer, "Text to tokens.");
    v("phases", phases, "Phases, in the order in which they run.");
    v("test", test, "Evaluation on the test part of the last phase's data, made at the end of every phase.");
  }
};

// What is wrong with the keys of phases that draw their pairs, and of others that have keys of these; "" if nothing is.
std::string pairs_problem(const PhaseConfig& phase);

// What a run may do, and nobody means: each text begins with the key. functions: kinds of
// reward that were given to the trainer.
std::vector<std::string> warnings(const TrainConfig& config, const std::set<std::string>& functions = {});

// Whether a kind of reward is the program's own; others are functions given to the trainer in Python.
bool built_in_reward(const std::string& kind);

struct ConfigError : std::runtime_error {
  explicit ConfigError(const std::string& message) : std::runtime_error(printable(message)) {}  // a NUL would end it
};

// overrides: "key.path=value", list elements by index or by name: "phases.0.steps=10", "phases.sft.steps=10".
TrainConfig read_config(const std::string& file, const std::vector<std::string>& overrides = {});

// The configuration with overrides on top of it.
TrainConfig with_overrides(const TrainConfig& config, const std::vector<std::string>& overrides);

// The whole resolved configuration as YAML; read_config reads it back to the same values. With origins, each line ends
// in a comment that says where its value came from: default, FILE:LINE, or command line.
std::string print_config(const TrainConfig& config);
std::string print_config_with_origins(const std::string& file, const std::vector<std::string>& overrides);

// Every key with type, default, range and meaning.
std::string explain_config();

}  // namespace isentrope::train
