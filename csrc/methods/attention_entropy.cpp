#include "csrc/methods/attention_entropy.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor attention_entropy(const Tensor& attention, const Tensor& mask, double coef) {
  constexpr const char* kOp = "method_attention_entropy";
  OP_CHECK(kOp, attention.defined(),
           "there is no entropy of attention rows; wanted [B, T], as a trainer asks its model for it");
  const TokenArguments given(kOp, "attention", attention, mask);
  check_number(kOp, "coef", coef, std::isfinite(coef), "a finite number");
  SumLoop mean{given.rows()};
  std::vector<double> sums(static_cast<size_t>(mean.rows));
  std::vector<int64_t> counts(sums.size());
  mean.x = given.first(), mean.sum = sums.data(), mean.count = counts.data();
  ISENTROPE_PICK(sum_on_cpu)(mean);
  const auto tokens = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  AffineLoop p{given.rows()};
  p.x = given.first(), p.coef = coef;
  p.centre = tokens == 0 ? 0 : std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(tokens);
  const Tensor factor = given.make();
  p.factor = factor.mutable_data_ptr();
  ISENTROPE_PICK(affine_on_cpu)(p);
  return given.give(factor);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_attention_entropy(Tensor attention, Tensor mask, *, float coef=-0.5) -> Tensor", attention_entropy);
}

}  // namespace isentrope::methods
