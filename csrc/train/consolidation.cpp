#include "csrc/train/consolidation.h"

#include <algorithm>
#include <cmath>

namespace isentrope::train {

using torch::Tensor;

Consolidation::Consolidation(const ConsolidationConfig& config,
                             const std::vector<std::pair<std::string, Tensor>>& parameters, const Gradients& gradients)
    : config_(config) {
  const torch::NoGradGuard no_grad;
  for (const auto& [name, parameter] : parameters) {
    const size_t i = names_.size();
    names_.push_back(name);
    Own& own = own_.emplace_back();
    own.weight = parameter.detach();
    if (!gradients.owns(i)) continue;
    own.anchor = own.weight.clone(), own.slow = own.weight.clone();
    own.importance = torch::zeros_like(own.weight), own.squares = torch::zeros_like(own.weight);
  }
}

bool Consolidation::pulls() const {
  return config_.strength > 0 && std::any_of(own_.begin(), own_.end(), [](const Own& own) { return own.pulled; });
}

Consolidation::Pull Consolidation::pull() const {
  const torch::NoGradGuard no_grad;
  Pull found;
  for (const Own& own : own_) {
    if (!own.pulled || own.weight.numel() == 0) continue;
    const Tensor away = own.weight - own.anchor, pull = away * own.importance;
    found.largest = std::max(found.largest, config_.strength * pull.abs().max().item<double>());
    found.penalty += config_.strength / 2 * pull.mul_(away).sum(torch::kFloat64).item<double>();
  }
  return found;
}

void Consolidation::apply(size_t i, Tensor gradient, double scale, bool pulls) {
  const torch::NoGradGuard no_grad;
  Own& own = own_[i];
  own.squares.addcmul_(gradient, gradient, scale * scale);
  if (!pulls) return;
  gradient.mul_(scale);
  if (own.pulled) gradient.addcmul_(own.weight - own.anchor, own.importance, config_.strength);
}

Consolidation::State Consolidation::state() const {
  State state;
  for (size_t i = 0; i < names_.size(); ++i) {
    const Own& own = own_[i];
    if (!own.here()) continue;
    state["anchor." + names_[i]] = own.anchor;
    state["importance." + names_[i]] = own.importance;
    state["slow." + names_[i]] = own.slow;
    state["squares." + names_[i]] = own.squares;
  }
  return state;
}

void Consolidation::restored() {
  for (Own& own : own_) own.pulled = own.here() && own.importance.any().item<bool>();
}

Consolidation::State Consolidation::left(const Ranks& ranks) const {
  State whole = state();
  if (ranks.alone()) return whole;
  for (const std::string& part : parts())
    for (size_t i = 0; i < names_.size(); ++i) {
      Tensor& one = whole[part + names_[i]];  // of its owner, and 0 of the others
      one = one.defined() ? one.clone() : torch::zeros_like(own_[i].weight);
      ranks.sum(one);
    }
  return whole;
}

void Consolidation::begin_task(const State& left, const Ranks& ranks) {
  const torch::NoGradGuard no_grad;
  Tensor most = torch::zeros({1}, torch::kFloat64);
  for (size_t i = 0; i < names_.size(); ++i) {
    Own& own = own_[i];
    const auto had = left.find("squares." + names_[i]);
    if (!own.here() || had == left.end()) continue;
    own.importance.copy_(left.at("importance." + names_[i]));
    own.slow.copy_(left.at("slow." + names_[i]));
    own.squares.copy_(had->second);
    if (own.squares.numel() > 0) most[0] = std::max(most.item<double>(), own.squares.max().item<double>());
  }
  ranks.max(most);
  const double largest = most.item<double>();
  for (Own& own : own_) {
    if (!own.here()) continue;
    const Tensor rate = config_.slow_rate / (1 + config_.rigidity * own.importance);
    own.slow.add_(rate.mul_(own.weight - own.slow));
    if (largest > 0) own.importance.add_(own.squares.div_(largest));
    own.squares.zero_();
    own.anchor.copy_(own.weight);
    if (config_.restart == "slow") own.weight.copy_(own.slow);
  }
  restored();
}

}  // namespace isentrope::train
