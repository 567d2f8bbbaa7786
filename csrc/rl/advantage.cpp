#include "csrc/rl/advantage.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <stdexcept>

namespace isentrope::rl {
namespace {

// Sums of scores that are equal by right differ by rounding: four roundings of float32, in which scores may come, of the
// largest; and where large terms cancel, a few of double of terms of size 1 or so.
constexpr double kRounding = 0x1p-21, kCancelled = 1e-12;

// Squares of rewards up to this, and the advantages they make, are finite in float32.
constexpr double kLargestReward = 1e18;

bool equal(std::span<const double> s) {
  if (s.empty()) return true;
  const auto [low, high] = std::minmax_element(s.begin(), s.end());
  return *high - *low <= std::max(kRounding * std::max(std::abs(*low), std::abs(*high)), kCancelled);
}

double sum(std::span<const double> x) { return std::accumulate(x.begin(), x.end(), 0.0); }

std::string written(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", x);
  return text;
}

void check(std::span<const double> rewards, std::span<const int64_t> lengths, const Groups& groups) {
  const auto fail = [](const std::string& what) { throw std::invalid_argument("advantages: " + what); };
  if (lengths.size() != rewards.size())
    fail(std::to_string(lengths.size()) + " lengths for " + std::to_string(rewards.size()) +
         " rewards; wanted one each");
  if (groups.empty() || groups.front() != 0 || groups.back() != static_cast<int64_t>(rewards.size()) ||
      !std::is_sorted(groups.begin(), groups.end()))
    fail("groups do not cut " + std::to_string(rewards.size()) +
         " rewards; wanted rising numbers from 0 to their count");
  for (size_t i = 0; i < rewards.size(); ++i) {
    if (!std::isfinite(rewards[i])) fail("reward " + std::to_string(i) + " is not finite");
    if (std::abs(rewards[i]) > kLargestReward)
      fail("reward " + std::to_string(i) + " is " + written(rewards[i]) +
           ", and its square would overflow; wanted at most 1e18 in size: give the reward a smaller weight");
    if (lengths[i] < 0)
      fail("length " + std::to_string(i) + " is " + std::to_string(lengths[i]) + ", wanted 0 or more");
  }
}

// Values and slopes of one group, rewards s and lengths n.
void group_advantages(std::span<const double> s, std::span<const int64_t> n, const AdvantageConfig& config,
                      double* value, double* slope) {
  const auto K = static_cast<double>(s.size());
  const bool single = s.size() < 2;
  if (!single && equal(s)) {
    std::fill_n(value, s.size(), 0.0);
    std::fill_n(slope, s.size(), config.kind == "grpo" ? 1 / (1 + config.eps) : 1.0);
    return;
  }
  const double mean = single ? 0 : sum(s) / K;
  double shift = mean, scale = 1;
  if (config.kind == "grpo") {
    double squares = 0;
    for (const double x : s) squares += (x - mean) * (x - mean);
    scale = 1 / ((single ? 1 : std::sqrt(squares / (K - 1))) + config.eps);
  } else if (config.kind == "opo" && !single) {
    double weighted = 0, tokens = 0;
    for (size_t i = 0; i < s.size(); ++i)
      weighted += static_cast<double>(n[i]) * s[i], tokens += static_cast<double>(n[i]);
    shift = weighted / std::max(tokens, 1.0);
  }
  for (size_t i = 0; i < s.size(); ++i) {
    const double others = config.kind == "rloo" && !single ? (K * mean - s[i]) / (K - 1) : shift;
    value[i] = (s[i] - others) * scale;
    slope[i] = scale;
  }
}

void whiten_by_token(std::span<const int64_t> lengths, Advantages& a) {
  double tokens = 0, total = 0, squares = 0;
  for (size_t i = 0; i < lengths.size(); ++i)
    tokens += static_cast<double>(lengths[i]), total += static_cast<double>(lengths[i]) * a.value[i];
  if (tokens <= 0) return;
  for (double& value : a.value) value -= total / tokens;
  if (tokens < 2) return;
  for (size_t i = 0; i < lengths.size(); ++i) squares += static_cast<double>(lengths[i]) * a.value[i] * a.value[i];
  const double scale = 1 / std::sqrt(squares / (tokens - 1) + 1e-8);
  for (double& value : a.value) value *= scale;
  for (double& slope : a.slope) slope *= scale;
}

}  // namespace

Advantages advantages(std::span<const double> rewards, std::span<const int64_t> lengths, const Groups& groups,
                      const AdvantageConfig& config) {
  check(rewards, lengths, groups);
  const std::vector<std::string> kinds{"grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "opo"};
  if (std::find(kinds.begin(), kinds.end(), config.kind) == kinds.end())
    throw std::invalid_argument("advantage kind \"" + config.kind +
                                "\" is unknown; known: grpo, dr_grpo, rloo, reinforce_plus_plus_baseline, opo");
  Advantages a{std::vector<double>(rewards.size()), std::vector<double>(rewards.size())};
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    const int64_t first = groups[g], count = groups[g + 1] - first;
    group_advantages(rewards.subspan(first, count), lengths.subspan(first, count), config, a.value.data() + first,
                     a.slope.data() + first);
  }
  if (config.kind == "reinforce_plus_plus_baseline") whiten_by_token(lengths, a);
  return a;
}

std::vector<bool> keep_groups(std::span<const double> rewards, const Groups& groups) {
  std::vector<bool> kept;
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    const auto group = rewards.subspan(groups[g], groups[g + 1] - groups[g]);
    kept.push_back(group.size() < 2 || !equal(group));
  }
  return kept;
}

double overlong_penalty(int64_t length, const OverlongConfig& config, int64_t max_len) {
  if (config.len < 1 || config.len > max_len)
    throw std::invalid_argument("overlong_buffer.len is " + std::to_string(config.len) +
                                " tokens; wanted 1 to the length limit, " + std::to_string(max_len));
  return std::min(0.0, -config.penalty_factor * static_cast<double>(length - (max_len - config.len)) /
                           static_cast<double>(config.len));
}

}  // namespace isentrope::rl
