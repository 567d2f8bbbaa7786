#include "csrc/train/trained_weights.h"

#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/linalg_svdvals.h>
#include <fnmatch.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>

#include "csrc/durable_file.h"
#include "csrc/train/json_file.h"
#include "csrc/train/weights.h"

namespace isentrope::train {
namespace {

using torch::Tensor;

constexpr double kInfinite = std::numeric_limits<double>::infinity();

// Hands the gradient of a joined parameter to the leaves of its rows.
class HandOn : public torch::autograd::PostAccumulateGradHook {
 public:
  struct Part {
    Tensor leaf;
    int64_t first, rows;
  };
  explicit HandOn(std::vector<Part> parts) : parts_(std::move(parts)) {}
  void operator()(const torch::autograd::Variable& whole) override {
    const torch::NoGradGuard no_grad;
    const Tensor gradient = whole.grad();
    whole.mutable_grad() = Tensor();
    for (const Part& part : parts_) {
      const Tensor own = gradient.slice(0, part.first, part.first + part.rows);
      Tensor& sum = part.leaf.mutable_grad();
      if (sum.defined())
        sum.add_(own);
      else
        sum = own;
    }
  }

 private:
  std::vector<Part> parts_;
};

bool has_pattern(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

// Names that one of patterns fits.
std::set<std::string> fitting(const char* key, const std::vector<std::string>& patterns,
                              const std::vector<std::string>& names) {
  std::set<std::string> found;
  for (const std::string& given : patterns) {
    const bool qk = given == "qk" && std::string(key) == "model.freeze";
    bool any = false;
    for (const std::string& name : names)
      if (qk ? has_pattern("*.[qk]_proj.*", name) || has_pattern("*.[qk]_norm.*", name) : has_pattern(given, name))
        any = found.insert(name).second || found.contains(name);
    if (!any)
      throw std::invalid_argument(std::string(key) + ": '" + given +
                                  "' fits no weight of the model; they are named as " + names.front() + " and " +
                                  names[names.size() / 2]);
  }
  return found;
}

int64_t block_of(const std::string& name) {
  const std::string head = "model.layers.";
  return name.starts_with(head) ? std::stoll(name.substr(head.size())) : -1;
}

}  // namespace

double condition_number(const Tensor& matrix) {
  constexpr double kEpsilon = std::numeric_limits<double>::epsilon(), kError = 1e-3;
  const torch::NoGradGuard no_grad;
  const Tensor x = matrix.detach().to(torch::kCPU, torch::kFloat64);
  const Tensor tall = x.size(0) >= x.size(1) ? x : x.t();
  const Tensor lambda = at::linalg_eigvalsh(tall.t().mm(tall));
  const auto n = static_cast<double>(tall.size(1));
  const double most = lambda[-1].item<double>(), least = lambda[0].item<double>();
  if (least > 0 && n * kEpsilon * most / least / 2 <= kError) return std::sqrt(most / least);
  const Tensor sigma = at::linalg_svdvals(x);
  const double largest = sigma[0].item<double>(), smallest = sigma[-1].item<double>();
  const bool zero = smallest <= static_cast<double>(tall.size(0)) * kEpsilon * largest;
  return zero ? kInfinite : largest / smallest;
}

std::map<std::string, double> condition_numbers(const model::Decoder& decoder, const std::string& file, bool go_on) {
  using nlohmann::json;
  const int64_t digest = go_on ? 0 : weights_digest(decoder->named_weights());
  std::map<std::string, double> found;
  if (go_on && !exists(file))
    throw std::runtime_error(file +
                             ": is not there, and the run that is resumed trains the weights that it names; put it "
                             "back, or begin a new run (run.start)");
  if (exists(file)) {
    const json kept = read_json(file);
    if (go_on || json_field<int64_t>(file, kept, "digest") == digest) {
      const json numbers = json_field<json>(file, kept, "condition_numbers");
      for (const auto& [name, value] : numbers.items())
        found[name] = value.is_null() ? kInfinite : json_field<double>(file, numbers, name.c_str());
      return found;
    }
  }
  json numbers = json::object();
  for (const auto& [name, weight] : decoder->named_weights()) {
    if (weight.dim() < 2 || weight.numel() == 0) continue;
    const double kappa = condition_number(weight.flatten(1));
    found[name] = kappa;
    numbers[name] = std::isfinite(kappa) ? json(kappa) : json(nullptr);
  }
  write_durably(file, json{{"digest", digest}, {"condition_numbers", numbers}}.dump(1));
  return found;
}

std::set<std::string> chosen_weights(const model::DecoderConfig& config, const std::vector<std::string>& names,
                                     const std::map<std::string, double>& condition_numbers) {
  std::set<std::string> chosen(names.begin(), names.end());
  if (const auto& only = config.train_only) {
    if (!only->names.empty()) chosen = fitting("model.train_only.names", only->names, names);
    if (!only->blocks.empty())
      std::erase_if(chosen, [&](const std::string& name) {
        return block_of(name) < only->blocks[0] || block_of(name) > only->blocks[1];
      });
  }
  for (const std::string& name : fitting("model.freeze", config.freeze, names)) chosen.erase(name);
  if (config.train_only && config.train_only->condition_number > 0) {
    std::vector<std::pair<double, std::string>> order;
    std::string zero;
    for (const auto& [name, kappa] : condition_numbers) {
      if (!chosen.contains(name)) continue;
      if (std::isfinite(kappa))
        order.emplace_back(kappa, name);
      else
        zero += (zero.empty() ? "" : ", ") + name;
    }
    const auto wanted = static_cast<size_t>(config.train_only->condition_number);
    if (order.size() < wanted)
      throw std::invalid_argument("model.train_only.condition_number: " + std::to_string(wanted) + ", and there are " +
                                  std::to_string(order.size()) + " matrices to choose from" +
                                  (zero.empty() ? "" : " beside those with a singular value of 0 (" + zero + ")") +
                                  "; write at most that");
    std::sort(order.begin(), order.end());
    chosen.clear();
    for (size_t i = 0; i < wanted; ++i) chosen.insert(order[i].second);
  }
  if (chosen.empty())
    throw std::invalid_argument("model.train_only, model.freeze: no weight is left to be trained; choose others");
  return chosen;
}

TrainedWeights::TrainedWeights(model::Decoder decoder, const std::set<std::string>& chosen)
    : decoder_(std::move(decoder)) {
  const torch::NoGradGuard no_grad;
  // Views of parameters under names, and whether they are chosen.
  struct Place {
    std::string name;
    Tensor view;
    bool chosen;
  };
  std::vector<Place> places;
  if (decoder_->config().lora) {
    for (const auto& [name, view] : decoder_->adapter()) {
      const std::string of = name.substr(0, name.rfind(".lora_")) + ".weight";
      places.push_back({name, view, chosen.contains(of)});
    }
  } else {
    for (const auto& [name, view] : decoder_->named_weights()) places.push_back({name, view, chosen.contains(name)});
  }
  for (auto& item : decoder_->named_parameters()) {
    Tensor& parameter = item.value();
    if (!parameter.requires_grad()) continue;
    const auto* begin = static_cast<const char*>(parameter.const_data_ptr());
    const int64_t row = parameter.numel() / parameter.size(0) * parameter.element_size();
    std::vector<HandOn::Part> parts;
    std::vector<std::string> part_names;
    bool whole = true;
    for (const Place& place : places) {
      const auto* at = static_cast<const char*>(place.view.const_data_ptr());
      if (!place.view.storage().is_alias_of(parameter.storage()) || at < begin || at >= begin + parameter.nbytes())
        continue;
      if (!place.chosen) {
        whole = false;
        continue;
      }
      const int64_t first = (at - begin) / row, rows = static_cast<int64_t>(place.view.nbytes()) / row;
      parts.push_back({parameter.detach().slice(0, first, first + rows).requires_grad_(true), first, rows});
      part_names.push_back(place.name);
    }
    if (parts.empty()) {
      parameter.requires_grad_(false);
      continue;
    }
    if (whole) {
      parameters_.emplace_back(item.key(), parameter);
      continue;
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      parameters_.emplace_back(part_names[i], parts[i].leaf);
      parameter_of_[part_names[i]] = item.key();
    }
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<HandOn>(std::move(parts)));
    hooked_.push_back(parameter);
  }
  if (parameters_.empty())
    throw std::invalid_argument(
        "model.train_only, model.freeze: none of the weights that are left has an adapter of model.lora; name others "
        "in model.lora.targets");
}

TrainedWeights::~TrainedWeights() {
  for (const Tensor& parameter : hooked_) torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
}

std::map<std::string, std::vector<int64_t>> TrainedWeights::matrices(
    std::map<std::string, std::vector<int64_t>> whole) const {
  for (const auto& [name, leaf] : parameters_)
    if (const auto of = parameter_of_.find(name); of != parameter_of_.end() && whole.contains(of->second))
      whole[name] = {leaf.size(0)};
  return whole;
}

int64_t TrainedWeights::numbers() const {
  int64_t sum = 0;
  for (const auto& [name, parameter] : parameters_) sum += parameter.numel();
  return sum;
}

}  // namespace isentrope::train
