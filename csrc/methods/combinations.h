// Which methods of a phase go together, and in which order: every such rule stands in the tables of combinations.cpp. They name methods by
// place and kind, as a configuration does; what a method asks of rollouts, of data or of a model is said where those are read.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace isentrope::methods {

// An entry of a list.
struct Listed {
  std::string kind;
  std::string detail = {};  // what tells two of a kind apart: the operator of op, the mode of correction
  bool micro = false;       // its key scope is micro
};

// The methods of a phase.
struct Chosen {
  std::vector<Listed> reward = {}, advantage = {}, weight = {};  // in their order; reward: without the scores
  std::vector<Listed> entropy = {};                              // objective.entropy
  std::string loss;                                              // objective.loss
  bool inner_policy = false;                                     // objective.inner_policy is there
  bool micro_loss = false;  // the loss selects tokens, and objective.scope is micro
  int64_t scores = 0;       // rewards whose weight is not 0
  bool cut = false;         // batch.micro_tokens cuts updates
};

// What makes no sense: "KEY: what came, why it is wrong, what to write"; "" where all is well.
std::string problem_of(const Chosen& chosen);

// What is allowed and hardly meant, in the same form.
std::vector<std::string> warnings_of(const Chosen& chosen);

}  // namespace isentrope::methods
