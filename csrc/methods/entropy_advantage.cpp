#include "csrc/methods/entropy_advantage.h"

#include <algorithm>
#include <cmath>

#include "csrc/methods/token_table.h"

namespace isentrope::methods {

Tensor entropy_advantage(const Tensor& advantage, const Tensor& entropy, const Tensor& mask, double alpha,
                         double kappa) {
  constexpr const char* kOp = "method_entropy_advantage";
  TokenTable given(kOp, "advantage", advantage, mask);
  const double *A = given.first(), *H = given.take("entropy", entropy);
  check_number(kOp, "alpha", alpha, alpha >= 0 && std::isfinite(alpha), "at least 0, and finite");
  check_number(kOp, "kappa", kappa, kappa > 1, "above 1");
  return given.give([&](int64_t i) { return A[i] + std::min(alpha * std::max(H[i], 0.0), std::abs(A[i]) / kappa); });
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_entropy_advantage(Tensor advantage, Tensor entropy, Tensor mask, *, float alpha=0.4, float kappa=2.0) "
         "-> Tensor",
         entropy_advantage);
}

}  // namespace isentrope::methods
