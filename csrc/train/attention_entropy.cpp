#include "csrc/train/attention_entropy.h"

#include <cmath>

namespace isentrope::train {

using torch::Tensor;

AttentionEntropy::AttentionEntropy(const AttentionEntropyConfig& config, int64_t layers, int64_t heads,
                                   torch::Device device)
    : config_(config) {
  if (!regularises()) return;
  threshold_ = torch::full({layers * heads}, config.threshold, torch::TensorOptions(torch::kFloat32).device(device));
  threshold_.set_requires_grad(config.learn_threshold);
}

namespace {

// What a head's penalty is made of, [L, H] or [L, 1], as of the rows of all ranks; the entropies with the gradient of this one's.
void sum_over(const Ranks& ranks, Tensor& entropies, Tensor& number, Tensor& most) {
  const Tensor own = entropies.detach();
  Tensor sums = torch::cat({own, number, most}, 1).to(torch::kFloat64);
  ranks.sum(sums);
  const Tensor all = sums.to(own.scalar_type());
  const int64_t H = own.size(1);
  entropies = entropies + (all.slice(1, 0, H) - own);
  number = all.slice(1, H, H + 1);
  most = all.slice(1, H + 1, H + 2);
}

}  // namespace

Tensor AttentionEntropy::penalty(const model::AttentionRecord& record, const Tensor& rows, const Ranks* over) const {
  const bool several = over && !over->alone();
  const int64_t layers = static_cast<int64_t>(record.entropy.size()), T = rows.size(1);
  const Tensor H = record.entropy[0];
  const auto plain = H.options().requires_grad(false);
  const Tensor keys = model::keys_in_sight(record, T, plain).view({1, -1, 1, T});  // [1, B or 1, 1, T]
  std::vector<Tensor> in_sight;
  for (const int64_t window : record.window) in_sight.push_back(window > 0 ? keys.clamp_max(window) : keys);
  const Tensor seen = torch::cat(in_sight);  // [L, B or 1, 1, T]
  auto longest = record.position.defined() ? keys.max().item<double>() : static_cast<double>(T);
  if (several && record.position.defined()) longest = static_cast<double>(over->max(static_cast<int64_t>(longest)));
  const bool log_n = config_.maximum == "log_n";
  const Tensor most = log_n ? seen.log() : torch::full_like(seen, std::log(longest));
  const Tensor all = rows.view({1, -1, 1, T});
  const Tensor counts = (log_n ? all & (seen > 1) : all.expand({layers, -1, -1, -1})).to(H.scalar_type());
  const Tensor entropy = torch::stack(record.entropy);  // [L, B, H, T]; counts [L, B, 1, T], most [L, B or 1, 1, T]
  const bool counts_once = several && config_.reduction == "mean" && !over->first();  // the first rank has value and θ
  const Tensor theta = (counts_once ? threshold_.detach() : threshold_).view({layers, -1});  // [L, H]
  Tensor delta, allowed;                                                                     // [L, H], or [L, B, H, T]
  if (config_.reduction == "mean") {
    const auto over_rows = [](const Tensor& x) { return x.sum(at::IntArrayRef({1, 3})); };
    Tensor sums = over_rows(entropy * counts), number = over_rows(counts), mosts = over_rows(counts * most);
    if (several) sum_over(*over, sums, number, mosts);
    number = number.clamp_min(1);
    const Tensor mean_most = mosts / number;  // [L, 1]
    delta = sums / number - theta * mean_most;
    allowed = config_.tolerance * mean_most;
  } else {
    delta = (entropy - theta.unsqueeze(1).unsqueeze(-1) * most) * counts;
    allowed = config_.tolerance * most;
  }
  const Tensor punished = delta.square() * (delta.abs() > allowed);
  const Tensor penalty = config_.coef * punished.sum() / static_cast<double>(theta.numel());
  return counts_once ? penalty - penalty.detach() : penalty;
}

}  // namespace isentrope::train
