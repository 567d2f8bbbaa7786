#include "csrc/methods/pass_at_k.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csrc/methods/estimator.h"

namespace isentrope::methods {
namespace {

void check_sizes(const std::string& who, const Rewarded& r, int64_t k) {
  for (size_t g = 0; g + 1 < r.groups.size(); ++g) {
    const int64_t n = r.groups[g + 1] - r.groups[g];
    if (n > 1 && n <= k)
      throw std::invalid_argument(who + ": group " + std::to_string(g) + " has " + std::to_string(n) +
                                  " completions and k is " + std::to_string(k) +
                                  "; wanted more than k, since all k together have nothing to be compared with");
  }
}

// Values and slopes of a group of n > k rewards that differ.
void subsets(std::span<const double> s, int64_t k, double eps, double* value, double* slope) {
  const int64_t n = std::ssize(s);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s[a] < s[b]; });
  // From the least: means of numbers near each other lose no digits.
  const double least = s[order[0]], range = s[order[n - 1]] - least;
  const auto x = [&](int64_t rank) { return s[order[rank]] - least; };
  // Of ranks 0 … n − 1: the chance that the choice of k has its largest there, C(rank, k−1) / C(n, k); and that of a choice with
  // one given completion, by whether that is the one, C(rank, k−1) / C(n−1, k−1), or one further down, C(rank−1, k−2) / C(n−1, k−1).
  std::vector<double> any(n, 0), own(n, 0), other(n, 0);
  any[n - 1] = static_cast<double>(k) / static_cast<double>(n);
  own[n - 1] = 1;
  if (k > 1) other[n - 1] = static_cast<double>(k - 1) / static_cast<double>(n - 1);
  for (int64_t j = n - 1; j >= k; --j) {  // C(j−1, k−1) = C(j, k−1) (j−k+1) / j
    const double factor = static_cast<double>(j - k + 1) / static_cast<double>(j);
    any[j - 1] = any[j] * factor;
    own[j - 1] = own[j] * factor;
    if (j > 1) other[j - 1] = other[j] * static_cast<double>(j - k + 1) / static_cast<double>(j - 1);
  }
  double mean = 0, variance = 0;
  for (int64_t j = 0; j < n; ++j) mean += any[j] * x(j);
  for (int64_t j = 0; j < n; ++j) variance += any[j] * (x(j) - mean) * (x(j) - mean);
  const double std = std::sqrt(variance);
  // Where all choices but for one in 2^42 have the same best, what is left is rounding, and smaller than eps.
  const double scale = std > 0x1p-21 * range ? 1 / (std + eps) : 0;
  double above = 0;  // Σ over ranks above the run of equal rewards
  for (int64_t end = n; end > 0;) {
    int64_t begin = end - 1;  // equal rewards have equal advantages, those of the highest of their ranks
    while (begin > 0 && x(begin - 1) == x(end - 1)) --begin;
    for (int64_t j = begin; j < end; ++j) {
      value[order[j]] = (own[end - 1] * x(end - 1) + above - mean) * scale;
      slope[order[j]] = own[end - 1] * scale;
    }
    for (int64_t j = begin; j < end; ++j) above += other[j] * x(j);
    end = begin;
  }
}

// The same of the best completion alone; scale 1 / (std + eps).
void best(std::span<const double> s, double scale, double* value, double* slope) {
  const auto first = std::max_element(s.begin(), s.end());
  double second = -std::numeric_limits<double>::infinity();
  for (auto i = s.begin(); i != s.end(); ++i)
    if (i != first) second = std::max(second, *i);
  std::fill_n(value, s.size(), 0.0);
  std::fill_n(slope, s.size(), 0.0);
  value[first - s.begin()] = (*first - second) * scale;
  slope[first - s.begin()] = scale;
}

}  // namespace

Advantages PassAtK::estimate(const Rewarded& r) const {
  check("advantages", r);
  if (form == "subsets") check_sizes("advantages: pass_at_k", r, k);
  const std::vector<double> scale = scales(r, Scale::kGroup, eps);
  Advantages a{std::vector<double>(r.reward.size()), std::vector<double>(r.reward.size())};
  for (size_t g = 0; g + 1 < r.groups.size(); ++g) {
    const int64_t first = r.groups[g], count = r.groups[g + 1] - first;
    const auto s = std::span(r.reward).subspan(first, count);
    double *value = a.value.data() + first, *slope = a.slope.data() + first;
    if (count < 2 || equal(s)) {
      for (int64_t i = 0; i < count; ++i) value[i] = count < 2 ? s[i] * scale[g] : 0, slope[i] = scale[g];
    } else if (form == "best") {
      best(s, scale[g], value, slope);
    } else {
      subsets(s, k, eps, value, slope);
    }
  }
  return a;
}

namespace {

Tensor pass_at_k(const Tensor& reward, const Tensor& group, int64_t k, c10::string_view form, double eps) {
  constexpr const char* kOp = "method_pass_at_k";
  OP_CHECK(kOp, k >= 1, "k is ", k, "; wanted at least 1");
  OP_CHECK(kOp, form == "subsets" || form == "best", "form is \"", form, "\"; wanted subsets or best");
  check_number(kOp, "eps", eps, eps >= 0 && eps <= 1, "0 to 1");
  const Rewarded r = rewarded(kOp, reward, group);
  return estimated(kOp, PassAtK{k, std::string(form), eps}, r, reward, [&](const std::string& who) {
    if (form == "subsets") check_sizes(who, r, k);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_pass_at_k(Tensor reward, Tensor group, int k=4, str form='subsets', float eps=1e-06) -> Tensor",
         pass_at_k);
}

}  // namespace isentrope::methods
