// The loop. Phases differ only in their source and their objective; a training step is Trainer::step.
#pragma once
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/train/checkpoint.h"
#include "csrc/train/config.h"
#include "csrc/train/metrics.h"
#include "csrc/train/run_folder.h"
#include "csrc/train/tensorboard.h"

namespace isentrope::train {

// The held-out data of a phase. How long answers may be and what a right one is, a phase without rollouts takes
// from the last phase: that is what it prepares for.
std::unique_ptr<HeldOut> held_out_of(const TrainConfig& config, const PhaseConfig& phase,
                                     const data::Tokenizer& tokenizer, data::Split split,
                                     const std::map<std::string, rl::RewardFunction>& rewards = {});

class Trainer {
 public:
  // Takes the run folder (csrc/train/run_folder.h). resume: go on from its newest complete checkpoint, or from the
  // beginning where it has none. rewards: further kinds of reward, by name.
  Trainer(TrainConfig config, bool resume, const std::map<std::string, rl::RewardFunction>& rewards = {});

  // Makes one step of the current phase, with the evaluation and the checkpoint that are due after it. Returns what it
  // wrote to metrics.jsonl; nothing once the last phase has ended.
  std::vector<Record> advance();
  bool finished() const { return phase_ == config_.phases.size(); }

  ~Trainer();

  // Writes a checkpoint of this moment; what an interrupted run does before it leaves. Returns its folder.
  std::string save();

  const TrainConfig& config() const { return config_; }
  const std::map<std::string, rl::RewardFunction>& rewards() const { return rewards_; }
  size_t phase() const { return phase_; }       // the phase that advance() is in
  int64_t steps_done() const { return step_; }  // of it
  const model::Decoder& model() const { return model_; }
  const data::Tokenizer& tokenizer() const { return tokenizer_; }
  // What the look at the data before the first step found worth knowing (csrc/train/data_check.h).
  const std::vector<std::string>& notes() const { return notes_; }
  // Results on the test data, in the order of the phases.
  const std::vector<std::pair<std::string, Evaluation>>& results() const { return results_; }

 private:
  struct Phase;  // what lives as long as a phase: source, objective, optimiser

  void open_phase(const CheckpointState* state);
  std::unique_ptr<data::BatchSource> source_of(const PhaseConfig& phase) const;
  Record step();
  std::vector<double> power_step();           // the model's; stops the run where a layer's norm is not finite
  Record evaluate(const std::string& split);  // the open phase, on validation or test data; writes samples.jsonl
  void checkpoint(bool phase_finished);
  [[noreturn]] void fail(const std::string& what) const;

  TrainConfig config_;
  RunFolder folder_;
  data::Tokenizer tokenizer_;
  model::Decoder model_;
  std::map<std::string, rl::RewardFunction> rewards_;
  std::unique_ptr<TensorBoard> tensorboard_;
  std::unique_ptr<Metrics> metrics_, samples_;
  std::unique_ptr<Phase> open_;
  size_t phase_ = 0;
  int64_t step_ = 0;
  std::vector<std::string> notes_;
  std::string last_checkpoint_;
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  std::vector<std::pair<std::string, Evaluation>> results_;
};

}  // namespace isentrope::train
