// How an op is differentiated: the node of its backward op, in a graph of torch.autograd and in those of torch.func (grad, vjp,
// jacrev, alone or inside vmap); and what it cannot be differentiated by, said by name.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

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
        " has a forward-mode tangent (torch.func.jvp, jacfwd, hessian, forward_ad), for which this op has no "
        "derivative; wanted backward(), torch.func.grad, vjp or jacrev");
}

// Called at the beginning of an op's Autograd entry.
inline void check_differentiation(const char* op, std::initializer_list<NamedInput> inputs) {
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

// The outputs of F::forward, which calls the op below autograd, with F::backward as their node. Function<F>::apply refuses
// torch.func, because it turns gradients off around forward: a transform outside of this one would then see constants.
template <class F, class... Arguments>
torch::autograd::variable_list record(Arguments&&... arguments) {
  using namespace torch::autograd;
  const auto node = c10::make_intrusive<CppNode<F>>();
  variable_list inputs;
  inputs.reserve(sizeof...(Arguments));
  extract_vars(node->is_variable_input_, inputs, arguments...);
  const bool recorded = GradMode::is_enabled() && any_variable_requires_grad(inputs);
  node->set_ctx_grad_fn(node);
  if (recorded) node->set_next_edges(collect_next_edges(inputs));
  for (const at::Tensor& x : inputs) node->input_info_.emplace_back(x);
  variable_list outputs;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    outputs = F::forward(&node->ctx_, std::forward<Arguments>(arguments)...);
  }
  const auto tangent = [](const variable_list&, const variable_list&) -> variable_list {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "isentrope: a forward-mode tangent that check_differentiation let through");
  };
  c10::intrusive_ptr<Node> attached;
  const auto wrapped = _wrap_outputs(
      inputs, node->ctx_.get_non_differentiable(), node->ctx_.get_and_bump_dirty(),
      c10::fmap<std::optional<at::Tensor>>(outputs), recorded ? c10::intrusive_ptr<Node>(node) : nullptr, tangent,
      /*to_save_if_setup_context=*/{}, [](const at::Tensor& x) { return x.view_as(x); }, /*pure_view=*/false, attached);
  for (size_t i = 0; i < wrapped.size(); ++i) {
    outputs[i] = *wrapped[i];
    if (recorded) node->output_info_.emplace_back(outputs[i]);
  }
  if (recorded) node->save_variables_to_ctx();
  if (attached) fire_node_creation_hooks(attached);
  return outputs;
}

// The Autograd entry of a backward op: what it gives can be used, and is refused by name where it is differentiated again.
torch::CppFunction second_derivatives_refused();

}  // namespace isentrope::ops
