// Where a run begins: at its own newest checkpoint (--resume), at the weights of another's (run.start), or new. What a checkpoint
// says is compared with the configuration here, before anything is changed; docs/resume.md lists what is refused.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/train/checkpoint.h"
#include "csrc/train/evaluation.h"

namespace isentrope::train {

struct Standing {
  std::string from = {};                // the checkpoint whose weights are taken; "" for a new model
  std::string weights = {};             // the folder that they lie in: from, or with model.lora that of the frozen ones
  int64_t vocabulary = 0;               // rows of its embedding
  CheckpointState state = {};           // of it
  bool goes_on = false;                 // phase `phase` goes on from state, and does not begin
  size_t phase = 0;                     // place in the configuration; past its end where nothing is left to do
  int64_t step = 0;                     // steps of it that are done
  std::vector<std::string> ended = {};  // phases of this run that have ended, in their order
  std::map<std::string, int64_t> numbers =
      {};  // phase → its number in the seeds of all draws; a phase keeps it for the run's life
  std::vector<std::pair<std::string, Evaluation>> results = {};  // test results of phases that have ended
  std::vector<std::string> notes = {};                           // what a person is told, a line each
};

// Names under which a checkpoint keeps what the trainer needs beside model, optimiser and source.
inline const std::string kResult = "result/", kReference = "reference/", kThreshold = "attention_threshold",
                         kLaw = "entropy_law", kPolicyWatch = "policy_watch", kNoise = "gradient_noise",
                         kData = "data_digest", kMetrics = "metrics_digest", kSamples = "samples_digest",
                         kRollouts = "rollouts_place", kBase = "base_digest", kOrigin = "origin_digest",
                         kCoefficients = "coefficients";

// Throws std::runtime_error that lists what differs and how to mend it.
Standing find_standing(const TrainConfig& config, const data::Tokenizer& tokenizer, const std::string& run_dir,
                       bool resume);

}  // namespace isentrope::train
