// Rewards that are given on the command line: --reward [NAME=]PLACE:FUNCTION.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "csrc/rl/reward.h"

namespace isentrope::train {

struct TrainConfig;

struct RewardWord {
  std::string name;      // the kind of the configuration's reward; the function's own name where none is given
  std::string place;     // a module, or a file that ends in .py
  std::string function;  // in it
};
// Throws std::invalid_argument for another form.
RewardWord parse_reward_word(const std::string& word);

struct GivenRewards {
  std::vector<std::string> words;
  // Of the process that has Python; empty in one that has not.
  std::function<rl::RewardFunction(const RewardWord& word)> load;
};

// The functions by name. Throws std::runtime_error, before any is loaded, where two have one name, or one that of a built-in kind;
// and what load throws.
std::map<std::string, rl::RewardFunction> load_rewards(const GivenRewards& given);

// The same for a configuration; a name that none of its rewards has as its kind is an error too.
std::map<std::string, rl::RewardFunction> load_rewards(const GivenRewards& given, const TrainConfig& config);

}  // namespace isentrope::train
