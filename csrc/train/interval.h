// How far a measured figure may lie from that of all the data that there could be: 95 % intervals of the measurement alone.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace isentrope::train {

struct Interval {
  double low = 0, high = 0;
  std::string n = {};  // of how many of what: "128 prompts"
};
using Intervals = std::map<std::string, Interval>;  // by the figure's name: eval/greedy

// Wilson's score interval of a share in [0, 1] of n > 0 independent trials; n need not be whole.
Interval wilson(double share, double n);

// Wilson's interval of the mean of shares, one a group (the right answers among the samples to a prompt, or a pass@k that
// they estimate), of `size` trials each.
// Trials of one group are alike, so that they count as n = p(1 − p) / v trials, v being the variance of the mean over groups
// that the groups show; at least as many as there are groups, at most as there are trials. Every group the same share of 0 or 1
// shows no variance: n is the number of groups.
Interval wilson_of_groups(const std::vector<double>& shares, int64_t size);

// Normal interval of a ratio Σ sums / Σ counts over independent parts (nats and tokens of a window): ± 1.96 times its standard
// error by linearisation. Fewer than two parts: low and high are NaN. what: the parts are, for n.
Interval normal_of_ratio(const std::vector<double>& sums, const std::vector<double>& counts,
                         const std::string& what = "parts");

}  // namespace isentrope::train
