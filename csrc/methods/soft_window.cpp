#include "csrc/methods/soft_window.h"

#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor soft_window(const Tensor& entropy, const Tensor& advantage, const Tensor& mask, int64_t window) {
  constexpr const char* kOp = "method_soft_window";
  TokenArguments given(kOp, "entropy", entropy, mask);
  SoftWindowLoop p{given.rows()};
  p.entropy = given.first(), p.advantage = given.take("advantage", advantage);
  OP_CHECK(kOp, window >= 1, "window is ", window, "; wanted at least 1");
  p.half = window / 2;
  const Tensor factor = given.make();
  p.factor = factor.mutable_data_ptr();
  ISENTROPE_PICK(soft_window_on_cpu)(p);
  return given.give(factor);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_soft_window(Tensor entropy, Tensor advantage, Tensor mask, *, int window=101) -> Tensor",
         soft_window);
}

}  // namespace isentrope::methods
