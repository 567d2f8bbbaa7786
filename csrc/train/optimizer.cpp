#include "csrc/train/optimizer.h"

#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>

#include "csrc/train/sum_of_squares.h"

namespace isentrope::train {
namespace {

using torch::Tensor;

// What one fused update takes: tensors that share a decay.
struct Group {
  std::vector<Tensor> parameters, grads, first, second, steps;

  void adamw(const OptimizerConfig& c, double lr, double weight_decay) {
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(parameters, grads, first, second, /*max_exp_avg_sqs=*/{}, steps, lr, c.betas[0], c.betas[1],
                      weight_decay, c.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
  // torch's own decay would go through the momentum.
  void sgd(const OptimizerConfig& c, double lr, double weight_decay) {
    if (weight_decay > 0) at::_foreach_mul_(parameters, 1 - lr * weight_decay);
    const at::TensorList moments = c.betas[0] > 0 ? at::TensorList(first) : at::TensorList();  // torch takes none for 0
    at::_fused_sgd_(parameters, grads, moments, /*weight_decay=*/0, c.betas[0], lr, /*dampening=*/0, /*nesterov=*/false,
                    /*maximize=*/false, /*is_first_step=*/false);
  }
};

std::string shape_of(const Tensor& tensor) {
  std::ostringstream out;
  out << tensor.sizes();
  return out.str();
}

double global_norm(const std::vector<Tensor>& grads) {
  if (!grads[0].is_cpu()) return torch::stack(at::_foreach_norm(grads)).to(torch::kFloat64).norm().item<double>();
  double squares = 0;
  for (const Tensor& grad : grads) squares += sum_of_squares(grad);
  return std::sqrt(squares);
}

}  // namespace

std::string OptimizerConfig::problem() const {
  if (muon && kind != "muon")
    return "muon: belongs to kind muon, and kind is " + kind + "; leave it out, or write kind: muon";
  const size_t moments = kind == "sgd" ? 1 : 2;
  if (betas.size() != moments)
    return "betas: " + std::to_string(betas.size()) + " values; " +
           (kind == "sgd"
                ? "sgd has one moment: write [0.9], or [0] for none"
                : "adamw, which muon leaves all but the matrices of blocks to, has two moments: write [0.9, 0.999]");
  for (double beta : betas)
    if (beta >= 1.0) return "betas: a decay of 1 never forgets; it must be below 1";
  return "";
}

Optimizer::Optimizer(const OptimizerConfig& config, std::vector<std::pair<std::string, Tensor>> parameters,
                     const std::map<std::string, std::vector<int64_t>>& matrices)
    : config_(config), muon_(config.muon.value_or(MuonConfig())) {
  for (auto& [name, parameter] : parameters) {
    names_.push_back(name);
    parameters_.push_back(parameter);
    first_.push_back(torch::zeros_like(parameter, torch::MemoryFormat::Preserve).detach());
    const auto matrix = matrices.find(name);
    rows_.push_back(config.kind == "muon" && matrix != matrices.end() ? matrix->second : std::vector<int64_t>());
    const bool adamw = config.kind != "sgd" && rows_.back().empty();
    second_.push_back(adamw ? torch::zeros_like(parameter, torch::MemoryFormat::Preserve).detach() : Tensor());
    steps_.push_back(adamw ? torch::zeros({}, parameter.options().dtype(torch::kFloat32).requires_grad(false))
                           : Tensor());
  }
}

void Optimizer::zero_grad() {
  for (Tensor& parameter : parameters_) parameter.mutable_grad() = Tensor();
}

double Optimizer::step(double lr) {
  torch::NoGradGuard no_grad;
  std::vector<Tensor> grads;
  Group groups[2];  // groups[0]: norms, biases and γ, without decay; groups[1]: matrices
  std::vector<size_t> present, orthogonal;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& grad = parameters_[i].grad();
    if (!grad.defined()) continue;
    present.push_back(i);
    grads.push_back(grad);
    if (!rows_[i].empty()) {
      orthogonal.push_back(i);
      continue;
    }
    Group& group = groups[parameters_[i].dim() >= 2];
    group.parameters.push_back(parameters_[i]);
    group.grads.push_back(grad);
    group.first.push_back(first_[i]);
    group.second.push_back(second_[i]);
    group.steps.push_back(steps_[i]);
  }
  if (present.empty()) return 0.0;

  const double norm = global_norm(grads);
  if (!std::isfinite(norm)) {
    for (size_t i = 0; i < present.size(); ++i)
      if (!torch::isfinite(grads[i]).all().item<bool>())
        throw NonFinite("the gradient of " + names_[present[i]] + " " + shape_of(grads[i]) +
                        " is not finite; no weight was changed");
    throw NonFinite("the norm of the gradients overflows though each is finite; no weight was changed");
  }
  if (config_.max_grad_norm > 0 && norm > config_.max_grad_norm) at::_foreach_mul_(grads, config_.max_grad_norm / norm);

  for (int decayed = 0; decayed < 2; ++decayed) {
    Group& group = groups[decayed];
    if (group.parameters.empty()) continue;
    const double decay = decayed ? config_.weight_decay : 0.0;
    config_.kind == "sgd" ? group.sgd(config_, lr, decay) : group.adamw(config_, lr, decay);
    // torch's fused updates do not count themselves as changes in place, by which copies of a weight know that it is another.
    for (const Tensor& parameter : group.parameters) torch::autograd::impl::bump_version(parameter);
  }
  const double matrix_lr = lr * (muon_.lr.value_or(config_.lr) / config_.lr);
  for (const size_t i : orthogonal)
    muon_step(muon_, parameters_[i], parameters_[i].grad(), first_[i], rows_[i], matrix_lr, config_.weight_decay);
  return norm;
}

std::map<std::string, Tensor> Optimizer::state() const {
  std::map<std::string, Tensor> state;
  for (size_t i = 0; i < names_.size(); ++i) {
    state["first." + names_[i]] = first_[i];
    if (!second_[i].defined()) continue;
    state["second." + names_[i]] = second_[i];
    state["step." + names_[i]] = steps_[i];
  }
  return state;
}

void Optimizer::restore(const std::map<std::string, Tensor>& state) {
  torch::NoGradGuard no_grad;
  const auto own = this->state();
  for (const auto& [name, tensor] : own) {
    const auto found = state.find(name);
    if (found == state.end()) throw std::runtime_error("optimiser state lacks '" + name + "'");
    if (found->second.sizes() != tensor.sizes())
      throw std::runtime_error("optimiser state '" + name + "' has shape " + shape_of(found->second) +
                               ", and this model wants " + shape_of(tensor));
  }
  for (const auto& [name, tensor] : state)
    if (!own.count(name))
      throw std::runtime_error("optimiser state holds '" + name + "', which this model does not have");
  for (const auto& [name, tensor] : own) tensor.copy_(state.at(name));
}

}  // namespace isentrope::train
