// What the keys of rollouts, and the methods of a phase, must be together.
#include <algorithm>

#include "csrc/model/page_table.h"
#include "csrc/rl/rollout_source.h"

namespace isentrope::rl {
namespace {

bool makes_advantages(const methods::Advantage& one) {
  return std::visit(
      []<class M>(const M& method) {
        return requires(methods::Rewarded r) { method.estimate(r); }
        || requires(methods::Completions c) { method.estimate_tokens(c); };
      },
      one.value);
}

}  // namespace

std::string RolloutConfig::problem() const {
  if (prompts % mini_batches != 0)
    return "mini_batches: " + std::to_string(mini_batches) + " does not divide prompts (" + std::to_string(prompts) +
           "); every update takes the same number of whole groups";
  if (sampling.max_new_tokens > 0 && sampling.min_new_tokens > sampling.max_new_tokens)
    return "min_new_tokens: " + std::to_string(sampling.min_new_tokens) + " is above max_new_tokens (" +
           std::to_string(sampling.max_new_tokens) + ")";
  // Below 1e-3 two logits that differ by 0.01 have odds of 22000 : 1.
  if (sampling.temperature < 1e-3)
    return "temperature: at less than 0.001 the completions of a prompt are all the same, and a policy learns from how "
           "they "
           "differ";
  if (sampling.top_k == 1)
    return "top_k: 1 takes the likeliest token always, so that the completions of a prompt are all the same; a policy "
           "learns from how they differ";
  if (sampling.top_p == 0)
    return "top_p: 0 takes the likeliest token always, so that the completions of a prompt are all the same; a policy "
           "learns from how they differ";
  const int64_t cached = cache.cache_tokens / model::kPagePositions,
                shortest = 1 + std::max<int64_t>(sampling.max_new_tokens, 1);
  if (cache.cache_tokens > 0 && cached < model::pages_of(shortest) + 2)  // as rollout() counts
    return "cache_tokens: " + std::to_string(cache.cache_tokens) + " cannot hold one sequence of " +
           std::to_string(shortest) + " tokens; wanted at least " +
           std::to_string((model::pages_of(shortest) + 2) * model::kPagePositions) + ", or 0";
  if (branch && branch->sequences > 0 && branch->sequences < num_generations)
    return "branch.sequences: " + std::to_string(branch->sequences) + " is below num_generations (" +
           std::to_string(num_generations) + "), which it includes";
  if (allocation && (allocation->least > num_generations || most_samples() < num_generations))
    return "allocation: num_generations (" + std::to_string(num_generations) +
           ") is the mean, and does not lie between least (" + std::to_string(allocation->least) + ") and most (" +
           std::to_string(most_samples()) + ")";
  return "";
}

std::optional<methods::Selection> Methods::selection() const {
  std::optional<methods::Selection> found;
  for (const Shaping& one : reward)
    std::visit(
        [&](const auto& method) {
          if constexpr (requires { method.selection(); })
            if (!found) found = method.selection();
        },
        one.value);
  return found;
}

std::string Methods::needs_reference() const {
  for (const Shaping& one : reward)
    if (std::visit(
            []<class M>(const M&) {
              return requires { M::kNeedsReference; };
            },
            one.value))
      return one.kind();
  return "";
}

std::string Methods::problem(const RolloutConfig& rollout) const {
  for (const Shaping& one : reward) {
    const int64_t longest = rollout.sampling.max_new_tokens;
    const auto* overlong = one.get<methods::Overlong>();
    if (overlong && longest == 0)
      return "reward: overlong needs rollout.max_new_tokens, the length limit that the penalty counts back from";
    if (overlong && overlong->len > longest)
      return "reward: overlong.len is " + std::to_string(overlong->len) +
             " tokens, and the length limit that it counts back from, rollout.max_new_tokens, " +
             std::to_string(longest) + "; give a buffer of at most that";
  }
  if (const auto chosen = selection(); chosen && rollout.num_generations == 1 && !rollout.allocation)
    return "reward: " + chosen->kind +
           ": a group of one completion has nothing to differ from; give "
           "rollout.num_generations of 2 or more";
  const int64_t fewest = rollout.allocation ? rollout.allocation->least : rollout.num_generations;
  if (!advantage.empty()) {
    const auto* pass = advantage[0].get<methods::PassAtK>();
    if (pass && pass->form == "subsets" && fewest <= pass->k)
      return "advantage: pass_at_k chooses k = " + std::to_string(pass->k) +
             " completions of a group without one of them, and a group has " + std::to_string(fewest) +
             "; give a smaller k, or more rollout.num_generations";
    if (rollout.branch && (advantage[0].get<methods::Gdpo>() || advantage[0].get<methods::OptimalTokenBaseline>() ||
                           advantage[0].get<methods::Gtpo>()))
      return "advantage: " + advantage[0].kind() +
             " has no advantage for a token with a return of its own, as rollout.branch makes them; take one of them "
             "out";
  }
  for (size_t i = 0; i < advantage.size(); ++i) {
    const bool makes = makes_advantages(advantage[i]);
    if (i == 0 && !makes)
      return "advantage: the first of the list makes advantages of rewards, and " + advantage[i].kind() +
             " changes some; write {kind: grpo} or another of them before it";
    if (i > 0 && makes)
      return "advantage: " + advantage[i].kind() + " makes advantages of rewards and stands behind " +
             advantage[0].kind() + ", which has made some; keep one of them, as the first";
  }
  return "";
}

}  // namespace isentrope::rl
