// What is asked of the machine, the rewards and the data of a run before it begins, so that nothing of them can stop it later.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "csrc/data/fit.h"
#include "csrc/data/source.h"
#include "csrc/rl/reward.h"
#include "csrc/train/config.h"

namespace isentrope::train {

struct RankCounts;  // csrc/train/plan.h

// What a training example of the phase has to be.
data::Use use_of(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer);

// Whether the phase is evaluated on the split: validation while it runs, test (of the last phase's data) at its end.
bool evaluates(const TrainConfig& config, const PhaseConfig& phase, data::Split split);

// Throws std::runtime_error where the device is not there, or the memory does not suffice whatever the data are
// (csrc/train/plan.h).
void check_machine(const TrainConfig& config, const RankCounts& ranks);

// What of the data of a split a phase does not use, and why: {12, "too long for model.max_position_embeddings (data.truncation: drop)"}.
struct LeftOut {
  int64_t count;
  std::string reason;
};
struct SplitSize {
  data::Split split;
  int64_t examples;    // prompts with their completions, or windows of text, in an epoch; 0: ever new ones (data.tint)
  int64_t tokens = 0;  // of text
  int64_t files = 0;   // of text, in whole or in part
  std::vector<LeftOut> left_out = {};  // examples; files of a corpus' folders, with its training split
};
// Of the tokens of training sequences; of more than 4096 of them, of the first. A completion that is to be drawn counts as long as
// it may be.
struct Lengths {
  double longest = 0, mean = 0;
  double prompt = 0;  // mean of what is not learnt
};
struct PhaseData {
  std::string phase;
  std::vector<SplitSize>
      splits;  // training, then those that it is evaluated on: validation, and test of the last phase
  Lengths lengths;
};

struct DataReport {
  std::vector<std::string> notes;  // what is worth knowing: examples that are left out, evaluations that are not made
  std::vector<std::string> warnings;  // evaluations that ask for more than there is; each begins with the key
  std::vector<PhaseData> phases;      // from number `first` on
};

// Opens the data of the phases from number `first` on, all splits that they use, with their rewards, and looks at every
// example. Throws what is wrong, with the phase, and the file and line of an example.
DataReport check_data(const TrainConfig& config, const data::Tokenizer& tokenizer,
                      const std::map<std::string, rl::RewardFunction>& rewards, size_t first = 0);

}  // namespace isentrope::train
