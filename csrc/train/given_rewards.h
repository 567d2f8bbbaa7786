// Rewards that are functions in Python: named in the configuration (reward: [{kind: python, function: PLACE:FUNCTION}]), or given on
// the command line (--reward [NAME=]PLACE:FUNCTION).
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/rl/environment.h"
#include "csrc/rl/reward.h"

namespace isentrope::train {

struct TrainConfig;

struct RewardWord {
  std::string name;      // the kind of the configuration's reward; the function's own name where none is given
  std::string place;     // a module, or a file that ends in .py
  std::string function;  // in it
  std::string said;      // how messages call it, with the key or option that names it
};
// Of --reward. reasoning_gym and math are those of isentrope.rewards. Throws std::invalid_argument for another form.
RewardWord parse_reward_word(const std::string& word);

struct GivenRewards {
  std::vector<std::string> words;  // behind --reward
  // Of the process that has Python; empty in one that has not.
  std::function<rl::RewardFunction(const RewardWord& word)> load;
  std::function<std::shared_ptr<const rl::Environment>(const RewardWord& word, double timeout_s)> load_environment;
  // Of a process that has not: hands its command over to one that has, and does not return.
  std::function<void()> go_on;
};

// The functions of the words by name. Throws std::runtime_error, before any is loaded, where two have one name, or one that of a
// built-in kind; and what load throws.
std::map<std::string, rl::RewardFunction> load_rewards(const GivenRewards& given);

// The same for a configuration, with the functions that it names (rl::RewardConfig::given_as()); its environments of kind python get the
// classes that they name. A name that none of its rewards has
// as its kind is an error too. Goes on in another process where functions are wanted and this one cannot load them.
std::map<std::string, rl::RewardFunction> load_rewards(const GivenRewards& given, TrainConfig& config);

// Throws std::runtime_error where none of the rewards has the name as its kind. said: how the message calls what was given.
void require_wanted(const std::string& name, const std::string& said, const TrainConfig& config);

// In the place of the functions that the configuration names, for commands that score nothing: they throw when they are called.
std::map<std::string, rl::RewardFunction> rewards_in_name_alone(const TrainConfig& config);

}  // namespace isentrope::train
