// The environment calculator: a tool that is called in the text.
//
//   turn                 answer       what it means
//   …[EXPRESSION]        VALUE;       whole numbers, + - * / and ( ), worked out exactly; a fraction as 7/2
//   …[another]           ?;           an error: no such expression, a division by 0, more than 64 bits
//   …, without a call    (over)       the answer is what stands behind the last A
//
// A turn ends at "]" or at the end of sequence; the call of a turn is what stands behind its last "[".
// Scores: answer, 1 where the last turn ends in A and the example's answer, else 0; calls, calls made; errors, those without a meaning.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/rl/environment.h"

namespace isentrope::rl {

struct Calculator : ConversationConfig {
  static constexpr const char* kKind = "calculator";
  static constexpr const char* kHelp = "Expressions in [ ] are worked out.";
  static std::vector<std::string> scores() { return {"answer", "calls", "errors"}; }
  Calculator() { stop = {"]"}; }

  std::shared_ptr<const Environment> make() const;
};

}  // namespace isentrope::rl
