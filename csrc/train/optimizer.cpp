#include "csrc/train/optimizer.h"

#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "csrc/data/token_shard.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/cpu_parallel.h"
#include "csrc/train/added_noise.h"
#include "csrc/train/finite.h"
#include "csrc/train/sum_of_squares.h"

namespace isentrope::train {

namespace DEFAULT {
void adamw(const AdamwRun& run);
}
namespace AVX2 {
void adamw(const AdamwRun& run);
}
namespace AVX512 {
void adamw(const AdamwRun& run);
}
namespace DEFAULT {
void add_noise(const NoiseRun& run);
}
namespace AVX2 {
void add_noise(const NoiseRun& run);
}
namespace AVX512 {
void add_noise(const NoiseRun& run);
}

void add_noise(const NoiseRun& run) {
  static auto* const widest = ISENTROPE_PICK(add_noise);
  widest(run);
}

void adamw(const AdamwRun& run) {
  static auto* const widest = ISENTROPE_PICK(adamw);
  widest(run);
}

namespace {

using torch::Tensor;

// What one update of torch's takes: tensors that share a decay.
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

std::string shape_of(at::IntArrayRef sizes) {
  std::ostringstream out;
  out << sizes;
  return out.str();
}

std::string shape_of(const Tensor& tensor) { return shape_of(tensor.sizes()); }

double global_norm(const std::vector<Tensor>& grads, const Ranks& ranks) {
  if (ranks.alone() && !grads[0].is_cpu())
    return torch::stack(at::_foreach_norm(grads)).to(torch::kFloat64).norm().item<double>();
  double squares = 0;
  for (const Tensor& grad : grads) squares += sum_of_squares(grad);
  return std::sqrt(ranks.sum(squares));
}

std::vector<Tensor> tensors_of(const std::vector<std::pair<std::string, Tensor>>& named) {
  std::vector<Tensor> tensors;
  for (const auto& [name, tensor] : named) tensors.push_back(tensor);
  return tensors;
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
  if (consolidation && kind == "muon")
    return "consolidation: holds weights by a term of the gradient, of whose size muon keeps nothing; write kind: "
           "adamw or "
           "sgd";
  for (double beta : betas)
    if (beta >= 1.0) return "betas: a decay of 1 never forgets; it must be below 1";
  return "";
}

Optimizer::Optimizer(const OptimizerConfig& config, std::vector<std::pair<std::string, Tensor>> parameters,
                     const std::map<std::string, std::vector<int64_t>>& matrices, std::shared_ptr<const Ranks> ranks)
    : config_(config), muon_(config.muon.value_or(MuonConfig())), gradients_(std::move(ranks), tensors_of(parameters)) {
  if (config.consolidation) consolidation_.emplace(*config.consolidation, parameters, gradients_);
  for (auto& [name, parameter] : parameters) {
    const bool owned = gradients_.owns(names_.size());
    names_.push_back(name);
    parameters_.push_back(parameter);
    first_.push_back(owned ? torch::zeros_like(parameter, torch::MemoryFormat::Preserve).detach() : Tensor());
    const auto matrix = matrices.find(name);
    rows_.push_back(config.kind == "muon" && matrix != matrices.end() ? matrix->second : std::vector<int64_t>());
    adamw_.push_back(config.kind != "sgd" && rows_.back().empty());
    const bool adamw = owned && adamw_.back();
    second_.push_back(adamw ? torch::zeros_like(parameter, torch::MemoryFormat::Preserve).detach() : Tensor());
    steps_.push_back(adamw ? torch::zeros({}, parameter.options().dtype(torch::kFloat32).requires_grad(false))
                           : Tensor());
  }
}

void Optimizer::zero_grad() { gradients_.drop(); }

double Optimizer::ask(double lr, bool bounded, const NoiseDraw& noise) {
  torch::NoGradGuard no_grad;
  asked_ = {};
  asked_.lr = lr;
  asked_.bound = bound_;
  gradients_.collect();
  std::vector<Tensor> grads;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& grad = parameters_[i].grad();
    if (!grad.defined()) continue;
    if (!grad.is_contiguous()) parameters_[i].mutable_grad() = grad.contiguous();
    asked_.present.push_back(i);
    grads.push_back(parameters_[i].grad());
  }
  const std::vector<size_t>& present = asked_.present;
  const Ranks& ranks = gradients_.ranks();
  if (present.empty() && ranks.alone()) return 0.0;

  const double norm = global_norm(grads, ranks);
  if (!std::isfinite(norm)) {
    std::string bad;
    for (size_t i = 0; i < present.size() && bad.empty(); ++i)
      if (!all_finite(grads[i])) bad = names_[present[i]] + " " + shape_of(grads[i]);
    for (const std::string& of_rank : ranks.gather(bad))
      if (!of_rank.empty()) throw NonFinite("the gradient of " + of_rank + " is not finite; no weight was changed");
    throw NonFinite("the norm of the gradients overflows though each is finite; no weight was changed");
  }
  const bool clips = config_.max_grad_norm > 0 && norm > config_.max_grad_norm;
  if (clips) asked_.gradient_scale = config_.max_grad_norm / norm;

  double largest = clips ? config_.max_grad_norm : norm;
  if (config_.noise) largest += add_noise(noise, largest);
  if (consolidation_) {
    asked_.held_scale = asked_.gradient_scale;
    if (consolidation_->pulls()) {
      const Consolidation::Pull pull = consolidation_->pull();
      largest += pull.largest, asked_.held = pull.penalty;
      asked_.gradient_scale = 1;  // apply() scales, before it adds the pull
    }
  }
  asked_.bound = bound_.after(config_, lr, largest);
  if (bounded && !asked_.bound.finite()) {
    bound_.weights = largest_weight();
    asked_.bound = bound_.after(config_, lr, largest);
    if (!asked_.bound.finite()) {
      std::ostringstream said;
      said << "an update with learning rate " << lr << ", gradients up to " << largest << " and weights up to "
           << bound_.weights << " could leave weights that are not finite; no weight was changed. Take a smaller "
           << "optimizer.lr, or a larger optimizer.eps";
      throw NonFinite(said.str());
    }
  }
  prepare_runs();
  return norm;
}

// Gradients become clipped ones with noise. norm: of the clipped. Returns the most that an element gets.
double Optimizer::add_noise(const NoiseDraw& draw, double norm) {
  constexpr int64_t kRun = 1 << 15;
  const double deviation =
      std::sqrt(config_.noise->eta / std::pow(1 + static_cast<double>(draw.step), config_.noise->gamma));
  const double scale = std::exchange(asked_.gradient_scale, 1);
  double elements = 0;
  std::vector<NoiseRun> runs;
  std::vector<std::pair<Tensor, Tensor>> elsewhere;  // a gradient that is not float on the CPU, and its noise
  for (const size_t i : asked_.present) {
    Tensor grad = parameters_[i].grad();
    elements += static_cast<double>(grad.numel());
    if (!grad.is_cpu() || grad.scalar_type() != torch::kFloat32) {
      elsewhere.emplace_back(grad, torch::zeros(grad.sizes(), torch::kFloat32));
      grad = elsewhere.back().second;
    }
    data::Hash name;
    name.add(names_[i]);
    for (int64_t at = 0; at < grad.numel(); at += kRun)
      runs.push_back({.key = draw.seed,
                      .counter_high = name.value,
                      .scale = static_cast<float>(scale),
                      .deviation = static_cast<float>(deviation),
                      .first = at,
                      .count = std::min(kRun, grad.numel() - at),
                      .gradient = grad.data_ptr<float>() + at});
  }
  ops::for_tasks(static_cast<int64_t>(runs.size()), [&](int64_t i) { train::add_noise(runs[i]); });
  for (auto& [grad, noise] : elsewhere) grad.mul_(scale).add_(noise.to(grad.options()));
  asked_.noise_ratio = deviation * std::sqrt(gradients_.ranks().sum(elements)) / norm;
  return kMostDeviations * deviation;
}

// Runs of AdamW for all that is float and on the CPU.
void Optimizer::prepare_runs() {
  constexpr int64_t kRun = 1 << 15;  // numbers of a task: half a megabyte of four tensors, 0.05 ms
  for (const size_t i : asked_.present) {
    if (!runs_alone(i)) continue;
    const double t = steps_[i].item<double>() + 1, b1 = config_.betas[0], b2 = config_.betas[1];
    const AdamwRule rule{
        .gradient_scale = static_cast<float>(asked_.gradient_scale),
        .decay = static_cast<float>(parameters_[i].dim() >= 2 ? 1 - asked_.lr * config_.weight_decay : 1.0),
        .rate1 = static_cast<float>(1 - b1),
        .beta2 = static_cast<float>(b2),
        .rate2 = static_cast<float>(1 - b2),
        .step_size = static_cast<float>(asked_.lr / (1 - std::pow(b1, t))),
        .root_correction = static_cast<float>(std::sqrt(1 - std::pow(b2, t))),
        .eps = static_cast<float>(config_.eps)};
    for (int64_t at = 0; at < parameters_[i].numel(); at += kRun)
      asked_.runs.push_back({.rule = rule,
                             .count = std::min(kRun, parameters_[i].numel() - at),
                             .gradient = parameters_[i].grad().const_data_ptr<float>() + at,
                             .weight = parameters_[i].data_ptr<float>() + at,
                             .first = first_[i].data_ptr<float>() + at,
                             .second = second_[i].data_ptr<float>() + at});
  }
}

bool Optimizer::runs_alone(size_t i) const {
  return adamw_[i] && parameters_[i].is_cpu() && parameters_[i].scalar_type() == torch::kFloat32 &&
         parameters_[i].is_contiguous();
}

double Optimizer::largest_weight() const {
  double largest = 0;
  for (const Tensor& parameter : parameters_) {
    if (parameter.numel() == 0) continue;
    const auto [least, most] = at::aminmax(parameter.detach());
    const double a = -least.item<double>(), b = most.item<double>();
    if (!std::isfinite(a) || !std::isfinite(b)) return std::numeric_limits<double>::infinity();
    largest = std::max({largest, a, b});
  }
  return largest;
}

void Optimizer::apply() {
  torch::NoGradGuard no_grad;
  if (consolidation_)
    for (const size_t i : asked_.present)
      consolidation_->apply(i, parameters_[i].grad(), asked_.held_scale, asked_.held.has_value());
  Group groups[2];  // of torch's updates. groups[0]: norms, biases and γ, without decay; groups[1]: matrices
  std::vector<Tensor> unscaled;
  for (const size_t i : asked_.present) {
    if (runs_alone(i)) {
      *steps_[i].data_ptr<float>() += 1;
      continue;
    }
    unscaled.push_back(parameters_[i].grad());
    if (!rows_[i].empty()) continue;
    Group& group = groups[parameters_[i].dim() >= 2];
    group.parameters.push_back(parameters_[i]);
    group.grads.push_back(parameters_[i].grad());
    group.first.push_back(first_[i]);
    group.second.push_back(second_[i]);
    group.steps.push_back(steps_[i]);
  }
  if (asked_.gradient_scale != 1 && !unscaled.empty()) at::_foreach_mul_(unscaled, asked_.gradient_scale);

  ops::for_tasks(static_cast<int64_t>(asked_.runs.size()), [&](int64_t i) { adamw(asked_.runs[i]); });
  for (int decayed = 0; decayed < 2; ++decayed) {
    Group& group = groups[decayed];
    if (group.parameters.empty()) continue;
    const double decay = decayed ? config_.weight_decay : 0.0;
    config_.kind == "sgd" ? group.sgd(config_, asked_.lr, decay) : group.adamw(config_, asked_.lr, decay);
  }
  const double matrix_lr = asked_.lr * (muon_.lr.value_or(config_.lr) / config_.lr);
  for (const size_t i : asked_.present) {
    if (!rows_[i].empty())
      muon_step(muon_, parameters_[i], parameters_[i].grad(), first_[i], rows_[i], matrix_lr, config_.weight_decay);
    else  // no other update counts itself as a change in place, by which copies of a weight know that it is another
      torch::autograd::impl::bump_version(parameters_[i]);
  }
  bound_ = asked_.bound;
  asked_.present.clear();
  asked_.runs.clear();
  gradients_.gather_weights();
}

std::vector<Tensor> Optimizer::moments() const {
  std::vector<Tensor> moments;
  for (const auto& [name, tensor] : own_state())
    if (!Consolidation::stays(name)) moments.push_back(tensor);
  return moments;
}

std::map<std::string, Tensor> Optimizer::own_state() const {
  std::map<std::string, Tensor> state;
  for (size_t i = 0; i < names_.size(); ++i) {
    if (first_[i].defined()) state["first." + names_[i]] = first_[i];
    if (!second_[i].defined()) continue;
    state["second." + names_[i]] = second_[i];
    state["step." + names_[i]] = steps_[i];
  }
  if (consolidation_) state.merge(consolidation_->state());
  return state;
}

std::vector<std::pair<std::string, std::vector<int64_t>>> Optimizer::layout(int64_t rank) const {
  std::map<std::string, std::vector<int64_t>> shapes;  // in the order of own_state()
  for (size_t i = 0; i < names_.size(); ++i) {
    if (gradients_.owners()[i] != rank) continue;
    shapes["first." + names_[i]] = parameters_[i].sizes().vec();
    for (const std::string& part : Consolidation::parts())
      if (consolidation_) shapes[part + names_[i]] = parameters_[i].sizes().vec();
    if (!adamw_[i]) continue;
    shapes["second." + names_[i]] = parameters_[i].sizes().vec();
    shapes["step." + names_[i]] = {};
  }
  return {shapes.begin(), shapes.end()};
}

std::map<std::string, Tensor> Optimizer::state() const {
  auto state = own_state();
  const Ranks& ranks = gradients_.ranks();
  if (ranks.alone()) return state;
  const torch::NoGradGuard no_grad;
  const auto options = parameters_[0].options().requires_grad(false);
  std::vector<Tensor> own{torch::empty({0}, options)};
  for (const auto& [name, tensor] : state) own.push_back(tensor.reshape({-1}));
  const Tensor in = ranks.first() ? own[0] : torch::cat(own);
  std::vector<int64_t> in_counts(ranks.size(), 0), out_counts(ranks.size(), 0);
  in_counts[0] = in.numel();
  int64_t all = 0;
  for (int64_t r = 1; ranks.first() && r < ranks.size(); ++r)
    for (const auto& [name, shape] : layout(r)) out_counts[r] += c10::multiply_integers(shape);
  for (const int64_t count : out_counts) all += count;
  const Tensor out = torch::empty({all}, options);
  ranks.settle();
  ranks.exchange(out, in, out_counts, in_counts)();
  int64_t at = 0;
  for (int64_t r = 1; ranks.first() && r < ranks.size(); ++r)
    for (const auto& [name, shape] : layout(r)) {
      const int64_t count = c10::multiply_integers(shape);
      state[name] = out.slice(0, at, at + count).view(shape);
      at += count;
    }
  return state;
}

void Optimizer::restore(const std::map<std::string, Tensor>& state) {
  torch::NoGradGuard no_grad;
  std::map<std::string, std::vector<int64_t>> whole;
  for (int64_t r = 0; r < gradients_.ranks().size(); ++r)
    for (const auto& [name, shape] : layout(r)) whole[name] = shape;
  for (const auto& [name, shape] : whole) {
    const auto found = state.find(name);
    if (found == state.end()) throw std::runtime_error("optimiser state lacks '" + name + "'");
    if (found->second.sizes() != at::IntArrayRef(shape))
      throw std::runtime_error("optimiser state '" + name + "' has shape " + shape_of(found->second) +
                               ", and this model wants " + shape_of(at::IntArrayRef(shape)));
  }
  for (const auto& [name, tensor] : state)
    if (!whole.count(name))
      throw std::runtime_error("optimiser state holds '" + name + "', which this model does not have");
  // What no update leaves (a number that is none, a negative square) is refused here, since update_bound.h goes on from moments.
  UpdateBound bound;
  for (size_t i = 0; i < names_.size(); ++i) {
    if (!first_[i].defined() || first_[i].numel() == 0) continue;
    const Tensor& first = state.at("first." + names_[i]);
    double largest = first.abs().max().item<double>(), root = 0;
    if (second_[i].defined()) {
      const Tensor roots = (state.at("second." + names_[i]) + lost_to_underflow(config_)).sqrt_();
      root = (first / roots).abs_().max().item<double>();
    }
    if (!std::isfinite(largest) || !std::isfinite(root))
      throw std::runtime_error("the optimiser state of '" + names_[i] + "' is not finite; take another checkpoint");
    bound.first = std::max(bound.first, largest);
    bound.ratio = std::max(bound.ratio, root * root);
  }
  for (const auto& [name, tensor] : own_state()) tensor.copy_(state.at(name));
  if (consolidation_) consolidation_->restored();
  bound_ = bound;
}

std::optional<double> Optimizer::held() const {
  if (!consolidation_) return std::nullopt;
  const double all = gradients_.ranks().sum(asked_.held.value_or(0));
  return asked_.held || all > 0 ? std::optional(all) : std::nullopt;
}

std::map<std::string, Tensor> Optimizer::left() const {
  return consolidation_ ? consolidation_->left(gradients_.ranks()) : std::map<std::string, Tensor>();
}

void Optimizer::begin_task(const std::map<std::string, Tensor>& left) {
  if (!consolidation_ || left.empty()) return;
  const torch::NoGradGuard no_grad;
  consolidation_->begin_task(left, gradients_.ranks());
  gradients_.gather_weights();
}

}  // namespace isentrope::train
