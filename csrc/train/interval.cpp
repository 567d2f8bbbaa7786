#include "csrc/train/interval.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace isentrope::train {
namespace {

constexpr double kZ = 1.959963984540054;  // the normal distribution has 95 % within ± this

double sum(const std::vector<double>& x) { return std::accumulate(x.begin(), x.end(), 0.0); }

}  // namespace

Interval wilson(double share, double n) {
  const double z2 = kZ * kZ, scale = 1 + z2 / n, middle = (share + z2 / (2 * n)) / scale;
  const double half = kZ / scale * std::sqrt(share * (1 - share) / n + z2 / (4 * n * n));
  return {std::max(0.0, middle - half), std::min(1.0, middle + half)};
}

Interval wilson_of_groups(const std::vector<double>& shares, int64_t size) {
  const auto groups = static_cast<double>(shares.size());
  const double share = sum(shares) / groups;
  double square = 0;
  for (const double one : shares) square += (one - share) * (one - share);
  const double variance = groups > 1 ? square / (groups - 1) / groups : 0;
  const double n = variance > 0 ? share * (1 - share) / variance : groups;
  return wilson(share, std::clamp(n, groups, groups * static_cast<double>(size)));
}

Interval normal_of_ratio(const std::vector<double>& sums, const std::vector<double>& counts, const std::string& what) {
  const auto parts = static_cast<double>(sums.size());
  const std::string n = std::to_string(sums.size()) + " " + what;
  if (parts < 2) return {std::nan(""), std::nan(""), n};
  const double total = sum(counts), ratio = sum(sums) / total;
  double square = 0;
  for (size_t i = 0; i < sums.size(); ++i) square += std::pow(sums[i] - ratio * counts[i], 2);
  const double half = kZ * std::sqrt(square * parts / (parts - 1)) / total;
  return {ratio - half, ratio + half, n};
}

}  // namespace isentrope::train
