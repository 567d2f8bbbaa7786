#include "csrc/methods/windows.h"

#include <algorithm>
#include <cmath>

namespace isentrope::methods {

std::vector<double> window_means(std::span<const float> entropy, int64_t w) {
  std::vector<double> means;
  for (int64_t t = 0; t + w <= static_cast<int64_t>(entropy.size()); ++t) {
    double sum = 0;  // each on its own: windows are short, and running sums would carry rounding along
    for (int64_t i = t; i < t + w; ++i) sum += entropy[i];
    means.push_back(sum / static_cast<double>(w));
  }
  return means;
}

double quantile(std::vector<double> values, double q) {
  const double rank = q * static_cast<double>(values.size() - 1);
  const auto below = values.begin() + static_cast<int64_t>(std::floor(rank));
  std::nth_element(values.begin(), below, values.end());
  const double low = *below;
  if (below + 1 == values.end()) return low;
  return low + (rank - std::floor(rank)) * (*std::min_element(below + 1, values.end()) - low);
}

}  // namespace isentrope::methods
