#include "csrc/methods/top_entropy.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>

#include "csrc/methods/kth.h"
#include "csrc/methods/op.h"

namespace isentrope::methods {

Tensor top_entropy(const Tensor& entropy, const Tensor& mask, double fraction) {
  constexpr const char* kOp = "method_top_entropy";
  check_rows(kOp, "entropy", entropy);
  check_floating(kOp, "entropy", entropy);
  check_like(kOp, "mask", mask, "entropy", entropy);
  check_number(kOp, "fraction", fraction, fraction > 0 && fraction <= 1, "above 0 to 1");
  const Tensor H = host(entropy), counts = host_mask(mask);
  Tensor factor = torch::zeros_like(H);
  const bool* m = counts.const_data_ptr<bool>();
  const int64_t n = H.numel(), tokens = std::count(m, m + n, true);
  if (tokens == 0) return factor.to(entropy.device());
  const auto k = std::clamp<int64_t>(std::llround(fraction * static_cast<double>(tokens)), 1, tokens);
  AT_DISPATCH_FLOATING_TYPES(H.scalar_type(), kOp, [&] {
    const scalar_t* x = H.const_data_ptr<scalar_t>();
    scalar_t* f = factor.mutable_data_ptr<scalar_t>();
    auto [key, equal] = Kth<scalar_t>::largest(x, m, n, k);
    for (int64_t i = 0; i < n; ++i) {
      if (!m[i]) continue;
      const auto own = ordered(x[i]);
      f[i] = own > key || (own == key && equal-- > 0) ? 1 : 0;
    }
  });
  return factor.to(entropy.device());
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_top_entropy(Tensor entropy, Tensor mask, float fraction=0.2) -> Tensor", top_entropy);
}

}  // namespace isentrope::methods
