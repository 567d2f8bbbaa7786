#include "csrc/methods/tea.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"
#include "csrc/methods/token_table.h"

namespace isentrope::methods {

namespace {

// Means of ℓ and A over the tokens that count and whose ℓ and A are finite; 0 of none.
std::pair<double, double> finite_means(const Tensor& logprob, const Tensor& advantage, const Tensor& mask) {
  TokenTable given("method_tea", "logprob", logprob, mask);
  const double *l = given.first(), *A = given.take("advantage", advantage);
  double sum_l = 0, sum_A = 0, tokens = 0;
  for (int64_t i = 0; i < given.size(); ++i)
    if (given.mask()[i] && std::isfinite(l[i]) && std::isfinite(A[i])) sum_l += l[i], sum_A += A[i], ++tokens;
  return {sum_l / std::max(tokens, 1.0), sum_A / std::max(tokens, 1.0)};
}

}  // namespace

Tensor tea(const Tensor& logprob, const Tensor& advantage, const Tensor& mask, double alpha, double most) {
  constexpr const char* kOp = "method_tea";
  TokenArguments given(kOp, "logprob", logprob, mask);
  TeaLoop p{given.rows()};
  p.logprob = given.first(), p.advantage = given.take("advantage", advantage), p.alpha = alpha, p.most = most;
  check_number(kOp, "alpha", alpha, alpha >= 0 && std::isfinite(alpha), "at least 0, and finite");
  check_number(kOp, "most", most, most >= 0, "at least 0");
  const auto mean = [&](const void* x) {
    const auto [sums, counts] = given.sums(x);
    const auto n = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    return std::accumulate(sums.begin(), sums.end(), 0.0) / std::max(n, 1.0);
  };
  p.mean_logprob = mean(p.logprob), p.mean_advantage = mean(p.advantage);
  if (!std::isfinite(p.mean_logprob) || !std::isfinite(p.mean_advantage))
    std::tie(p.mean_logprob, p.mean_advantage) = finite_means(logprob, advantage, mask);
  return given.made(p, ISENTROPE_PICK(tea_on_cpu));
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
