// What an op cannot be differentiated by, said by name: torch would say it in words about its own C++, or not at all.
#pragma once
#include <ATen/FuncTorchTLS.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <optional>

namespace isentrope::ops {

struct NamedInput {
  const char* name;
  const at::Tensor* tensor;  // null: not given
  NamedInput(const char* name, const at::Tensor& x) : name(name), tensor(&x) {}
  NamedInput(const char* name, const std::optional<at::Tensor>& x) : name(name), tensor(x ? &*x : nullptr) {}
  bool given() const { return tensor != nullptr && tensor->defined(); }
};

// Forward-mode differentiation (torch.func.jvp, forward_ad) has no rule in any op; an op that is constant to autograd would give
// 0 for it without a word.
inline void refuse_forward_mode(const char* op, std::initializer_list<NamedInput> inputs) {
  for (const NamedInput& x : inputs)
    TORCH_CHECK_NOT_IMPLEMENTED(
        !x.given() || !x.tensor->_fw_grad(/*level=*/0).defined(), "isentrope::", op, ": ", x.name,
        " has a forward-mode tangent (torch.func.jvp, jacfwd, forward_ad), for which this op has no "
        "derivative; wanted backward(), torch.autograd.grad or torch.autograd.functional.vjp");
}

// Called at the beginning of an op's Autograd entry.
inline void check_differentiation(const char* op, std::initializer_list<NamedInput> inputs) {
  if (const auto& transforms = at::functorch::functorchTLSAccessor()) {
    bool supported = true;
    try {
      transforms->checkSupportsCppAutogradFunction();
    } catch (const c10::Error&) {
      supported = false;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(
        supported, "isentrope::", op,
        ": called inside torch.func.grad, vjp, jvp, jacrev or jacfwd, whose transforms do not reach "
        "operators written in C++; wanted backward(), torch.autograd.grad or "
        "torch.autograd.functional.vjp (torch.func.vmap of the op itself works)");
  }
  refuse_forward_mode(op, inputs);
  if (!at::GradMode::is_enabled()) return;
  bool recorded = false;
  for (const NamedInput& x : inputs) recorded = recorded || (x.given() && x.tensor->requires_grad());
  if (!recorded) return;
  for (const NamedInput& x : inputs)
    TORCH_CHECK(!x.given() || !x.tensor->is_inference(), "isentrope::", op, ": ", x.name,
                " was made under torch.inference_mode and the backward pass would have to keep it; wanted ", x.name,
                ".clone(), or torch.no_grad where it is made");
}

}  // namespace isentrope::ops
