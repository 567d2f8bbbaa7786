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
  for (const auto& [name, word] : words) functions[name] = given.load(word);
  return functions;
}

}  // namespace

RewardWord parse_reward_word(const std::string& word) {
  const size_t colon = word.rfind(':'), equals = word.find('=');
  const bool named = equals != std::string::npos && equals < colon;
  const size_t begin = named ? equals + 1 : 0;
  RewardWord parsed;
  if (colon != std::string::npos && colon >= begin) {
    parsed.place = word.substr(begin, colon - begin);
    parsed.function = word.substr(colon + 1);
    parsed.name = named ? word.substr(0, equals) : parsed.function.substr(parsed.function.rfind('.') + 1);
  }
  if (parsed.name.empty() || parsed.place.empty() || parsed.function.empty())
    throw std::invalid_argument(
        word + ": wanted [NAME=]MODULE:FUNCTION or [NAME=]FILE.py:FUNCTION, such as rewards.py:vowels");
  return parsed;
}

std::map<std::string, rl::RewardFunction> load_rewards(const GivenRewards& given) {
  return load(given, by_name(given));
}

std::map<std::string, rl::RewardFunction> load_rewards(const GivenRewards& given, const TrainConfig& config) {
  const auto words = by_name(given);
  std::set<std::string> kinds;
  for (const PhaseConfig& phase : config.phases)
    for (const rl::RewardConfig& reward : phase.reward) kinds.insert(reward.kind);
  std::string there;
  for (const std::string& kind : kinds) there += (there.empty() ? "" : ", ") + excerpt(kind);
  for (const auto& [name, word] : words)
    if (!kinds.contains(name))
      throw std::runtime_error("--reward " + name + "=" + word.place + ":" + word.function +
                               ": no reward of the configuration has the kind " + name + "; " +
                               (there.empty() ? "it has none" : "its kinds are " + there) + ". Put {kind: " + name +
                               "} among the rewards of a phase, or leave it out");
  return load(given, words);
}

}  // namespace isentrope::train
