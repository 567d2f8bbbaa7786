#include "csrc/methods/entropy_ratio_band.h"

#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor entropy_ratio_band(const Tensor& entropy, const Tensor& old_entropy, const Tensor& mask, double low,
                          double high) {
  constexpr const char* kOp = "method_entropy_ratio_band";
  TokenArguments given(kOp, "entropy", entropy, mask);
  RatioBandLoop p{given.rows()};
  p.entropy = given.first(), p.old_entropy = given.take("old_entropy", old_entropy);
  check_number(kOp, "low", low, low >= 0, "at least 0");
  check_number(kOp, "high", high, high > low, "above low");
  p.low = low, p.high = high, p.bias = 1e-8;
  const Tensor factor = given.make();
  p.factor = factor.mutable_data_ptr();
  ISENTROPE_PICK(ratio_band_on_cpu)(p);
  return given.give(factor);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_entropy_ratio_band(Tensor entropy, Tensor old_entropy, Tensor mask, *, float low=0.95, float "
         "high=1.05) -> Tensor",
         entropy_ratio_band);
}

}  // namespace isentrope::methods
