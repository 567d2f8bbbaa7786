#include "csrc/train/flops.h"

#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <torch/cuda.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <tuple>

#include "csrc/model/bfloat16_linear.h"

namespace isentrope::train {

double attention_pairs(int64_t length, int64_t window) {
  const auto n = static_cast<double>(length);
  if (window <= 0 || length <= window) return n * (n + 1) / 2;
  const auto w = static_cast<double>(window);
  return w * (w + 1) / 2 + (n - w) * w;
}

double packed_pairs(const torch::Tensor& position, const torch::Tensor& counts, int64_t window) {
  const torch::Tensor seen = window > 0 ? (position + 1).clamp_max(window) : position + 1;  // [B, T]
  return (seen * counts).sum().item<double>();
}

int64_t numbers_of_adapter(const model::DecoderConfig& m) {
  if (!m.lora) return 0;
  const int64_t C = m.hidden_size;
  int64_t numbers = 0;  // of a rank of the blocks
  for (int64_t i = 0; i < m.num_hidden_layers; ++i) {
    const model::MixerShape mixer = model::mixer_shape(m, i);
    auto layers = m.mlp_matrices();
    layers.emplace_back("o", C, mixer.output);
    for (const auto& [part, rows] : mixer.parts) layers.emplace_back(part, rows, C);
    for (const auto& [layer, rows, columns] : layers)
      if (m.lora->takes(layer)) numbers += rows + columns;
  }
  return numbers * m.lora->rank;
}

double attention_flops(const model::DecoderConfig& m, const std::function<double(int64_t)>& pairs_of_window,
                       double tokens) {
  double flops = 0;
  for (int64_t i = 0; i < m.num_hidden_layers; ++i) {
    const model::MixerShape mixer = model::mixer_shape(m, i);
    if (mixer.flops_of_pair > 0)
      flops += mixer.flops_of_pair * pairs_of_window(mixer.sight > 0 ? mixer.sight : m.attention.window_of(i));
    flops += mixer.flops_of_token * tokens;
  }
  return flops;
}

double model_flops(const model::DecoderConfig& m, const StepWork& work) {
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  double layers = 0;
  for (int64_t i = 0; i < m.num_hidden_layers; ++i) {
    const model::MixerShape mixer = model::mixer_shape(m, i);
    layers += number(m.hidden_size * (mixer.rows() + mixer.output)) + number(m.mlp_numbers());
  }
  const double head = number(m.token_count() * m.hidden_size);
  const double passes = work.reference ? 4 : 3;  // forward, twice as much backward, forward of the reference
  const double frozen = m.lora ? 1 : 0;          // gradients of weights that stay are not computed
  const double adapter = number(numbers_of_adapter(m));
  return passes * (2 * adapter * work.tokens + work.mixing) +
         (passes - frozen) * 2 * (layers * work.tokens + head * work.learnt) + 2 * (layers + head) * work.generated;
}

double measured_product_rate(torch::Device device, const std::string& compute) {
  using Clock = std::chrono::steady_clock;
  const torch::NoGradGuard no_grad;
  const int64_t n = device.is_cuda() ? 4096 : 512;
  constexpr double kSeconds = 0.03;
  const bool narrow = compute == "bfloat16" && (device.is_cuda() || model::takes_bfloat16_weights());
  const torch::Tensor a =
      at::ones({n, n}, torch::dtype(narrow ? torch::kBFloat16 : torch::kFloat32).device(device));  // [n, n]
  torch::Tensor out = at::mm(a, a);  // [n, n]; the warm-up
  const auto seconds = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  const auto wait = [&] {
    if (device.is_cuda()) torch::cuda::synchronize();
  };
  wait();
  double best = std::numeric_limits<double>::infinity();
  const Clock::time_point begun = Clock::now();
  do {
    const Clock::time_point start = Clock::now();
    at::mm_out(out, a, a);
    wait();
    best = std::min(best, seconds(start));
  } while (seconds(begun) < kSeconds);
  const auto size = static_cast<double>(n);
  return 2 * size * size * size / best;
}

}  // namespace isentrope::train
