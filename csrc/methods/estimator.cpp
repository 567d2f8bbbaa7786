#include "csrc/methods/estimator.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace isentrope::methods {
namespace {

// Sums of scores that are equal by right differ by rounding: four roundings of float32, in which scores may come, of the
// largest; and where large terms cancel, a few of double of terms of size 1 or so.
constexpr double kRounding = 0x1p-21, kCancelled = 1e-12;

// Squares of rewards up to this, and the advantages they make, are finite in float32.
constexpr double kLargestReward = 1e18;

}  // namespace

double rounding(std::span<const double> s) {
  double largest = 0;
  for (const double x : s) largest = std::max(largest, std::abs(x));
  return std::max(kRounding * largest, kCancelled);
}

bool equal(std::span<const double> s) {
  if (s.empty()) return true;
  const auto [low, high] = std::minmax_element(s.begin(), s.end());
  return *high - *low <= rounding(s);
}

double sum(std::span<const double> x) { return std::accumulate(x.begin(), x.end(), 0.0); }

std::string written(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", x);
  return text;
}

void check_reward(const std::string& who, const char* what, size_t i, double reward) {
  const std::string name = who + ": " + what + " " + std::to_string(i);
  if (!std::isfinite(reward)) throw std::invalid_argument(name + " is not finite (" + written(reward) + ")");
  if (std::abs(reward) > kLargestReward)
    throw std::invalid_argument(name + " is " + written(reward) +
                                ", and its square would overflow; wanted at most 1e18 in size: give the reward a "
                                "smaller weight");
}

void check(const std::string& who, const Rewarded& r) {
  const auto fail = [&](const std::string& what) { throw std::invalid_argument(who + ": " + what); };
  if (r.length.size() != r.reward.size())
    fail(std::to_string(r.length.size()) + " lengths for " + std::to_string(r.reward.size()) +
         " rewards; wanted one each");
  if (r.groups.empty() || r.groups.front() != 0 || r.groups.back() != static_cast<int64_t>(r.reward.size()) ||
      !std::is_sorted(r.groups.begin(), r.groups.end()))
    fail("groups do not cut " + std::to_string(r.reward.size()) +
         " rewards; wanted rising numbers from 0 to their count");
  for (size_t i = 0; i < r.reward.size(); ++i) {
    check_reward(who, "reward", i, r.reward[i]);
    if (r.length[i] < 0)
      fail("length " + std::to_string(i) + " is " + std::to_string(r.length[i]) + ", wanted 0 or more");
  }
}

std::vector<bool> keep_groups(std::span<const double> rewards, const Groups& groups) {
  std::vector<bool> kept;
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    const auto group = rewards.subspan(groups[g], groups[g + 1] - groups[g]);
    kept.push_back(group.size() < 2 || !equal(group));
  }
  return kept;
}

double inverse_std(std::span<const double> s, double eps) {
  if (equal(s) || s.size() < 2) return 1 / (1 + eps);
  const auto n = static_cast<double>(s.size());
  const double mean = sum(s) / n;
  double squares = 0;
  for (const double x : s) squares += (x - mean) * (x - mean);
  return 1 / (std::sqrt(squares / (n - 1)) + eps);
}

std::vector<double> scales(const Rewarded& r, Scale scale, double eps) {
  const std::span<const double> s = r.reward;
  std::vector<double> of(r.groups.size() - 1, scale == Scale::kBatch ? inverse_std(s, eps) : 1.0);
  if (scale == Scale::kGroup)
    for (size_t g = 0; g < of.size(); ++g)
      of[g] = inverse_std(s.subspan(r.groups[g], r.groups[g + 1] - r.groups[g]), eps);
  return of;
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

Rewarded rewarded(const char* op, const Tensor& reward, const Tensor& group, const Tensor& length) {
  OP_CHECK(op, reward.dim() == 1, "reward has ", reward.dim(), " dimensions; wanted [B]");
  check_floating(op, "reward", reward);
  check_like(op, "group", group, "reward", reward);
  ops::check_dtype(op, "group", group, {torch::kInt64, torch::kInt32});
  Rewarded r{numbers(host(reward, torch::kFloat64)), {}, refusing([&] { return groups_of(group); })};
  if (length.defined()) {
    check_like(op, "length", length, "reward", reward);
    ops::check_dtype(op, "length", length, {torch::kInt64, torch::kInt32});
    const Tensor n = host(length, torch::kInt64);
    r.length.assign(n.const_data_ptr<int64_t>(), n.const_data_ptr<int64_t>() + n.numel());
  } else {
    r.length.assign(r.reward.size(), 1);
  }
  return r;
}

std::vector<double> numbers(const Tensor& x) {
  return {x.const_data_ptr<double>(), x.const_data_ptr<double>() + x.numel()};
}

Tensor as_tensor(const std::vector<double>& values, const Tensor& like) {
  return torch::tensor(values, torch::kFloat64).to(like.options()).view(like.sizes());
}

}  // namespace isentrope::methods
