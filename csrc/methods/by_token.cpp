#include "csrc/methods/by_token.h"

#include "csrc/methods/op.h"
#include "csrc/methods/weight_cpu.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/result_memory.h"

namespace isentrope::methods {

Tensor by_token(const Tensor& value, const Tensor& mask) {
  constexpr const char* kOp = "method_by_token";
  check_rows(kOp, "mask", mask);
  check_floating(kOp, "value", value);
  OP_CHECK(kOp, value.dim() == 1 && value.size(0) == mask.size(0), "value has shape ", value.sizes(), "; wanted [",
           mask.size(0), "], a number a row of mask");
  const Tensor own = host(value, torch::kFloat64), marks = host_mask(mask);
  const Tensor spread = ops::result_like(marks, value.scalar_type());
  FillLoop p{{mask.size(0), mask.size(1), marks.const_data_ptr<bool>(), value.scalar_type() == torch::kDouble}};
  p.value = own.const_data_ptr<double>();
  p.factor = spread.mutable_data_ptr();
  ISENTROPE_PICK(fill_on_cpu)(p);
  return spread.to(value.device());
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(
      m, "method_by_token(Tensor value, Tensor mask) -> Tensor", by_token,
      +[](const Tensor& value, const Tensor& mask) { return torch::empty_symint(mask.sym_sizes(), value.options()); });
}

}  // namespace isentrope::methods
