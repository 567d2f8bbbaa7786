#include "csrc/methods/surprisal_band.h"

#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor surprisal_band(const Tensor& logprob, const Tensor& entropy, const Tensor& mask, double low, double high) {
  constexpr const char* kOp = "method_surprisal_band";
  TokenArguments given(kOp, "logprob", logprob, mask);
  SurprisalBandLoop p{given.rows()};
  p.logprob = given.first(), p.entropy = given.take("entropy", entropy);
  check_number(kOp, "low", low, low >= 0, "at least 0");
  check_number(kOp, "high", high, high >= low, "at least low");
  p.low = low, p.high = high;
  const Tensor factor = given.make();
  p.factor = factor.mutable_data_ptr();
  ISENTROPE_PICK(surprisal_band_on_cpu)(p);
  return given.give(factor);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(
      m,
      "method_surprisal_band(Tensor logprob, Tensor entropy, Tensor mask, *, float low=0.1, float high=3.0) -> Tensor",
      surprisal_band);
}

}  // namespace isentrope::methods
