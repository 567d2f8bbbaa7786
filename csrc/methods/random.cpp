#include "csrc/methods/random.h"

#include <algorithm>

#include "csrc/methods/op.h"
#include "csrc/ops/ops.h"

namespace isentrope::methods {

Tensor random(const Tensor& selected, const Tensor& mask, int64_t seed) {
  constexpr const char* kOp = "method_random";
  check_rows(kOp, "selected", selected);
  check_like(kOp, "mask", mask, "selected", selected);
  const Tensor counts = mask.ne(0), unused = torch::zeros(mask.sizes(), mask.options().dtype(torch::kFloat32));
  // grpo_select takes `minimum` tokens where its share of them is less than one.
  return ops::grpo_select(unused, unused, unused, counts,
                          {.mode = "random_kl_cov",
                           .seed = seed,
                           .cov_ratio = 1e-300,
                           .minimum = selected.ne(0).logical_and(counts).sum().item<int64_t>()});
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(
      m, "method_random(Tensor selected, Tensor mask, *, int seed) -> Tensor", random,
      +[](const Tensor& selected, const Tensor&, int64_t) {
        return torch::empty_symint(selected.sym_sizes(), selected.options().dtype(torch::kBool));
      });
}

}  // namespace isentrope::methods
