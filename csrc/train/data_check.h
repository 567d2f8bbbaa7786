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

// What a training example of the phase has to be.
data::Use use_of(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer);

// Whether the phase is evaluated on the split: validation while it runs, test (of the last phase's data) at its end.
bool evaluates(const TrainConfig& config, const PhaseConfig& phase, data::Split split);

// Throws std::runtime_error where the device is not there, or the memory is less than weights, optimiser and a batch take.
void check_machine(const TrainConfig& config);

// Opens the data of the phases from number `first` on, all splits that they use, with their rewards, and looks at every
// example. Throws what is wrong, with the phase, and the file and line of an example. Returns what is worth knowing: examples
// that are left out, evaluations that are not made.
std::vector<std::string> check_data(const TrainConfig& config, const data::Tokenizer& tokenizer,
                                    const std::map<std::string, rl::RewardFunction>& rewards, size_t first = 0);

// Bytes that weights, gradients, the state of the optimiser and the activations of a micro-batch take at least, the largest
// over the phases. In double, since sizes that no machine has are what it is asked for.
double least_memory(const TrainConfig& config);

}  // namespace isentrope::train
