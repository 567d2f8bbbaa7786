// The loop. Phases differ only in their source and their objective; a training step is Trainer::step.
//
// A step is whole or has not been. Its update is the last thing that it does, and by then all that can refuse has been asked: the
// rewards, the loss, the gradients, whether the weights stay finite (csrc/train/update_bound.h), room for its line in metrics.jsonl. A
// step in which something can refuse behind an update works on copies (csrc/train/snapshot.h: keeps_copies), which are taken over when its
// line stands. Whatever ends a step before that (a loss that is not finite, a reward that raises, Ctrl-C within one) leaves the trainer
// after the step before, and that state is saved. Behind the update there is the write of the line alone: where it fails though there was
// room, a disk that breaks, the step has been, is saved, and the error says that its line is lost.
//
// A checkpoint within a phase is written beside the steps that follow (csrc/train/checkpoint_writer.h) where the machine has room for
// its copy; one at the end of a phase, at a stop or after an error is waited for.
//
//   trainer.cpp              how a run and a phase begin
//   training_loop.cpp        advance() and step()
//   trainer_weights.cpp      the weights that a run begins with, and which of them it trains
//   trainer_tasks.cpp        what passes from phase to phase, and what was forgotten of those before
//   trainer_pairs.cpp        pairs that a dpo phase draws as it begins
//   trainer_checkpoint.cpp   what a checkpoint holds, and when it is written
//   resume.h                 where a run begins, and what is refused
#pragma once
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/data/random.h"
#include "csrc/train/checkpoint.h"
#include "csrc/train/checkpoint_writer.h"
#include "csrc/train/config.h"
#include "csrc/train/data_check.h"
#include "csrc/train/distributed.h"
#include "csrc/train/metrics.h"
#include "csrc/train/resume.h"
#include "csrc/train/rollout_log.h"
#include "csrc/train/run_folder.h"
#include "csrc/train/run_header.h"
#include "csrc/train/time_limit.h"
#include "csrc/train/trackers.h"

namespace isentrope::train {

// The held-out data of a phase. How long answers may be and what a right one is, a phase without rollouts takes
// from the last phase: that is what it prepares for.
std::unique_ptr<HeldOut> held_out_of(const TrainConfig& config, const PhaseConfig& phase,
                                     const data::Tokenizer& tokenizer, data::Split split,
                                     const std::map<std::string, rl::RewardFunction>& rewards = {});

class Composition;
class TrainedWeights;
// What an mlm phase masks; nothing of others.
std::optional<data::Masking> masking_of_phase(const PhaseConfig& phase, const data::Tokenizer& tokenizer);

class Trainer {
 public:
  // Takes the run folder (csrc/train/run_folder.h). resume: go on from its newest complete checkpoint, or from the
  // beginning where it has none. rewards: further kinds of reward, by name. Where it throws, the folder is left as it was.
  Trainer(TrainConfig config, bool resume, const std::map<std::string, rl::RewardFunction>& rewards = {});

  // Makes one step of the current phase, with the evaluation and the checkpoint that are due after it. Returns what it
  // wrote to metrics.jsonl; nothing once the last phase has ended, with which it writes summary.json. Where it throws, the last whole state is saved, and
  // advance() can be called again. A checkpoint that could not be written beside training is a warning of the next step.
  std::vector<Record> advance();
  bool finished() const { return phase_ == config_.phases.size(); }

  // Whether the next step might not end before the limit that run.time_limit_s or Slurm gives: time to save() and leave.
  bool out_of_time() const { return time_limit_.reached(); }

  ~Trainer();  // waits for the checkpoint that is being written

  // Writes a checkpoint of the last whole step, if there is none yet, and waits for it; what an interrupted run does before it
  // leaves. Returns its folder, or "" before the first step of a run.
  std::string save();
  // Waits for the checkpoint that is being written. Returns what save() or advance() could not throw: of each checkpoint of this
  // trainer that could not be written beside training, which, why, and which one stays.
  const std::vector<std::string>& wait();

  const TrainConfig& config() const { return config_; }
  const std::string& dir() const { return folder_.dir(); }  // absolute
  const std::map<std::string, rl::RewardFunction>& rewards() const { return rewards_; }
  size_t phase() const { return phase_; }       // the phase that advance() is in
  int64_t steps_done() const { return step_; }  // of it
  const model::Decoder& model() const { return model_; }
  const data::Tokenizer& tokenizer() const { return tokenizer_; }
  // Results on the test data, in the order of the phases.
  const std::vector<std::pair<std::string, Evaluation>>& results() const { return results_; }
  // How the run began, for a person: what was taken from a checkpoint, what changed since, what the look at the data found.
  const std::vector<std::string>& notes() const { return notes_; }
  // What the configuration and the data allow, and nobody means: each text begins with the key.
  const std::vector<std::string>& warnings() const { return warnings_; }
  // The data of the phases that were still to run when the run began or was resumed, in their order.
  const std::vector<PhaseData>& data() const { return data_; }
  // What the run is made of; without phases where it has nothing left to do.
  const RunHeader& header() const { return header_; }
  // The processes of the run. Every one of them constructs its trainer and calls advance() and save() as often.
  const Ranks& ranks() const { return *ranks_; }
  // The same on all ranks, so that all stop after the same step: what asked one of them to (a signal's number, an exit code), 0 for nothing.
  int agree_on_stop(int asked) const;
  // The newest checkpoint that is whole as far as advance() knew, or the one that the run started from; "" where there is none.
  const std::string& last_checkpoint() const { return last_checkpoint_; }

 private:
  struct Phase;    // what lives as long as a phase: source, objective, optimiser
  struct Follows;  // of it, what follows its figures from step to step
  struct Learnt;   // what the updates of a step have made
  struct Working;  // held by the one call at a time that works on the run

  Standing prepare(bool resume);
  void begin(const Standing& standing, bool resume);
  void take_weights(const Standing& standing);
  void take_adapter(const Standing& standing);
  void choose_trained(const Standing& standing, bool resumed);  // model.freeze, train_only, compose
  void warn_of_ties();
  std::vector<std::pair<std::string, torch::Tensor>> trained_parameters() const;
  RunHeader describe() const;
  std::unique_ptr<Metrics> open_log(const std::string& file, const Standing& standing, const std::string& key);
  void open_phase(const CheckpointState* state);
  std::vector<std::pair<std::string, std::unique_ptr<HeldOut>>> tasks() const;
  void tell_tasks(Evaluation& found) const;  // into found, of the open phase's end
  void begin_task(Phase& opened);            // what optimizer.consolidation takes over from the phase before
  void leave_task();                         // what it leaves to the next
  void mix_into(model::Decoder& reference, double share) const;
  void sync_reference();  // where it follows the model
  std::unique_ptr<data::BatchSource> source_of(const PhaseConfig& phase, std::optional<int64_t>& digest,
                                               const std::optional<model::Decoder>& reference) const;
  std::unique_ptr<data::BatchSource> source_of_pairs(const PhaseConfig& phase, const std::string& text,
                                                     std::optional<int64_t>& digest) const;
  void make_pairs();    // of the open phase, which draws them itself, and its source
  void cut_rollouts();  // to what stood there at the checkpoint that is gone on from
  uint64_t seed_of(const std::string& phase, data::Purpose purpose, uint64_t b = 0, uint64_t c = 0) const;

  void whole_step(std::vector<Record>& records);
  Record step();
  double learn(const data::Batch& given, size_t u, Learnt& learnt);
  void save_rollouts(const std::vector<data::Batch>& updates, const Learnt& learnt);
  void tell_noise(const data::Batch& update, double norm, Learnt& learnt);
  void tell_inside(const data::Batch& update, Learnt& learnt);
  bool due(int64_t every) const { return every > 0 && (step_ + 1) % every == 0; }  // in the step in hand
  Record record_of(std::map<std::string, double> values, std::optional<AttentionStatistics> attention,
                   const std::vector<double>& sigmas, const std::vector<std::string>& of_source);
  void
  apply_update();  // weights by the optimiser, and what follows from the update: centres, over all ranks, and sums of task vectors
  std::vector<double> power_step();  // the model's; throws where a layer's norm is not finite
  void evaluate_due(std::vector<Record>& records);
  Record evaluate(const std::string& split,
                  std::vector<std::string>& shown);  // the open phase; shown: of samples.jsonl
  void write(Record line, std::vector<Record>& records);
  bool at_end() const;         // of the open phase
  void write_summary() const;  // summary.json, of a run that has ended

  // beside: training need not wait for it, where there is room for a copy, and goes on where it fails.
  void checkpoint(bool phase_finished, bool beside = false);
  void make_checkpoint(bool phase_finished, bool beside);
  CheckpointState state(bool phase_finished) const;  // of the last whole step; shares its memory; a verb of Ranks
  void take_note(const std::optional<CheckpointWriter::Written>& written);
  std::string save_last_whole();
  [[noreturn]] void rethrow_with_place(const std::string& place);

  TrainConfig config_;
  std::shared_ptr<const Ranks> ranks_;
  RunFolder folder_;
  data::Tokenizer tokenizer_;
  model::Decoder model_;
  std::map<std::string, rl::RewardFunction> rewards_;
  std::unique_ptr<Trackers> trackers_;
  std::unique_ptr<Metrics> metrics_, samples_;
  Metrics::Place metrics_of_step_, samples_of_step_;  // before the evaluations after step_
  std::unique_ptr<TrainedWeights> trained_;           // where a part of the weights is
  std::unique_ptr<Composition> composition_;          // with model.compose
  std::unique_ptr<Phase> open_;
  size_t phase_ = 0;
  int64_t step_ = 0, steps_of_run_ = 0;
  bool evaluated_ = true, tested_ = false;  // after step_: the evaluations due are made; the one at the phase's end too
  bool stopped_ = false;                    // they met the phase's stop
  std::vector<std::string> ended_;
  std::map<std::string, int64_t> numbers_;
  std::vector<std::string> notes_, warnings_;
  std::vector<PhaseData> data_;
  RunHeader header_;
  std::string last_checkpoint_;
  std::string base_;         // with model.lora: the folder of the frozen weights, absolute, and
  int64_t base_digest_ = 0;  // digest_of_base()
  int64_t origin_ = 0;       // of a run that began with the weights of another: weights_digest() of these
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  std::vector<std::pair<std::string, Evaluation>> results_;
  std::map<std::string, torch::Tensor> left_;  // Optimizer::left() of the phase before
  std::atomic<bool> working_ = false;
  bool attends_ = true;      // the model has rows of a softmax, which can be watched
  bool has_states_ = false;  // or layers with a state
  bool beside_ = false;      // there is room for a copy of what a checkpoint holds
  TimeLimit time_limit_;
  std::vector<std::string> lost_;  // of checkpoints that could not be written beside training,
  size_t lost_told_ = 0;           // so many of them in a line of metrics
  CheckpointWriter writer_;        // the last: it ends before what it reads goes
};

}  // namespace isentrope::train
