// Warns once a phase where a policy cannot learn from its rewards, since they tell no two completions of a prompt apart, step after step;
// where the policy that draws is not the one that is trained; where a text that a method waits for never comes; and, in every phase, where optimizer.noise dwarfs the gradient.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace isentrope::train {

class PolicyWatch {
 public:
  // Steps in a row that are warned of. With four prompts a step that are flat nine times out of ten, all are flat ten steps in a
  // row in one of 68 such rows; with the 32 of the default it does not happen by chance.
  static constexpr int64_t kSteps = 10;
  // Of mismatch/k3, nats a token: over a hundred tokens it makes a nat, so that the ratio of a completion is off by a factor of e.
  static constexpr double kMostMismatch = 0.01;
  // Of added_noise/ratio: of the square of such an update 99 % are noise.
  static constexpr double kMostNoise = 10;

  // phase: its name; values: of a step, by the names of docs/metrics.md. Returns what is new: texts that name the key to change,
  // each kind once.
  std::vector<std::string> look(const std::string& phase, const std::map<std::string, double>& values);

  // What a resumed run goes on from, nothing where there is nothing: steps in a row, their one reward, what was told, and of each text that a
  // method waits for the steps in a row without it.
  std::vector<double> state() const;
  void restore(const std::vector<double>& state);  // throws std::runtime_error for what state() does not give

 private:
  std::vector<std::string> of_texts(const std::string& phase, const std::map<std::string, double>& values);
  std::vector<std::string> of_rewards(const std::string& phase, const std::map<std::string, double>& values);

  int64_t flat_ = 0, equal_ = 0;  // steps in a row in which every group was flat; in which all rewards were reward_
  double reward_ = 0;
  int64_t told_ = 0;                     // bits: one a kind
  std::array<int64_t, 3> without_ = {};  // steps in a row, of each of kAwaited
};

}  // namespace isentrope::train
