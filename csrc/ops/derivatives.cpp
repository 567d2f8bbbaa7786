#include "csrc/ops/derivatives.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <string>

namespace isentrope::ops {
namespace {

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  using namespace torch::autograd;
  const std::string& name = op.schema().name();
  variable_list inputs;
  for (const c10::IValue& x : torch::jit::last(*stack, op.schema().arguments().size()))
    if (x.isTensor() && x.toTensor().defined()) inputs.push_back(x.toTensor());
  for (const at::Tensor& x : inputs)
    TORCH_CHECK_NOT_IMPLEMENTED(!x._fw_grad(/*level=*/0).defined(), name,
                                ": an argument has a forward-mode tangent, for which this op has no derivative");
  c10::intrusive_ptr<Node> refusal;
  if (GradMode::is_enabled() && any_variable_requires_grad(inputs)) {
    refusal = c10::make_intrusive<Error>(
        name +
            ": second derivatives are not implemented (grad of grad, hessian, create_graph=True); "
            "wanted first derivatives alone",
        collect_next_edges(inputs));
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(stack);
  }
  if (!refusal) return;
  for (const c10::IValue& x : torch::jit::last(*stack, op.schema().returns().size()))
    if (x.isTensor() && x.toTensor().defined()) set_history(x.toTensor(), refusal);
}

}  // namespace

torch::CppFunction second_derivatives_refused() { return torch::CppFunction::makeFromBoxedFunction<&refuse>(); }

}  // namespace isentrope::ops
