#include "csrc/methods/group_advantage.h"

#include <algorithm>

#include "csrc/methods/estimator.h"

namespace isentrope::methods {
namespace {

// Values of one group, rewards s and lengths n.
void group_advantage(std::span<const double> s, std::span<const int64_t> n, Baseline baseline, double scale,
                     double* value) {
  const auto K = static_cast<double>(s.size());
  const bool single = s.size() < 2;
  if (!single && equal(s)) {
    std::fill_n(value, s.size(), 0.0);
    return;
  }
  const double mean = single ? 0 : sum(s) / K;
  double shift = mean;
  if (baseline == Baseline::kTokens && !single) {
    double weighted = 0, tokens = 0;
    for (size_t i = 0; i < s.size(); ++i)
      weighted += static_cast<double>(n[i]) * s[i], tokens += static_cast<double>(n[i]);
    shift = weighted / std::max(tokens, 1.0);
  }
  for (size_t i = 0; i < s.size(); ++i) {
    const double others = baseline == Baseline::kOthers && !single ? (K * mean - s[i]) / (K - 1) : shift;
    value[i] = (s[i] - others) * scale;
  }
}

}  // namespace

Advantages group_advantages(const Rewarded& r, Baseline baseline, Scale scale, double eps) {
  check("advantages", r);
  const std::vector<double> of_group = scales(r, scale, eps);
  Advantages a{std::vector<double>(r.reward.size()), std::vector<double>(r.reward.size())};
  for (size_t g = 0; g + 1 < r.groups.size(); ++g) {
    const int64_t first = r.groups[g], count = r.groups[g + 1] - first;
    group_advantage(std::span(r.reward).subspan(first, count), std::span(r.length).subspan(first, count), baseline,
                    of_group[g], a.value.data() + first);
    std::fill_n(a.slope.data() + first, count, of_group[g]);
  }
  return a;
}

Advantages ReinforcePlusPlusBaseline::estimate(const Rewarded& r) const {
  Advantages a = group_advantages(r, Baseline::kMean);
  whiten_by_token(r.length, a);
  return a;
}

namespace {

Tensor grpo(const Tensor& reward, const Tensor& group, double eps, c10::string_view std) {
  constexpr const char* kOp = "method_grpo";
  check_number(kOp, "eps", eps, eps >= 0 && eps <= 1, "0 to 1");
  OP_CHECK(kOp, std == "group" || std == "batch", "std is \"", std, "\"; wanted group or batch");
  return estimated(kOp, Grpo{eps, std::string(std)}, rewarded(kOp, reward, group), reward);
}
template <class Method>
Tensor of_rewards(const char* op, const Tensor& reward, const Tensor& group, const Tensor& length = {}) {
  return estimated(op, Method(), rewarded(op, reward, group, length), reward);
}
Tensor dr_grpo(const Tensor& reward, const Tensor& group) {
  return of_rewards<DrGrpo>("method_dr_grpo", reward, group);
}
Tensor rloo(const Tensor& reward, const Tensor& group) { return of_rewards<Rloo>("method_rloo", reward, group); }
Tensor opo(const Tensor& reward, const Tensor& group, const Tensor& length) {
  return of_rewards<Opo>("method_opo", reward, group, length);
}
Tensor reinforce_plus_plus_baseline(const Tensor& reward, const Tensor& group, const Tensor& length) {
  return of_rewards<ReinforcePlusPlusBaseline>("method_reinforce_plus_plus_baseline", reward, group, length);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_grpo(Tensor reward, Tensor group, float eps=1e-6, str std='group') -> Tensor", grpo);
  define(m, "method_dr_grpo(Tensor reward, Tensor group) -> Tensor", dr_grpo);
  define(m, "method_rloo(Tensor reward, Tensor group) -> Tensor", rloo);
  define(m, "method_opo(Tensor reward, Tensor group, Tensor length) -> Tensor", opo);
  define(m, "method_reinforce_plus_plus_baseline(Tensor reward, Tensor group, Tensor length) -> Tensor",
         reinforce_plus_plus_baseline);
}

}  // namespace isentrope::methods
