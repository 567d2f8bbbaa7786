#include "csrc/methods/quantile.h"

#include <algorithm>
#include <cmath>

#include "csrc/methods/estimator.h"

namespace isentrope::methods {
namespace {

double quantile_of(std::vector<double> s, double share, bool interpolate) {
  std::sort(s.begin(), s.end());
  const auto n = static_cast<double>(s.size());
  if (interpolate) {
    const double at = share * (n - 1), below = std::floor(at);
    const auto i = static_cast<size_t>(below);
    return i + 1 < s.size() ? s[i] + (at - below) * (s[i + 1] - s[i]) : s.back();
  }
  // share · n is a whole number by right where it is one but for rounding: 0.07 · 100 is 7.000000000000001.
  constexpr double kRounding = 1e-9;
  const auto rank = static_cast<size_t>(std::max(1.0, std::ceil(share * n - kRounding)));
  return s[std::min(rank, s.size()) - 1];
}

}  // namespace

Advantages Quantile::estimate(const Rewarded& r) const {
  check("advantages", r);
  const std::vector<double> scale = scales(r,
                                           std == "batch"  ? Scale::kBatch
                                           : std == "none" ? Scale::kNone
                                                           : Scale::kGroup,
                                           eps);
  Advantages a{r.reward, std::vector<double>(r.reward.size())};
  for (size_t g = 0; g + 1 < r.groups.size(); ++g) {
    const int64_t first = r.groups[g], count = r.groups[g + 1] - first;
    const auto s = std::span(r.reward).subspan(first, count);
    const bool same = count > 1 && equal(s);
    const double baseline = count < 2 ? 0 : quantile_of({s.begin(), s.end()}, quantile, interpolate);
    for (int64_t i = first; i < first + count; ++i) {
      a.value[i] = same ? 0 : (a.value[i] - baseline) * scale[g];
      a.slope[i] = scale[g];
    }
  }
  return a;
}

namespace {

Tensor quantile_advantage(const Tensor& reward, const Tensor& group, double quantile, bool interpolate, double eps,
                          c10::string_view std) {
  constexpr const char* kOp = "method_quantile";
  check_number(kOp, "quantile", quantile, quantile > 0 && quantile <= 1, "above 0 to 1");
  check_number(kOp, "eps", eps, eps >= 0 && eps <= 1, "0 to 1");
  OP_CHECK(kOp, std == "group" || std == "batch" || std == "none", "std is \"", std, "\"; wanted group, batch or none");
  return estimated(kOp, Quantile{quantile, interpolate, eps, std::string(std)}, rewarded(kOp, reward, group), reward);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_quantile(Tensor reward, Tensor group, float quantile=0.4, bool interpolate=False, float eps=1e-06, "
         "str std='group') -> Tensor",
         quantile_advantage);
}

}  // namespace isentrope::methods
