// The low-rank adapter of a decoder.
#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "csrc/data/random.h"
#include "csrc/model/decoder.h"

namespace isentrope::model {

using torch::Tensor;

namespace {

// layers.0.q → model.layers.0.self_attn.q_proj
std::string module_name(const std::string& part) {
  const std::string layer = part.substr(part.rfind('.') + 1);
  const bool mlp = layer == "gate" || layer == "up" || layer == "down";
  return "model." + part.substr(0, part.rfind('.') + 1) + (mlp ? "mlp." : "self_attn.") + layer + "_proj";
}

}  // namespace

void DecoderImpl::add_lora_term(Projection& p, torch::nn::Module& owner, const std::string& name,
                                const std::vector<SigmaPart>& runs) const {
  if (!config_.lora) return;
  int64_t rows = 0;
  for (const SigmaPart& run : runs)
    if (config_.lora->takes(run.name)) {
      p.lora.push_back({p.name.substr(0, p.name.rfind('.') + 1) + run.name, run.first, run.rows});
      rows += run.rows;
    }
  if (p.lora.empty()) return;
  const int64_t R = config_.lora->rank, parts = static_cast<int64_t>(p.lora.size());
  p.lora_a = owner.register_parameter(name + "_lora_a", torch::zeros({parts * R, p.weight.size(1)}));
  p.lora_b = owner.register_parameter(name + "_lora_b", torch::zeros({rows, R}));
  p.lora_scale = config_.lora->scale();
}

void DecoderImpl::start_lora(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  uint64_t index = 0;
  for (const LayerWeights& layer : layers_)
    for (const Projection* p : layer.projections()) {
      const uint64_t number = index++;  // no draw depends on which other layers have a term
      if (p->lora.empty()) continue;
      data::Stream stream(seed, data::Purpose::initialisation, number);
      const Tensor drawn = torch::empty(p->lora_a.sizes(), torch::kFloat32);
      // PEFT's kaiming_uniform_(a=√5): √(6 / ((1 + 5) K)).
      const double bound = 1 / std::sqrt(static_cast<double>(drawn.size(1)));
      auto* to = drawn.data_ptr<float>();
      for (int64_t i = 0; i < drawn.numel(); ++i) to[i] = static_cast<float>(bound * (2 * stream.uniform() - 1));
      Tensor(p->lora_a).copy_(drawn);
      Tensor(p->lora_b).zero_();
    }
}

std::vector<std::pair<std::string, Tensor>> DecoderImpl::adapter() const {
  std::vector<std::pair<std::string, Tensor>> weights;
  for (const LayerWeights& layer : layers_)
    for (const Projection* p : layer.projections()) {
      int64_t part = 0, row = 0;
      for (const auto& [name, first, rows] : p->lora) {
        const int64_t R = p->lora_b.size(1);
        const std::string module = module_name(name);
        weights.emplace_back(module + ".lora_A.weight", p->lora_a.slice(0, part * R, (part + 1) * R));
        weights.emplace_back(module + ".lora_B.weight", p->lora_b.slice(0, row, row + rows));
        ++part;
        row += rows;
      }
    }
  return weights;
}

std::shared_ptr<DecoderImpl> DecoderImpl::with_kept_adapter() const {
  const torch::NoGradGuard no_grad;
  const auto copy = std::make_shared<DecoderImpl>(*this);
  for (LayerWeights& layer : copy->layers_) {
    layer.mixer = layer.mixer->clone();
    for (Projection* p : layer.projections())
      for (Tensor* x : {&p->lora_a, &p->lora_b})
        if (x->defined()) *x = x->detach().clone();
  }
  return copy;
}

}  // namespace isentrope::model
