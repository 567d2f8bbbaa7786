#include "csrc/methods/entropy_advantage.h"

#include <cmath>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor entropy_advantage(const Tensor& advantage, const Tensor& entropy, const Tensor& mask, double alpha,
                         double kappa) {
  constexpr const char* kOp = "method_entropy_advantage";
  TokenArguments given(kOp, "advantage", advantage, mask);
  EntropyGainLoop p{given.rows()};
  p.advantage = given.first(), p.entropy = given.take("entropy", entropy), p.alpha = alpha, p.kappa = kappa;
  check_number(kOp, "alpha", alpha, alpha >= 0 && std::isfinite(alpha), "at least 0, and finite");
  check_number(kOp, "kappa", kappa, kappa > 1, "above 1");
  return given.made(p, ISENTROPE_PICK(entropy_gain_on_cpu));
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_entropy_advantage(Tensor advantage, Tensor entropy, Tensor mask, *, float alpha=0.4, float kappa=2.0) "
         "-> Tensor",
         entropy_advantage);
}

}  // namespace isentrope::methods
