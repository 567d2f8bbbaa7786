#include "csrc/methods/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"
#include "csrc/methods/windows.h"

namespace isentrope::methods {
namespace {

constexpr double kFence = 1.5;  // of the distance of the quartiles: Tukey's, as the paper has it
constexpr double kLeastDeviation =
    1e-6;  // as released: below it the group counts as of one perplexity, and is not scaled

// Of each row −mean of logprob over its tokens that count; NaN where there is none.
std::vector<double> log_perplexities(const TokenArguments& given, const void* logprob) {
  const auto [sums, tokens] = given.sums(logprob);
  std::vector<double> u(sums.size(), std::numeric_limits<double>::quiet_NaN());
  for (size_t b = 0; b < u.size(); ++b)
    if (tokens[b] > 0) u[b] = -sums[b] / static_cast<double>(tokens[b]);
  return u;
}

// Mean and deviation of those that are no outliers.
std::pair<double, double> centre_of(const std::vector<double>& u) {
  const double q1 = quantile(u, 0.25), q3 = quantile(u, 0.75), reach = kFence * (q3 - q1);
  std::vector<double> inside;
  for (const double x : u)
    if (x >= q1 - reach && x <= q3 + reach) inside.push_back(x);
  if (inside.empty()) inside = u;
  const auto n = static_cast<double>(inside.size());
  double sum = 0, squares = 0;
  for (const double x : inside) sum += x;
  const double mean = sum / n;
  for (const double x : inside) squares += (x - mean) * (x - mean);
  const double deviation = std::sqrt(squares / n);
  return {mean, deviation > kLeastDeviation ? deviation : 1.0};
}

}  // namespace

Tensor perplexity(const Tensor& advantage, const Tensor& logprob, const Tensor& mask, const Tensor& group, double alpha,
                  double low, double high) {
  constexpr const char* kOp = "method_perplexity";
  TokenArguments given(kOp, "advantage", advantage, mask);
  ScaleLoop p{given.rows()};
  p.advantage = given.first();
  const void* const logprobs = given.take("logprob", logprob);
  const Groups groups = given.take_groups(group);
  check_number(kOp, "alpha", alpha, std::isfinite(alpha), "a finite number");
  check_number(kOp, "low", low, low >= 0 && low <= 1, "0 to 1");
  check_number(kOp, "high", high, high >= 1, "at least 1");

  const std::vector<double> u = log_perplexities(given, logprobs);
  std::vector<double> factor(u.size(), 1.0);
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    std::vector<double> own;
    for (int64_t b = groups[g]; b < groups[g + 1]; ++b)
      if (std::isfinite(u[b])) own.push_back(u[b]);
    if (own.empty()) continue;
    const auto [mean, deviation] = centre_of(own);
    for (int64_t b = groups[g]; b < groups[g + 1]; ++b)
      if (std::isfinite(u[b])) factor[b] = std::clamp(1 - alpha * ((u[b] - mean) / deviation), low, high);
  }
  p.up = p.down = factor.data();
  return given.made(p, ISENTROPE_PICK(scale_on_cpu));
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_perplexity(Tensor advantage, Tensor logprob, Tensor mask, Tensor group, *, float alpha=0.01, float "
         "low=0.8, float high=1.2) -> Tensor",
         perplexity);
}

}  // namespace isentrope::methods
