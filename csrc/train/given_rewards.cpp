#include "csrc/train/given_rewards.h"

#include <set>
#include <stdexcept>

#include "csrc/message.h"
#include "csrc/train/config.h"

namespace isentrope::train {
namespace {

std::map<std::string, RewardWord> by_name(const GivenRewards& given) {
  std::map<std::string, RewardWord> words;
  for (const std::string& text : given.words) {
    const RewardWord word = parse_reward_word(text);
    if (rl::is_built_in(word.name))
      throw std::runtime_error("--reward " + text + ": " + word.name +
                               " is a built-in kind; give the function another name: --reward NAME=" + word.place +
                               ":" + word.function);
    if (!words.emplace(word.name, word).second)
      throw std::runtime_error("--reward " + text + ": two are called " + word.name +
                               "; give one another name: " + "--reward NAME=" + word.place + ":" + word.function);
  }
  return words;
}

std::map<std::string, rl::RewardFunction> load(const GivenRewards& given,
                                               const std::map<std::string, RewardWord>& words) {
  std::map<std::string, rl::RewardFunction> functions;
  if (!words.empty() && !given.load && given.go_on) given.go_on();
  for (const auto& [name, word] : words) functions[name] = given.load(word);
  return functions;
}

// The words "reasoning_gym" and "math" in full.
std::string in_full(const std::string& function) {
  return function == "reasoning_gym" || function == "math" ? "isentrope.rewards:" + function : function;
}

// What the configuration's rewards of kind python name, by RewardConfig::given_as().
std::map<std::string, RewardWord> named_in(const TrainConfig& config) {
  std::map<std::string, RewardWord> words;
  for (const PhaseConfig& phase : config.phases)
    for (size_t i = 0; i < phase.reward.size(); ++i) {
      const rl::RewardConfig* scores = phase.reward[i].get<rl::RewardConfig>();
      if (scores == nullptr || scores->kind != "python") continue;
      const rl::RewardConfig& reward = *scores;
      const std::string function = in_full(reward.function);
      const size_t colon = function.rfind(':');
      words.emplace(reward.given_as(), RewardWord{.name = reward.called(),
                                                  .place = function.substr(0, colon),
                                                  .function = function.substr(colon + 1),
                                                  .said = "phases." + phase.name + ".reward." + std::to_string(i) +
                                                          ".function: " + reward.function});
    }
  return words;
}

// The classes of the environments in Python.
void load_environments(const GivenRewards& given, TrainConfig& config) {
  for (PhaseConfig& phase : config.phases) {
    rl::PythonEnvironment* python = phase.in_python();
    if (python == nullptr) continue;
    if (!given.load_environment && given.go_on) given.go_on();
    const size_t colon = python->name.rfind(':');
    python->given = given.load_environment({.name = python->name,
                                            .place = python->name.substr(0, colon),
                                            .function = python->name.substr(colon + 1),
                                            .said = "phases." + phase.name + ".environment.class: " + python->name},
                                           python->timeout_s);
  }
}

}  // namespace

RewardWord parse_reward_word(const std::string& given) {
  const size_t assigned = given.find('=');
  const std::string named_function = assigned == std::string::npos ? given : given.substr(assigned + 1);
  const std::string word = given.substr(0, given.size() - named_function.size()) + in_full(named_function);
  const size_t colon = word.rfind(':'), equals = word.find('=');
  const bool named = equals != std::string::npos && equals < colon;
  const size_t begin = named ? equals + 1 : 0;
  RewardWord parsed;
  if (colon != std::string::npos && colon >= begin) {
    parsed.place = word.substr(begin, colon - begin);
    parsed.function = word.substr(colon + 1);
    parsed.name = named ? word.substr(0, equals) : parsed.function.substr(parsed.function.rfind('.') + 1);
    parsed.said = "--reward " + parsed.place + ":" + parsed.function;
  }
  if (parsed.name.empty() || parsed.place.empty() || parsed.function.empty())
    throw std::invalid_argument(
        given + ": wanted [NAME=]MODULE:FUNCTION or [NAME=]FILE.py:FUNCTION, such as rewards.py:vowels");
  return parsed;
}

std::map<std::string, rl::RewardFunction> load_rewards(const GivenRewards& given) {
  return load(given, by_name(given));
}

std::map<std::string, rl::RewardFunction> load_rewards(const GivenRewards& given, TrainConfig& config) {
  auto words = by_name(given);
  for (const auto& [name, word] : words)
    require_wanted(name, "--reward " + name + "=" + word.place + ":" + word.function, config);
  words.merge(named_in(config));
  load_environments(given, config);
  return load(given, words);
}

void require_wanted(const std::string& name, const std::string& said, const TrainConfig& config) {
  std::set<std::string> kinds;
  for (const PhaseConfig& phase : config.phases)
    for (const rl::RewardConfig& reward : phase.scores()) kinds.insert(reward.kind);
  if (kinds.contains(name)) return;
  std::string there;
  for (const std::string& kind : kinds) there += (there.empty() ? "" : ", ") + excerpt(kind);
  throw std::runtime_error(said + ": no reward of the configuration has the kind " + name + "; " +
                           (there.empty() ? "it has none" : "its kinds are " + there) + ". Put {kind: " + name +
                           "} among the rewards of a phase, or leave it out");
}

std::map<std::string, rl::RewardFunction> rewards_in_name_alone(const TrainConfig& config) {
  std::map<std::string, rl::RewardFunction> functions;
  for (const auto& [name, word] : named_in(config))
    functions[name] = [said = word.said](const auto&, const auto&, const auto&, double) -> rl::Scores {
      throw std::logic_error(said + " was called by a command that scores nothing");
    };
  return functions;
}

}  // namespace isentrope::train
