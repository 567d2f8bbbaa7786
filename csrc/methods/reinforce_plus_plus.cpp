#include "csrc/methods/reinforce_plus_plus.h"

#include "csrc/methods/estimator.h"

namespace isentrope::methods {

Advantages ReinforcePlusPlus::estimate(const Rewarded& r) const {
  check("advantages", r);
  // Rewards that are equal by right have no variance, and not that of their rounding.
  Advantages a{equal(r.reward) ? std::vector<double>(r.reward.size(), 0.0) : r.reward,
               std::vector<double>(r.reward.size(), 1.0)};
  whiten_by_token(r.length, a);
  return a;
}

namespace {

Tensor reinforce_plus_plus(const Tensor& reward, const Tensor& length) {
  constexpr const char* kOp = "method_reinforce_plus_plus";
  return estimated(kOp, ReinforcePlusPlus(), rewarded(kOp, reward, torch::zeros(reward.sizes(), torch::kInt64), length),
                   reward);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_reinforce_plus_plus(Tensor reward, Tensor length) -> Tensor", reinforce_plus_plus);
}

}  // namespace isentrope::methods
