// What the keys of a dpo phase that draws its pairs (csrc/rl/mined_pairs.h) must be together.
#include "csrc/train/config.h"

namespace isentrope::train {

std::string pairs_problem(const PhaseConfig& phase) {
  const std::string& kind = phase.objective.kind;
  if (!phase.pairs) {
    if (kind != "dpo" || phase.data.jsonl) return "";
    return "data: a dpo phase learns from pairs of completions; write data: {jsonl: {path: ...}}, whose lines have a "
           "prompt, chosen and rejected, or pairs: {} to draw them of the prompts of these data";
  }
  if (kind != "dpo") return "pairs belongs to dpo phases, and objective.kind is " + kind + "; leave it out";
  if (phase.data.text())
    return "pairs: they are drawn of prompts, and text has none; write data: {episodes: ...}, tint, jsonl or "
           "reasoning_gym";
  if (phase.judging().empty())
    return "pairs: nothing says which completions are right; write reward: [{kind: answer}], or an environment";
  if (phase.reward.size() != phase.scores().size())
    return "reward: pairs look at the scores of completions, and at nothing that is done to their sum; leave " +
           rl::shaping_of(phase.reward).front().kind() + " out";
  if (phase.environment && !phase.pairs->sampling.stop.empty())
    return "pairs.stop: with an environment environment.stop says what ends a turn; leave it out";
  return "";
}

}  // namespace isentrope::train
