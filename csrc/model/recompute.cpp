#include "csrc/model/recompute.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

namespace isentrope::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Block = std::function<Tensors(const Tensors&)>;

// What the node keeps beside tensors.
struct HeldBlock : torch::CustomClassHolder {
  HeldBlock(Block given, Tensors leaves) : block(std::move(given)), parameters(std::move(leaves)) {}
  Block block;
  Tensors parameters;
  std::vector<size_t> outputs;  // the places of those that the node gave, which are defined
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  // given: the inputs, then the parameters. held is filled in.
  static variable_list forward(AutogradContext* ctx, at::TensorList given, const c10::intrusive_ptr<HeldBlock>& held,
                               int64_t inputs) {
    ctx->save_for_backward({given.begin(), given.begin() + inputs});
    ctx->set_materialize_grads(false);
    ctx->saved_data["held"] = c10::IValue::make_capsule(held);
    const Tensors all = held->block({given.begin(), given.begin() + inputs});
    variable_list outputs;
    for (size_t i = 0; i < all.size(); ++i)
      if (all[i].defined()) {
        outputs.push_back(all[i]);
        held->outputs.push_back(i);
      }
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto capsule = ctx->saved_data["held"].toCapsule();
    const HeldBlock& held = static_cast<const HeldBlock&>(*capsule);
    const at::AutoGradMode with_graph(true);
    Tensors inputs, leaves;
    for (const Tensor& input : ctx->get_saved_variables()) {
      inputs.push_back(input.defined() ? input.detach() : input);
      if (input.defined() && at::isFloatingType(input.scalar_type())) {
        inputs.back().requires_grad_();
        leaves.push_back(inputs.back());
      }
    }
    const size_t of_inputs = leaves.size();
    for (const Tensor& parameter : held.parameters)
      if (parameter.requires_grad()) leaves.push_back(parameter);
    const Tensors outputs = held.block(inputs);
    variable_list ends, end_grads;
    for (size_t i = 0; i < grads.size(); ++i)
      if (grads[i].defined() && outputs[held.outputs[i]].requires_grad()) {
        ends.push_back(outputs[held.outputs[i]]);
        end_grads.push_back(grads[i]);
      }
    if (ends.empty()) return variable_list(inputs.size() + held.parameters.size() + 2);
    const variable_list found = torch::autograd::grad(ends, leaves, end_grads, /*retain_graph=*/false,
                                                      /*create_graph=*/false, /*allow_unused=*/true);
    variable_list result;
    size_t input = 0, parameter = of_inputs;
    for (const Tensor& one : inputs) result.push_back(one.requires_grad() ? found[input++] : Tensor());
    for (const Tensor& one : held.parameters) result.push_back(one.requires_grad() ? found[parameter++] : Tensor());
    result.resize(result.size() + 2);  // held, inputs
    return result;
  }
};

}  // namespace

Tensors recomputed(const Block& block, const Tensors& inputs, const Tensors& parameters) {
  if (!at::GradMode::is_enabled()) return block(inputs);
  Tensors given;  // the node takes no undefined tensor
  std::vector<bool> there;
  for (const Tensor& input : inputs) {
    there.push_back(input.defined());
    if (input.defined()) given.push_back(input);
  }
  // of all inputs, from those that are defined
  const auto whole = [block, there](const Tensors& some) {
    Tensors all;
    size_t next = 0;
    for (const bool one : there) all.push_back(one ? some[next++] : Tensor());
    return block(all);
  };
  const auto count = static_cast<int64_t>(given.size());
  const auto held = c10::make_intrusive<HeldBlock>(whole, parameters);
  given.insert(given.end(), parameters.begin(), parameters.end());
  const variable_list some = Recomputed::apply(at::TensorList(given), held, count);
  Tensors all;
  for (size_t i = 0; i < some.size(); ++i) {
    all.resize(held->outputs[i] + 1);
    all.back() = some[i];
  }
  return all;
}

}  // namespace isentrope::model
