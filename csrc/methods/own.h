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
#pragma once
#include <map>
#include <string>

#include "csrc/field.h"
#include "csrc/methods/control.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

using NamedTensors = std::map<std::string, Tensor>;

// The operator's result, float32 or wider, finite and of the shape wanted. Throws std::invalid_argument where there is no such operator,
// where it wants what is not there or has no such argument, and where it returns something else.
Tensor call_own(const std::string& op, const NamedTensors& tensors, const std::map<std::string, std::string>& settings,
                at::IntArrayRef wanted);
// What of that can be said before there are tensors; "" where nothing is wrong.
std::string problem_of_own(const std::string& op, const NamedTensors& names,
                           const std::map<std::string, std::string>& settings);

struct OwnMethod {
  static constexpr const char* kKind = "op";
  static constexpr const char* kHelp =
      "A torch operator of one's own, whose arguments are found by name (csrc/methods/own.h, examples/own_method).";
  std::string op;
  std::map<std::string, std::string> settings;

  std::string problem() const { return op.empty() ? "op: no operator is named; write op: mylib::mine" : ""; }

  template <class Visitor>
  void visit(Visitor& v) {
    v("op", op, "Its name, NAMESPACE::NAME; without a namespace isentrope::method_NAME.");
    v("any other key", settings, "An argument of the operator that is no tensor.");
  }
};

struct OwnWeight : OwnMethod {
  Weighted apply(const Update& u, Context&) const;
  std::string missing() const;  // problem_of_own()
};
struct OwnEntropy : OwnMethod {
  Control at(int64_t, const Tensor&) const { return {.weighs = true}; }
  Bonus bonus(const Update& u, int64_t step, Context&) const;
  std::string missing() const;
};
struct OwnReward : OwnMethod {
  void apply(Completions& c, Context&) const;
  std::string missing() const;
};
struct OwnAdvantage : OwnMethod {
  void apply(Completions& c, Context&) const;
  std::string missing() const;
};

}  // namespace isentrope::methods
