// The kinds of environment. A new one is one line here.
#pragma once
#include "csrc/one_of.h"
#include "csrc/rl/calculator.h"
#include "csrc/rl/diagnosis.h"
#include "csrc/rl/environment.h"
#include "csrc/rl/interpreter.h"
#include "csrc/rl/python_environment.h"
#include "csrc/rl/rollout.h"
#include "csrc/rl/search.h"
#include "csrc/rl/text_rules.h"
#include "csrc/rl/twenty_questions.h"

namespace isentrope::rl {

using EnvironmentConfig = OneOf<TwentyQuestions, Calculator, Search, Diagnosis, Interpreter, PythonEnvironment>;

// Names that rewards of kind environment may have; empty where only the environment knows.
inline std::vector<std::string> scores_of(const EnvironmentConfig& config) {
  return std::visit([](const auto& kind) { return kind.scores(); }, config.value);
}

inline const ConversationConfig& limits_of(const EnvironmentConfig& config) {
  return std::visit([](const auto& kind) -> const ConversationConfig& { return kind; }, config.value);
}

// The sampling of conversations with the environment, whose texts of stop end a turn. Throws as with_rules().
SamplingConfig with_environment(SamplingConfig sampling, const EnvironmentConfig& config,
                                const data::Tokenizer& tokenizer);

}  // namespace isentrope::rl
