// What a run is made of, told at its start: to a person on the console, and as the first line of metrics.jsonl,
// {"run": {…}} (docs/metrics.md).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/train/config.h"
#include "csrc/train/data_check.h"
#include "csrc/train/plan.h"

namespace isentrope::train {

struct PhaseHeader {
  std::string name, objective;
  int64_t steps = 0;
  int64_t batch = 0;                     // a step: examples, prompts (grpo), windows (pretrain)
  int64_t samples = 0;                   // completions a prompt; 0 where there are no rollouts
  std::string unit;                      // of the splits: examples, prompts, pairs or tokens
  std::optional<int64_t> pairs_of = {};  // prompts whose pairs the phase draws itself
  std::optional<int64_t> train, validation,
      test;  // sizes; train: none for a stream without end, others: none where not used
  std::optional<double>
      epoch_tokens;                  // of the training data; of more than 4096 examples, by the mean of the first 4096
  std::optional<double> epochs;      // that the steps amount to
  std::vector<std::string> example;  // the tokens of the first training example, as text; at most 256
  double least_seconds = 0;          // of its products alone, at the measured rate; not in the line
  int64_t prompt = 0;                // how many of them are its prompt
};

struct RunHeader {
  std::string dir;                      // the run's folder; not in the line, which stands in it
  int64_t parameters = 0, trained = 0;  // weights, and those of them that training changes
  std::string device, instruction_set;  // cpu or cuda:0; what the ops' CPU backends use, as `isentrope version` says it
  std::string dtype;                    // of weights, gradients and the optimiser
  std::string compute;                  // of the operands of products
  int64_t threads = 0;                  // of a rank
  int64_t ranks = 1;                    // processes (csrc/train/distributed.h)
  double product_rate = 0;              // FLOP/s of all ranks, csrc/train/flops.h
  MemoryPlan memory_needed;             // of the phase that needs most
  std::optional<double> memory;         // bytes of the machine; none on a GPU
  std::vector<PhaseHeader> phases;      // those that are still to come, the first perhaps under way
};

// The sizes of a phase's data, as check_data found them, and one example. seed: of the phase's examples.
PhaseHeader phase_header(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer,
                         const PhaseData& sizes, uint64_t seed);

// The line of metrics.jsonl, without its end of line.
std::string to_json(const RunHeader& header);

std::string time_text(double seconds);  // "12 min"

// A few aligned lines.
std::string to_text(const RunHeader& header);

// Whether the last header of metrics.jsonl says all that this one says, the measured rate and phases that have ended aside. A resumed
// run writes another one where it does not.
bool said_before(const std::string& metrics_file, const RunHeader& header);

}  // namespace isentrope::train
