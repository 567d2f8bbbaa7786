// A configuration as one flat list, to be stored beside a state and compared with another.
#pragma once
#include <map>
#include <set>
#include <string>

#include "csrc/train/config.h"

namespace isentrope::train {

// "phases.sft.optimizer.lr" → "0.001": every key, as YAML. Phases go by their names, since their places may change; a section
// that is not written is null under its own name.
std::map<std::string, std::string> values_of(const TrainConfig& config);
std::map<std::string, std::string> values_of(const model::DecoderConfig& config);

// Keys of model, without that prefix, that say what its weights mean.
const std::set<std::string>& keys_of_meaning();

}  // namespace isentrope::train
