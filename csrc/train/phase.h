// What lives as long as a phase of a run. Of trainer*.cpp and training_loop.cpp alone.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/rl/entropy_law.h"
#include "csrc/train/gradient_noise.h"
#include "csrc/train/policy_watch.h"
#include "csrc/train/representation.h"
#include "csrc/train/rollout_log.h"
#include "csrc/train/snapshot.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {

// What follows the figures of a phase from step to step. A step that is broken off leaves it as it was.
struct Trainer::Follows {
  AttentionAlarm alarm = {};
  rl::EntropyLaw law = {};
  PolicyWatch watch = {};
  GradientNoise noise = {};

  // For checkpoints, by name; restore() takes what state() gave, among other tensors.
  std::map<std::string, torch::Tensor> state() const;
  void restore(const std::map<std::string, torch::Tensor>& state);
};

struct Trainer::Phase {
  const PhaseConfig& config;
  std::unique_ptr<RolloutLog> rollouts;
  std::unique_ptr<data::BatchSource>
      source;                          // null between the beginning of a phase that draws its pairs and their drawing
  std::optional<int64_t> data_digest;  // of its examples; a corpus has its own in the source's state
  std::unique_ptr<Objective> objective;
  Optimizer optimizer;
  std::unique_ptr<HeldOut> validation, test;                            // null where nothing is evaluated
  std::vector<std::pair<std::string, std::unique_ptr<HeldOut>>> tasks;  // test.tasks: of phases up to this one
  std::optional<model::Decoder> reference;
  // It is not the model at the phase's start, whose frozen weights an adapter would share.
  bool own_reference() const { return !config.objective.reference_from().empty(); }
  Snapshot
      before;  // weights, power vectors, moments and thresholds at the start of the step, where it can be gone back from
  bool made = false;                         // the update of the step, from which nothing goes back
  std::vector<rl::SavedRollout> saved = {};  // of the step in hand, where it saves any
  Follows follows = {};
  std::map<std::string, double> mined = {};  // pairs/…, of its first step, where it has drawn its pairs
};

// A tensor of state.extra that the phase cannot go on without.
const torch::Tensor& kept(const CheckpointState& state, const std::string& name, const torch::Tensor& like);

// What fixes draws: a number of the run's seed, the purpose and up to three indices.
uint64_t derived_seed(uint64_t seed, data::Purpose purpose, uint64_t a, uint64_t b = 0, uint64_t c = 0);

// Refuses a second call while one works on the run: from another thread, or from a reward that the first one called.
struct Trainer::Working {
  explicit Working(std::atomic<bool>& working) : working_(working) {
    if (working_.exchange(true))
      throw std::runtime_error(
          "this trainer is in the middle of a step or an evaluation; call advance() and save() between steps, not from "
          "a "
          "reward or another thread");
  }
  ~Working() { working_ = false; }
  Working(const Working&) = delete;
  Working& operator=(const Working&) = delete;

 private:
  std::atomic<bool>& working_;
};

}  // namespace isentrope::train
