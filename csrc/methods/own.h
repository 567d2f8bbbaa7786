// A method of one's own: any torch operator, as a reward, an advantage, a weight, or what tokens weigh in an entropy bonus. It may be written in C++ (one file with TORCH_LIBRARY, which run.libraries
// loads) or in Python (isentrope.methods.register): examples/own_method.
//
// The operator's arguments are found by name. Tensors: of a weight mask, advantage, logprob, old_logprob, sampling_logprob, entropy,
// old_entropy [B, T] (methods::Update; sampling_logprob is old_logprob where nothing cuts what is drawn); of a reward or advantage mask,
// token, logprob, entropy [B, T], length, stopped, group, right, reward [B] (methods::Completions), of an advantage also advantage [B, T];
// under objective.entropy those of a weight, kept [B, T] (the entropy of what objective.entropy_keep keeps) and step [] int64, from 0.
// Numbers, texts, true and false come from the entry's other keys, or are the operator's defaults. It returns one tensor: of a weight the
// factor [B, T], 0 or more; of a reward [B], which is added to the rewards; of an advantage the new advantages [B, T]; under
// objective.entropy [B, T], what each token's entropy weighs in the bonus that is subtracted from the loss: the coefficient included, 0
// or less too.
//
// A method that keeps something from step to step is a pure function of it too: its operator has an argument state, [n] float64 on the
// CPU, and returns (what is said above, the new state [n]). The entry's key `state` has the numbers that it begins with. It stands in
// checkpoints. A reward or advantage is called once a step, a weight or entropy once an update, of which it sees the whole on every rank:
// what is drawn at random there has to be drawn of the state.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/methods/control.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

using NamedTensors = std::map<std::string, Tensor>;

struct OwnMethod {
  static constexpr const char* kKind = "op";
  static constexpr const char* kHelp =
      "A torch operator of one's own, whose arguments are found by name (csrc/methods/own.h, examples/own_method).";
  std::string op;
  std::vector<double> state;
  std::map<std::string, std::string> settings;

  std::string problem() const { return op.empty() ? "op: no operator is named; write op: mylib::mine" : ""; }

  template <class Visitor>
  void visit(Visitor& v) {
    v("op", op, "Its name, NAMESPACE::NAME; without a namespace isentrope::method_NAME.");
    v("state", state,
      "Numbers that its argument `state` begins with, of an operator that returns the state of the next step beside "
      "its "
      "result; empty: it has none.");
    v("any other key", settings, "An argument of the operator that is no tensor.");
  }

  Tensor initial_state() const;  // undefined where `state` is empty

 protected:
  // The operator's result, float32 or wider, finite and of the shape wanted; context.state becomes the one that it returns. Throws
  // std::invalid_argument where there is no such operator, where it wants what is not there or has no such argument, and where it
  // returns something else.
  Tensor call(NamedTensors tensors, at::IntArrayRef wanted, Context& context) const;
  // What of that can be said before there are tensors, by their names; "" where nothing is wrong.
  std::string problem_with(NamedTensors names) const;
};

struct OwnWeight : OwnMethod {
  Weighted apply(const Update& u, Context& context) const;
  std::string missing() const;  // problem_with()
};
struct OwnEntropy : OwnMethod {
  Control at(int64_t, const Tensor&) const { return {.weighs = true}; }
  Bonus bonus(const Update& u, int64_t step, Context& context) const;
  std::string missing() const;
};
struct OwnReward : OwnMethod {
  void apply(Completions& c, Context& context) const;
  std::string missing() const;
};
struct OwnAdvantage : OwnMethod {
  void apply(Completions& c, Context& context) const;
  std::string missing() const;
};

}  // namespace isentrope::methods
