#include "csrc/ops/derivatives.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <string>

namespace isentrope::ops {
namespace {

void refuse(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  using namespace torch::autograd;
  const std::string& name = op.schema().name();
  c10::intrusive_ptr<Node> refusal;
  variable_list recorded;
  for (const c10::IValue& x : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (!x.isTensor() || !x.toTensor().defined()) continue;
    TORCH_CHECK_NOT_IMPLEMENTED(!isFwGradDefined(x.toTensor()), name,
                                ": an argument has a forward-mode tangent, for which this op has no derivative");
    if (GradMode::is_enabled() && x.toTensor().requires_grad()) recorded.push_back(x.toTensor());
  }
  if (!recorded.empty()) {
    refusal = c10::make_intrusive<Error>(
        name +
            ": second derivatives are not implemented (grad of grad, hessian, create_graph=True); "
            "wanted first derivatives alone",
        collect_next_edges(recorded));
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  if (!refusal) return;
  for (const c10::IValue& x : torch::jit::last(*stack, op.schema().returns().size()))
    if (x.isTensor() && x.toTensor().defined()) set_history(x.toTensor(), refusal);
}

}  // namespace

torch::CppFunction second_derivatives_refused() { return torch::CppFunction::makeFromBoxedFunction<&refuse>(); }

}  // namespace isentrope::ops
