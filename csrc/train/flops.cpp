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
  const int64_t C = m.hidden_size, M = m.intermediate_size, HD = m.num_attention_heads * m.head_size(),
                GD = m.num_key_value_heads * m.head_size();
  int64_t numbers = 0;  // of a rank of a block
  for (const auto& [layer, rows, columns] :
       {std::tuple{"q", HD, C}, {"k", GD, C}, {"v", GD, C}, {"o", C, HD}, {"gate", M, C}, {"up", M, C}, {"down", C, M}})
    if (m.lora->takes(layer)) numbers += rows + columns;
  return numbers * m.lora->rank;
}

double model_flops(const model::DecoderConfig& m, const StepWork& work) {
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  const double C = number(m.num_attention_heads * m.head_size()), L = number(m.num_hidden_layers);
  const double attention =
      number(m.hidden_size * m.head_size() * (2 * m.num_attention_heads + 2 * m.num_key_value_heads));
  const double layers = L * (attention + 3 * number(m.hidden_size * m.intermediate_size)),
               head = number(m.token_count() * m.hidden_size);
  const double passes = work.reference ? 4 : 3;  // forward, twice as much backward, forward of the reference
  const double frozen = m.lora ? 1 : 0;          // gradients of weights that stay are not computed
  double adapter = 0;
  if (m.lora) adapter = L * number(numbers_of_adapter(m));
  return passes * (2 * adapter * work.tokens + 4 * C * work.pairs) +
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
