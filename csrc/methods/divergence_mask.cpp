#include "csrc/methods/divergence_mask.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"
#include "csrc/methods/token_table.h"

namespace isentrope::methods {
namespace {

// a log(a / b), 0 where a is 0; a and b probabilities of which rounding leaves none below 0.
double term(double a, double b) { return a <= 0 ? 0 : a * std::log(a / std::max(b, 1e-300)); }

}  // namespace

Tensor divergence_mask(const Tensor& logprob, const Tensor& old_logprob, const Tensor& sum_p2, const Tensor& old_sum_p2,
                       const Tensor& advantage, const Tensor& mask, double delta, c10::string_view divergence) {
  constexpr const char* kOp = "method_divergence_mask";
  if (divergence == "tv") {
    TokenArguments given(kOp, "logprob", logprob, mask);
    FurtherLoop p{given.rows()};
    p.logprob = given.first(), p.old_logprob = given.take("old_logprob", old_logprob);
    p.sum_p2 = given.take("sum_p2", sum_p2), p.old_sum_p2 = given.take("old_sum_p2", old_sum_p2);
    p.advantage = given.take("advantage", advantage), p.delta = delta;
    check_number(kOp, "delta", delta, delta >= 0, "at least 0");
    return given.made(p, ISENTROPE_PICK(further_on_cpu));
  }
  TokenTable given(kOp, "logprob", logprob, mask);
  const double *l = given.first(), *old = given.take("old_logprob", old_logprob), *p2 = given.take("sum_p2", sum_p2),
               *old_p2 = given.take("old_sum_p2", old_sum_p2), *A = given.take("advantage", advantage);
  OP_CHECK(kOp, divergence == "kl", "divergence is \"", divergence, "\"; wanted \"tv\" or \"kl\"");
  check_number(kOp, "delta", delta, delta >= 0, "at least 0");
  return given.give([&](int64_t i) {
    const double pi = std::exp(std::min(l[i], 0.0)), mu = std::exp(std::min(old[i], 0.0));
    const double D = term(mu, pi) + term(1 - mu, 1 - pi);
    const bool further = A[i] * ((pi - mu) - (p2[i] - old_p2[i]) / 2) > 0;
    return D > delta && further ? 0.0 : 1.0;
  });
}

Weighted DivergenceMask::apply(const Update& u, Context&) const {
  if (!u.sum_p2.defined() || !u.old_sum_p2.defined())
    throw std::invalid_argument(
        "divergence_mask: the update has no Σ p²; wanted those of the policy that learns and of the one that drew");
  return {divergence_mask(u.logprob, u.old_logprob, u.sum_p2, u.old_sum_p2, u.advantage, u.mask, delta, divergence)};
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_divergence_mask(Tensor logprob, Tensor old_logprob, Tensor sum_p2, Tensor old_sum_p2, Tensor "
         "advantage, Tensor mask, *, float delta=0.15, str divergence=\"tv\") -> Tensor",
         divergence_mask);
}

}  // namespace isentrope::methods
