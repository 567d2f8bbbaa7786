// The environment twenty_questions: an object of a table is found by questions that pay in information.
//
//   turn            answer          what it means
//   ?ATTRIBUTE\n    y\n or n\n      whether the object has the attribute
//   !OBJECT         (over)          the guess
//   another         e\n             an error
//
// The belief b over the N objects begins uniform; an answer multiplies it by its likelihood (1 − noise where the object would be answered
// so, else noise) and it is scaled to 1. H = −Σ b ln b, nats. It is the joint belief: were it the product of beliefs about single
// attributes, attributes that depend on each other would count twice (csrc/rl/twenty_questions.cpp, and a test).
//
// Scores:
//   answer            1 where the guess is the object, else 0
//   information_gain  Σ over questions of what they tell, over ln N. realised: H before less H after the answer, below 0 where an unlikely
//                     answer makes the object less certain; expected: the mutual information of answer and object, H before less the
//                     mean of H after over the answers that the belief foresees, never below 0
//   turns             questions asked, and turns that were errors
//
// After "Dialogue as Discovery" (arXiv 2510.27410), whose reward is the drop of entropy of a belief that factorises over attributes.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/rl/environment.h"

namespace isentrope::rl {

struct TwentyQuestions : ConversationConfig {
  static constexpr const char* kKind = "twenty_questions";
  static constexpr const char* kHelp = "Questions about an object of a table; data.episodes of that kind.";
  static std::vector<std::string> scores() { return {"answer", "information_gain", "turns"}; }
  std::string gain = "realised";
  double noise = 0;

  std::shared_ptr<const Environment> make() const;

  template <class Visitor>
  void visit(Visitor& v) {
    ConversationConfig::visit(v);
    v("gain", gain,
      "What information_gain counts of an answer: the entropy that it took, or that the question takes on average.",
      one_of({"realised", "expected"}));
    v("noise", noise, "Probability that an answer is wrong.", between(0, 0.5));
  }
};

// H of a belief, nats.
double entropy_of(const std::vector<double>& belief);

// The belief after an answer: rows [objects] of 0 and 1 by attribute, answer '0' or '1'. Throws std::invalid_argument where no object is
// left.
std::vector<double> believe(const std::vector<double>& belief, const std::vector<std::string>& rows, int64_t attribute,
                            char answer, double noise);

// Mutual information of the object and the answer to the question about an attribute, nats.
double expected_gain(const std::vector<double>& belief, const std::vector<std::string>& rows, int64_t attribute,
                     double noise);

}  // namespace isentrope::rl
