#include "csrc/methods/top_entropy.h"

#include <algorithm>
#include <cmath>

#include "csrc/methods/kth.h"
#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor top_entropy(const Tensor& entropy, const Tensor& mask, double fraction) {
  constexpr const char* kOp = "method_top_entropy";
  const TokenArguments given(kOp, "entropy", entropy, mask);
  check_number(kOp, "fraction", fraction, fraction > 0 && fraction <= 1, "above 0 to 1");
  KeptLoop p{given.rows()};
  Tensor factor = given.make();
  const int64_t n = p.size(), tokens = count_marked(p.mask, n);
  if (tokens == 0) return given.give(factor.zero_());
  const auto k = std::clamp<int64_t>(std::llround(fraction * static_cast<double>(tokens)), 1, tokens);
  p.x = given.first();
  const auto find = [&]<class T>(const T* x) {
    const Kth<T> found = Kth<T>::largest(x, p.mask, n, k);
    p.key = found.key, p.equal = found.equal;
  };
  p.wide ? find(static_cast<const double*>(p.x)) : find(static_cast<const float*>(p.x));
  p.factor = factor.mutable_data_ptr();
  ISENTROPE_PICK(kept_on_cpu)(p);
  return given.give(factor);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_top_entropy(Tensor entropy, Tensor mask, *, float fraction=0.2) -> Tensor", top_entropy);
}

}  // namespace isentrope::methods
