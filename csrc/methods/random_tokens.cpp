#include "csrc/methods/random_tokens.h"

#include "csrc/methods/op.h"
#include "csrc/methods/top_entropy.h"
#include "kernels/gpu/philox.h"

namespace isentrope::methods {

Tensor random_tokens(const Tensor& entropy, const Tensor& mask, double fraction, int64_t seed, int64_t update) {
  constexpr const char* kOp = "method_random_tokens";
  check_rows(kOp, "entropy", entropy);
  check_floating(kOp, "entropy", entropy);
  check_like(kOp, "mask", mask, "entropy", entropy);
  check_number(kOp, "fraction", fraction, fraction > 0 && fraction <= 1, "above 0 to 1");
  // Those of the largest keys, which are uniform: of two equal ones, once in 4 billion pairs, the earlier token comes first.
  Tensor keys = torch::empty(entropy.sizes(), torch::kDouble);
  auto* key = keys.mutable_data_ptr<double>();
  for (int64_t i = 0; i < keys.numel(); ++i)
    key[i] = philox(static_cast<uint64_t>(seed), static_cast<uint64_t>(i), static_cast<uint64_t>(update)).word[0];
  return top_entropy(keys, host_mask(mask), fraction).to(entropy.options());
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_random_tokens(Tensor entropy, Tensor mask, *, float fraction=0.2, int seed=1, int update=0) -> Tensor",
         random_tokens);
}

}  // namespace isentrope::methods
