// The environment twenty_questions: an object of a table is found by questions that pay in information.
//
//   turn            answer          what it means
//   ?ATTRIBUTE\n    y\n or n\n      whether the object has the attribute
//   !OBJECT         (over)          the guess
//   another         e\n             an error
//
// The belief over the N objects begins uniform; an answer is as likely as 1 − noise where the object would be answered so, else as noise.
// Scores as csrc/rl/question_game.h has them, information_gain over ln N. A question that is asked again is answered by a new draw of the
// noise.
//
// After "Dialogue as Discovery" (arXiv 2510.27410), whose reward is the drop of entropy of a belief that factorises over attributes.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/questions.h"
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

using data::entropy_of;

// The table of an example, which says 0 or 1 of each object and attribute. Throws std::exception where its columns have none.
data::QuestionTable questions_table(const std::string& columns, double noise);

// rows [objects] of 0 and 1 by attribute: the belief behind an answer '0' or '1', and the mutual information of the object and the answer,
// nats (csrc/data/questions.h).
std::vector<double> believe(const std::vector<double>& belief, const std::vector<std::string>& rows, int64_t attribute,
                            char answer, double noise);
double expected_gain(const std::vector<double>& belief, const std::vector<std::string>& rows, int64_t attribute,
                     double noise);

}  // namespace isentrope::rl
