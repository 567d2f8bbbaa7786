#include "csrc/rl/advantage.h"

#include <torch/types.h>

namespace isentrope::rl {
namespace {

void check_groups(const char* name, const torch::Tensor& groups, torch::ScalarType dtype) {
  TORCH_CHECK(groups.dim() == 2, name, " has shape ", groups.sizes(), "; wanted [prompts, samples]");
  TORCH_CHECK(groups.scalar_type() == dtype, name, " is ", groups.scalar_type(), "; wanted ", dtype);
  TORCH_CHECK(groups.is_cpu(), name, " is on ", groups.device(), "; wanted the CPU");
}

// a [P, K] centred by group; whitened as if each completion were its lengths [P, K] tokens.
torch::Tensor whiten_by_token(const torch::Tensor& a, const torch::Tensor& lengths) {
  const double tokens = lengths.sum().item<double>();
  if (tokens <= 0) return a;
  const torch::Tensor centred = a - (a * lengths).sum() / tokens;
  if (tokens < 2) return centred;
  const torch::Tensor variance = (centred.square() * lengths).sum() / (tokens - 1);
  return centred * (variance + 1e-8).rsqrt();
}

}  // namespace

torch::Tensor advantages(const torch::Tensor& rewards, const torch::Tensor& lengths,
                         const AdvantageConfig& config) {
  check_groups("rewards", rewards, torch::kDouble);
  check_groups("lengths", lengths, torch::kLong);
  TORCH_CHECK(rewards.sizes() == lengths.sizes(), "rewards have shape ", rewards.sizes(), " and lengths ",
              lengths.sizes(), "; wanted the same");
  TORCH_CHECK(rewards.isfinite().all().item<bool>(), "rewards hold a value that is not finite");
  TORCH_CHECK((lengths >= 0).all().item<bool>(), "lengths hold a negative value");
  const std::string& kind = config.kind;
  const double samples = static_cast<double>(rewards.size(1));
  const bool single = rewards.size(1) < 2;
  const torch::Tensor centred = single ? rewards : rewards - rewards.mean(1, /*keepdim=*/true);

  if (kind == "dr_grpo") return centred;
  if (kind == "grpo") {
    if (single) return centred / (1.0 + config.eps);
    return centred / (rewards.std(1, /*unbiased=*/true, /*keepdim=*/true) + config.eps);
  }
  if (kind == "rloo") return single ? centred : centred * (samples / (samples - 1));
  if (kind == "opo") {
    if (single) return rewards;
    const torch::Tensor tokens = lengths.sum(1, /*keepdim=*/true).clamp_min(1);
    return rewards - (rewards * lengths).sum(1, /*keepdim=*/true) / tokens;
  }
  if (kind == "reinforce_plus_plus_baseline") return whiten_by_token(centred, lengths);
  TORCH_CHECK(false, "advantage kind \"", kind,
              "\" is unknown; known: grpo, dr_grpo, rloo, reinforce_plus_plus_baseline, opo");
}

torch::Tensor keep_groups(const torch::Tensor& rewards) {
  check_groups("rewards", rewards, torch::kDouble);
  if (rewards.size(1) < 2) return torch::ones({rewards.size(0)}, torch::kBool);
  return (rewards != rewards.select(1, 0).unsqueeze(1)).any(1);
}

torch::Tensor overlong_penalty(const torch::Tensor& lengths, const OverlongConfig& config, int64_t max_len) {
  check_groups("lengths", lengths, torch::kLong);
  TORCH_CHECK(config.buffer >= 1 && config.buffer <= max_len, "overlong buffer is ", config.buffer,
              " tokens; wanted 1 to the length limit, ", max_len);
  const torch::Tensor excess = (lengths - (max_len - config.buffer)).to(torch::kDouble);
  return (excess * (-config.factor / static_cast<double>(config.buffer))).clamp_max(0.0);
}

}  // namespace isentrope::rl
