#include "csrc/methods/remax.h"

#include <cmath>

#include "csrc/methods/estimator.h"

namespace isentrope::methods {
namespace {

void check_greedy(const std::string& who, const Rewarded& r) {
  if (r.greedy.size() != r.groups.size() - 1)
    throw std::invalid_argument(who + ": " + std::to_string(r.greedy.size()) + " rewards of greedy completions for " +
                                std::to_string(r.groups.size() - 1) + " groups; wanted one each");
  for (size_t g = 0; g < r.greedy.size(); ++g) check_reward(who, "greedy reward", g, r.greedy[g]);
}

}  // namespace

Advantages Remax::estimate(const Rewarded& r) const {
  check("advantages", r);
  check_greedy("advantages", r);
  Advantages a{r.reward, std::vector<double>(r.reward.size(), 1.0)};
  for (size_t g = 0; g < r.greedy.size(); ++g)
    for (int64_t i = r.groups[g]; i < r.groups[g + 1]; ++i) a.value[i] -= r.greedy[g];
  return a;
}

namespace {

Tensor remax(const Tensor& reward, const Tensor& group, const Tensor& greedy) {
  constexpr const char* kOp = "method_remax";
  Rewarded r = rewarded(kOp, reward, group);
  OP_CHECK(kOp, greedy.dim() == 1 && greedy.numel() == std::ssize(r.groups) - 1, "greedy has shape ", greedy.sizes(),
           "; wanted [", r.groups.size() - 1, "], a reward a group");
  r.greedy = numbers(host(greedy, torch::kFloat64));
  return estimated(kOp, Remax(), r, reward, [&](const std::string& who) { check_greedy(who, r); });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_remax(Tensor reward, Tensor group, Tensor greedy) -> Tensor", remax);
}

}  // namespace isentrope::methods
