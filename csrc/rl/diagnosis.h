// The environment diagnosis: a disease is found by asking for findings, of which P(finding | disease) is known.
//
//   turn           answer          what it means
//   ?FINDING\n     y\n or n\n      whether the patient has the finding
//   !DISEASE       (over)          the diagnosis
//   another        e\n             an error
//
// A patient has the findings that the environment draws from the likelihoods of the disease, each a function of (seed, finding): who asks
// again hears the same and learns nothing, and all conversations of a group are about one patient. Scores as csrc/rl/question_game.h has
// them, information_gain over the H of the prior; `likeliest` tells whether the diagnosis was the best that the answers allow, right or not.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/rl/environment.h"

namespace isentrope::rl {

struct Diagnosis : ConversationConfig {
  static constexpr const char* kKind = "diagnosis";
  static constexpr const char* kHelp = "Questions about the findings of a patient; data.episodes of that kind.";
  static std::vector<std::string> scores() { return {"answer", "information_gain", "likeliest", "turns"}; }
  std::string gain = "realised";

  std::shared_ptr<const Environment> make() const;

  template <class Visitor>
  void visit(Visitor& v) {
    ConversationConfig::visit(v);
    v("gain", gain,
      "What information_gain counts of an answer: the entropy that it took, or that the question takes on average.",
      one_of({"realised", "expected"}));
  }
};

}  // namespace isentrope::rl
