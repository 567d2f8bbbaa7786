#include "csrc/methods/maxrl.h"

#include <algorithm>

#include "csrc/methods/estimator.h"

namespace isentrope::methods {

Advantages MaxRl::estimate(const Rewarded& r) const {
  check("advantages", r);
  Advantages a{r.reward, std::vector<double>(r.reward.size(), 1.0)};
  for (size_t g = 0; g + 1 < r.groups.size(); ++g) {
    const int64_t first = r.groups[g], count = r.groups[g + 1] - first;
    if (count < 2) continue;
    const auto s = std::span(r.reward).subspan(first, count);
    const double mean = sum(s) / static_cast<double>(count);
    const double scale = mean > rounding(s) ? 1 / mean : 0;
    const bool same = equal(s);
    for (int64_t i = first; i < first + count; ++i) {
      a.value[i] = same ? 0 : (a.value[i] - mean) * scale;
      a.slope[i] = scale;
    }
  }
  return a;
}

namespace {

Tensor maxrl(const Tensor& reward, const Tensor& group) {
  constexpr const char* kOp = "method_maxrl";
  return estimated(kOp, MaxRl(), rewarded(kOp, reward, group), reward);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) { define(m, "method_maxrl(Tensor reward, Tensor group) -> Tensor", maxrl); }

}  // namespace isentrope::methods
