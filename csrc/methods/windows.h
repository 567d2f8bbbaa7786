// Windows of a completion's token entropies. Pure C++.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace isentrope::methods {

// Means of the windows entropy[t … t + w − 1], t = 0 … n − w, in nats; none where n < w.
std::vector<double> window_means(std::span<const float> entropy, int64_t w);

// Interpolated linearly between the two nearest, as torch.quantile; values must not be empty.
double quantile(std::vector<double> values, double q);

}  // namespace isentrope::methods
