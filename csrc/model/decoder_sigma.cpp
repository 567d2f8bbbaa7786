// The layers of learned spectral norm of a decoder.
#include <string>
#include <utility>

#include "csrc/model/decoder.h"

namespace isentrope::model {

using torch::Tensor;

std::vector<Projection> DecoderImpl::sigma_projections() const {
  std::vector<Projection> found;
  const auto add = [&](const Projection& p) {
    if (!p.parts.empty()) found.push_back(p);
  };
  for (const LayerWeights& layer : layers_)
    for (const Projection* p : layer.projections()) add(*p);
  add(head_);
  return found;
}

std::vector<SigmaLayer> DecoderImpl::sigma_layers() const {
  std::vector<SigmaLayer> layers;
  for (const Projection& p : sigma_projections())
    for (size_t i = 0; i < p.parts.size(); ++i)
      layers.push_back({p.parts[i].name, weight_of(p, i).detach(), p.gamma.detach()[i], p.u[i]});
  return layers;
}

namespace {

// Power steps of all layers in one call; returns σ of each.
Tensor follow(const std::vector<SigmaLayer>& layers, int64_t steps_max, double tolerance) {
  std::vector<Tensor> weights, us;
  for (const SigmaLayer& layer : layers) weights.push_back(layer.weight), us.push_back(layer.u);
  return ops::power_step(weights, us, steps_max, tolerance).sigmas;
}

}  // namespace

std::vector<double> DecoderImpl::power_step() {
  const torch::NoGradGuard no_grad;
  const auto layers = sigma_layers();
  if (layers.empty()) return {};
  const SigmaConfig& c = config_.sigma_reparam;
  const Tensor sigmas = follow(layers, c.steps_max, c.tolerance).to(torch::kCPU, torch::kFloat64);
  return {sigmas.const_data_ptr<double>(), sigmas.const_data_ptr<double>() + sigmas.numel()};
}

void DecoderImpl::start_sigma(bool gamma_is_sigma) {
  const torch::NoGradGuard no_grad;
  const auto layers = sigma_layers();
  if (layers.empty()) return;
  for (const SigmaLayer& layer : layers) layer.u.div_(layer.u.norm());
  // Not by LAPACK, whose bits depend on the number of threads. Of a random matrix, whose largest singular values lie close
  // together, σ is within 1e-4 of the true one when a step changes it by less than 1e-6, some hundred steps from a random u.
  constexpr int64_t kStartSteps = 1000;
  constexpr double kStartTolerance = 1e-6;
  follow(layers, kStartSteps, kStartTolerance);
  for (const Projection& p : sigma_projections())
    gamma_is_sigma ? Tensor(p.gamma).copy_(spectral_norms(p)) : Tensor(p.gamma).fill_(1);
}

std::map<std::string, Tensor> DecoderImpl::sigma_state() const {
  std::map<std::string, Tensor> state;
  for (const Projection& p : sigma_projections()) {
    const std::string name = "sigma/" + p.name;
    state.insert({{name, p.weight.detach()}, {name + "_gamma", p.gamma.detach()}, {name + "_u", p.u}});
  }
  return state;
}

bool DecoderImpl::restore_sigma(const std::map<std::string, Tensor>& state) {
  const torch::NoGradGuard no_grad;
  const auto own = sigma_state();
  for (const auto& [name, tensor] : own)
    if (const auto found = state.find(name); found == state.end() || found->second.sizes() != tensor.sizes())
      return false;
  for (const auto& [name, tensor] : own) tensor.copy_(state.at(name));
  return true;
}

}  // namespace isentrope::model
