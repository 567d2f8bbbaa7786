// The weights that a run begins with, and which of them it trains.
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "csrc/train/adapter.h"
#include "csrc/train/bfloat16_ties.h"
#include "csrc/train/composition.h"
#include "csrc/train/finite.h"
#include "csrc/train/phase.h"
#include "csrc/train/run_checkpoints.h"
#include "csrc/train/trained_weights.h"

namespace isentrope::train {

void Trainer::take_weights(const Standing& standing) {
  load_weights(standing.weights, model_);
  if (config_.model.lora) take_adapter(standing);
  if (!model_->restore_sigma(standing.state.extra)) model_->start_sigma(/*gamma_is_sigma=*/true);
  if (const std::string bad = first_non_finite_weight(model_); !bad.empty())
    throw std::runtime_error(standing.from + ": the weight " + bad + " is not finite; take another checkpoint");
}

void Trainer::take_adapter(const Standing& standing) {
  for (const auto& [name, weight] : model_->named_weights())
    if (!all_finite(weight))
      throw std::runtime_error(standing.weights + ": the weight " + name + " is not finite; take another model");
  base_ = std::filesystem::canonical(standing.weights).string();
  base_digest_ = digest_of_base(model_);
  const auto require_base = [&](const std::string& dir, const CheckpointState& state) {
    const auto digest = state.extra.find(kBase);
    if (digest != state.extra.end() && digest->second.item<int64_t>() != base_digest_)
      throw std::runtime_error(dir + ": its adapter was trained beside " + name_of_base(dir) +
                               " as it was then, and the weights in " + base_ +
                               " are others; name that model in "
                               "model.pretrained");
  };
  if (standing.weights != standing.from) {
    require_base(standing.from, standing.state);
    load_adapter(standing.from, model_);
  } else if (const std::string& from = config_.model.lora->from; !from.empty()) {
    const std::string dir = resolve_checkpoint(from);
    std::error_code error;
    if (std::filesystem::exists(dir + "/DONE", error)) require_base(dir, load_checkpoint_state(dir));
    load_adapter(dir, model_);
    std::string note = "the adapter of " + dir + " goes on";
    if (const std::string name = name_of_base(dir); !std::filesystem::equivalent(name, base_, error) || error)
      note += "; it was trained beside " + name + ", and is put beside " + base_;
    notes_.push_back(note);
  } else {
    model_->start_lora(derived_seed(config_.run.seed, data::Purpose::initialisation, 1));
  }
}

void Trainer::choose_trained(const Standing& standing, bool resumed) {
  const model::DecoderConfig& config = config_.model;
  if (config.compose) {
    composition_ =
        std::make_unique<Composition>(*config.compose, resolve_checkpoint(config.pretrained), origin_, model_);
    if (resumed) {
      const torch::NoGradGuard no_grad;
      const torch::Tensor c = composition_->coefficients();
      c.copy_(kept(standing.state, kCoefficients, c));
    }
    composition_->apply();
  }
  if (config.freeze.empty() && !config.train_only) return;
  std::vector<std::string> names;
  for (const auto& [name, weight] : model_->named_weights()) names.push_back(name);
  std::map<std::string, double> kappa;
  if (const auto& only = config.train_only; only && only->condition_number > 0) {
    const std::string file = only->cache.empty() ? folder_.dir() + "/condition_numbers.json" : only->cache;
    if (ranks_->first()) kappa = condition_numbers(model_, file, resumed);
    ranks_->barrier();
    if (!ranks_->first()) kappa = condition_numbers(model_, file, resumed);
    for (const auto& [name, value] : kappa)
      if (!std::isfinite(value)) notes_.push_back(name + " has a singular value of 0 and is not trained");
  }
  const std::set<std::string> chosen = chosen_weights(config, names, kappa);
  trained_ = std::make_unique<TrainedWeights>(model_, chosen);
  int64_t all = 0;
  for (const torch::Tensor& weight : model_->parameters()) all += weight.numel();
  char share[16];
  std::snprintf(share, sizeof(share), "%.3g",
                100.0 * static_cast<double>(trained_->numbers()) / static_cast<double>(all));
  notes_.push_back(std::to_string(chosen.size()) + " of " + std::to_string(names.size()) + " tensors are trained, " +
                   share + " % of the weights");
}

// What the optimiser moves of the model, under the names that its state has.
std::vector<std::pair<std::string, torch::Tensor>> Trainer::trained_parameters() const {
  if (composition_) return {{kCoefficients, composition_->coefficients()}};
  if (trained_) return trained_->parameters();
  std::vector<std::pair<std::string, torch::Tensor>> parameters;
  for (const auto& parameter : model_->named_parameters())
    if (parameter.value().requires_grad()) parameters.emplace_back(parameter.key(), parameter.value());
  return parameters;
}

// Of the matrices that are trained, since products round these.
void Trainer::warn_of_ties() {
  if (config_.model.compute != "bfloat16" || composition_) return;
  int64_t ties = 0, numbers = 0;
  for (const auto& [name, weight] : trained_parameters())
    if (weight.dim() > 1) {
      ties += bfloat16_ties(weight);
      numbers += weight.numel();
    }
  if (static_cast<double>(ties) <= kManyTies * static_cast<double>(numbers)) return;
  char share[16];
  std::snprintf(share, sizeof(share), "%.2g", 100.0 * static_cast<double>(ties) / static_cast<double>(numbers));
  warnings_.push_back("model.pretrained: " + std::string(share) +
                      " % of the weights lie halfway between two values of bfloat16, as weights of a float16 or "
                      "quantised file do; with "
                      "model.compute: bfloat16 half of these go over to the other value in the first update, however "
                      "small learning_rate is; "
                      "a folder saved in bfloat16 (isentrope import-gguf --dtype bfloat16, or model.bfloat16() in "
                      "transformers) has none");
}

std::vector<double> Trainer::power_step() {
  std::vector<double> sigmas = model_->power_step();
  for (size_t i = 0; i < sigmas.size(); ++i)
    if (!std::isfinite(sigmas[i]))
      throw NonFinite("the spectral norm of " + model_->sigma_layers()[i].name + " is not finite after the update");
  return sigmas;
}

}  // namespace isentrope::train
