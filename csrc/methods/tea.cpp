#include "csrc/methods/tea.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/methods/token_table.h"

namespace isentrope::methods {

Tensor tea(const Tensor& logprob, const Tensor& advantage, const Tensor& mask, double alpha, double most) {
  constexpr const char* kOp = "method_tea";
  TokenTable given(kOp, "logprob", logprob, mask);
  const double *l = given.first(), *A = given.take("advantage", advantage);
  check_number(kOp, "alpha", alpha, alpha >= 0 && std::isfinite(alpha), "at least 0, and finite");
  check_number(kOp, "most", most, most >= 0, "at least 0");
  double sum_l = 0, sum_A = 0, tokens = 0;
  for (int64_t i = 0; i < given.size(); ++i)
    if (given.mask()[i]) sum_l += l[i], sum_A += A[i], ++tokens;
  const double mean_l = sum_l / std::max(tokens, 1.0), mean_A = sum_A / std::max(tokens, 1.0);
  const auto covariance = [&](int64_t i) { return (A[i] - mean_A) * (l[i] - mean_l); };
  std::vector<double> largest(given.rows(), -INFINITY), total(given.rows(), 0.0);
  for (int64_t i = 0; i < given.size(); ++i)
    if (given.mask()[i]) {
      double& c = largest[i / given.length()];
      c = std::max(c, covariance(i));
    }
  const auto power = [&](int64_t i) { return std::exp(covariance(i) - largest[i / given.length()]); };
  for (int64_t i = 0; i < given.size(); ++i)
    if (given.mask()[i]) total[i / given.length()] += power(i);
  return given.give([&](int64_t i) { return std::min(most, alpha * power(i) / total[i / given.length()]); });
}

Bonus Tea::bonus(const Update& u, int64_t, Context& context) const {
  const Tensor weight = tea(u.logprob, u.advantage, u.mask, alpha, most);
  if (const Tensor own = weight.masked_select(u.mask); own.numel() > 0) {
    context.stats["tea/weight"] = own.mean(torch::kFloat64).item<double>();
    context.stats["tea/cut"] = own.ge(most).to(torch::kFloat64).mean().item<double>();
  }
  return {coef, weight};
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_tea(Tensor logprob, Tensor advantage, Tensor mask, *, float alpha=10.0, float most=5.0) -> Tensor",
         tea);
}

}  // namespace isentrope::methods
