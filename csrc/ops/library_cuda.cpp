// The CUDA entries: the checks and allocations of <op>.cpp with the launchers of kernels/. No CUDA header is needed.
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include "csrc/ops/attention_entries.h"
#include "csrc/ops/crrelu_entries.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/recurrence_entries.h"

namespace isentrope::ops {
namespace {

// The current stream of the current device (entries hold a guard of their tensors' device), as a cudaStream_t.
void* current_stream() {
  const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
  return cuda.getStream(cuda.getDevice()).native_handle();
}

// ---- entropy_attention
EntropyAttentionOutputs entropy_attention_cuda(const EntropyAttentionArguments& arguments, bool return_entropy) {
  const c10::DeviceGuard guard(arguments.q.device());
  return entropy_attention_run(
      arguments, return_entropy, [](const auto& p) { kernels::entropy_attention_forward_cuda(p, current_stream()); },
      kernels::entropy_attention_workspace);
}

EntropyAttentionGradients entropy_attention_backward_cuda(const EntropyAttentionArguments& arguments,
                                                          const EntropyAttentionState& state) {
  const c10::DeviceGuard guard(arguments.q.device());
  return entropy_attention_backward_run(
      arguments, state, [](const auto& p) { kernels::entropy_attention_backward_cuda(p, current_stream()); },
      kernels::entropy_attention_backward_workspace);
}

// ---- sigma_linear
const SigmaBackend kCuda = {
    [](const auto& p) { kernels::sigma_norm_cuda(p, current_stream()); },
    [](const auto& p) { kernels::sigma_dot_cuda(p, current_stream()); },
    [](const auto& p) { kernels::sigma_rank_one_cuda(p, current_stream()); },
    sigma_matmul_cuda,
};

SigmaLinearOutputs sigma_linear_cuda(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                     const OptionalTensor& bias, c10::string_view sigma_grad) {
  const c10::DeviceGuard guard(weight.device());
  return sigma_linear_run(x, weight, gamma, u, bias, sigma_grad, kCuda);
}

SigmaLinearGradients sigma_linear_backward_cuda(const Tensor& x, const Tensor& weight, const Tensor& u,
                                                const Tensor& sigma, const Tensor& v, const Tensor& factors,
                                                const OptionalTensor& dy, const OptionalTensor& dsigma,
                                                c10::string_view sigma_grad, std::array<bool, 4> wanted) {
  const c10::DeviceGuard guard(weight.device());
  return sigma_linear_backward_run(x, weight, u, sigma, v, factors, dy, dsigma, sigma_grad, wanted, kCuda);
}

// ---- power_step
std::tuple<Tensor, Tensor> power_step_cuda(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                           double tolerance) {
  const c10::DeviceGuard guard(weights[0].device());
  return power_step_run(
      weights, us, steps_max, tolerance, [](const auto& p) { kernels::power_step_cuda(p, current_stream()); }, true);
}

// ---- token_entropy
TokenEntropyOutputs token_entropy_cuda(const Tensor& logits, const Tensor& target, double temperature,
                                       int64_t ignore_index, bool moments, bool, const Numbers& numbers) {
  const c10::DeviceGuard guard(logits.device());
  read_numbers("token_entropy", numbers, {&temperature});
  return token_entropy_run(logits, target, temperature, ignore_index, moments,
                           [](const auto& p) { kernels::token_entropy_forward_cuda(p, current_stream()); });
}

KeptTokenEntropyOutputs token_entropy_kept_cuda(const Tensor& logits, const Tensor& target, double temperature,
                                                int64_t ignore_index, bool moments, bool, c10::string_view keep,
                                                double share, const Numbers& numbers) {
  const c10::DeviceGuard guard(logits.device());
  read_numbers("token_entropy_kept", numbers, {&temperature, &share});
  keep_kind("token_entropy_kept", keep, share);
  const auto outputs = token_entropy_cuda(logits, target, temperature, ignore_index, moments, false, std::nullopt);
  return token_entropy_keep_run(outputs, logits, target, temperature, ignore_index, keep, share,
                                [](const auto& p) { kernels::token_entropy_keep_cuda(p, current_stream()); });
}

void launch_token_entropy_backward(const kernels::TokenEntropyBackward& p) {
  kernels::token_entropy_backward_cuda(p, current_stream());
}

Tensor token_entropy_backward_cuda(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                   const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                   const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                   int64_t ignore_index, const OptionalTensor& dkept_entropy,
                                   const OptionalTensor& kept, const Numbers& numbers) {
  const c10::DeviceGuard guard(logits.device());
  read_numbers("token_entropy_backward", numbers, {&temperature});
  Tensor dlogits = at::empty(logits.sizes(), logits.options());
  token_entropy_backward_run(dlogits, logits, target, entropy, anchor, log_sum, dlogprob, dentropy, dlse, temperature,
                             ignore_index, dkept_entropy, kept, launch_token_entropy_backward);
  return dlogits;
}

void token_entropy_backward_inplace_cuda(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                         const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                         const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                         int64_t ignore_index, const OptionalTensor& dkept_entropy,
                                         const OptionalTensor& kept) {
  const c10::DeviceGuard guard(logits.device());
  token_entropy_backward_run(logits, logits, target, entropy, anchor, log_sum, dlogprob, dentropy, dlse, temperature,
                             ignore_index, dkept_entropy, kept, launch_token_entropy_backward);
}

// ---- linear_token_entropy
const LogitBackend kLogits = {
    [](const auto& p) { kernels::linear_token_entropy_forward_cuda(p, current_stream()); },
    [](const auto& p) { kernels::token_entropy_keep_cuda(p, current_stream()); },
    [](const auto& p) { kernels::linear_token_entropy_backward_cuda(p, current_stream()); },
    logit_product_cuda,
};

TokenEntropyOutputs linear_token_entropy_cuda(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                              const OptionalTensor& bias, std::optional<double> softcap,
                                              double temperature, int64_t ignore_index, bool moments,
                                              const Numbers& numbers) {
  const c10::DeviceGuard guard(hidden.device());
  read_numbers("linear_token_entropy", numbers, {optional_number(softcap), &temperature});
  return linear_token_entropy_run(hidden, weight, target, bias, softcap, temperature, ignore_index, moments, kLogits);
}

KeptTokenEntropyOutputs linear_token_entropy_kept_cuda(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                       const OptionalTensor& bias, std::optional<double> softcap,
                                                       double temperature, int64_t ignore_index, bool moments,
                                                       c10::string_view keep, double share, const Numbers& numbers) {
  const c10::DeviceGuard guard(hidden.device());
  read_numbers("linear_token_entropy_kept", numbers, {optional_number(softcap), &temperature, &share});
  return linear_token_entropy_kept_run(hidden, weight, target, bias, softcap, temperature, ignore_index, moments, keep,
                                       share, kLogits);
}

LinearTokenEntropyGradients linear_token_entropy_backward_cuda(
    const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& entropy, const Tensor& anchor,
    const Tensor& log_sum, const OptionalTensor& dlogprob, const OptionalTensor& dentropy, const OptionalTensor& dlse,
    const OptionalTensor& bias, std::optional<double> softcap, double temperature, int64_t ignore_index,
    std::array<bool, 3> wanted, const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
    const Numbers& numbers) {
  const c10::DeviceGuard guard(hidden.device());
  read_numbers("linear_token_entropy_backward", numbers, {optional_number(softcap), &temperature});
  return linear_token_entropy_backward_run(hidden, weight, target, entropy, anchor, log_sum, dlogprob, dentropy, dlse,
                                           bias, softcap, temperature, ignore_index, wanted, dkept_entropy, kept,
                                           kLogits);
}

// ---- window_entropy
std::tuple<Tensor, Tensor> window_entropy_cuda(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                               int64_t before, int64_t after, bool shrink) {
  const c10::DeviceGuard guard(entropy.device());
  return window_entropy_run(
      entropy, mask, at, before, after, shrink,
      [](const auto& p) { kernels::window_entropy_forward_cuda(p, current_stream()); }, true);
}

Tensor window_entropy_backward_cuda(const Tensor& dmean, const Tensor& count, const Tensor& mask, int64_t before,
                                    int64_t after) {
  const c10::DeviceGuard guard(dmean.device());
  return window_entropy_backward_run(
      dmean, count, mask, before, after,
      [](const auto& p) { kernels::window_entropy_backward_cuda(p, current_stream()); }, true);
}

// ---- crrelu
Tensor crrelu_cuda(const Tensor& x, const Tensor& epsilon) {
  const c10::DeviceGuard guard(x.device());
  return crrelu_run(x, epsilon, [](const auto& p) { kernels::crrelu_forward_cuda(p, current_stream()); });
}

std::tuple<Tensor, Tensor> crrelu_backward_cuda(const Tensor& dy, const Tensor& x, const Tensor& epsilon) {
  const c10::DeviceGuard guard(x.device());
  return crrelu_backward_run(dy, x, epsilon, [](const auto& p) { kernels::crrelu_backward_cuda(p, current_stream()); });
}

// ---- grpo_select
Tensor grpo_select_cuda(const GrpoSelectArguments& arguments) {
  const c10::DeviceGuard guard(arguments.logprob.device());
  return grpo_select_run(
      arguments, [](const auto& p) { kernels::grpo_select_cuda(p, current_stream()); }, true);
}

// ---- grpo_loss
GrpoLossOutputs grpo_loss_cuda(const GrpoLossArguments& arguments) {
  const c10::DeviceGuard guard(arguments.logprob.device());
  return grpo_loss_run(
      arguments, [](const auto& p) { kernels::grpo_loss_forward_cuda(p, current_stream()); }, true);
}

std::tuple<Tensor, Tensor> grpo_loss_backward_cuda(const OptionalTensor& dloss, const OptionalTensor& dtoken_loss,
                                                   const Tensor& slope, const Tensor& weight, const Tensor& mask,
                                                   double entropy_coef, bool of_entropy, const Numbers& numbers) {
  const c10::DeviceGuard guard(slope.device());
  return grpo_loss_backward_run(dloss, dtoken_loss, slope, weight, mask, entropy_coef, of_entropy, numbers,
                                [](const auto& p) { kernels::grpo_loss_backward_cuda(p, current_stream()); });
}

// ---- linear_attention
LinearAttentionOutputs linear_attention_cuda(const RecurrenceArguments& a, bool normalizer) {
  const c10::DeviceGuard guard(a.q.device());
  return linear_attention_run(
      a, normalizer, [](const auto& p) { kernels::linear_attention_forward_cuda(p, current_stream()); },
      kernels::linear_attention_workspace);
}

LinearAttentionGradients linear_attention_backward_cuda(const RecurrenceArguments& a, const LinearAttentionState& state,
                                                        bool normalizer) {
  const c10::DeviceGuard guard(a.q.device());
  return linear_attention_backward_run(
      a, state, normalizer, [](const auto& p) { kernels::linear_attention_backward_cuda(p, current_stream()); },
      kernels::linear_attention_backward_workspace);
}

// ---- gated_delta_rule
GatedDeltaOutputs gated_delta_rule_cuda(const GatedDeltaArguments& a) {
  const c10::DeviceGuard guard(a.q.device());
  return gated_delta_rule_run(
      a, [](const auto& p) { kernels::gated_delta_rule_forward_cuda(p, current_stream()); },
      kernels::gated_delta_rule_workspace);
}

GatedDeltaGradients gated_delta_rule_backward_cuda(const GatedDeltaArguments& a, const OptionalTensor& dout,
                                                   const OptionalTensor& dlast_state) {
  const c10::DeviceGuard guard(a.q.device());
  return gated_delta_rule_backward_run(
      a, dout, dlast_state, [](const auto& p) { kernels::gated_delta_rule_backward_cuda(p, current_stream()); },
      kernels::gated_delta_rule_backward_workspace);
}

}  // namespace
}  // namespace isentrope::ops

TORCH_LIBRARY_IMPL(isentrope, CUDA, m) {
  using namespace isentrope::ops;
  m.impl("entropy_attention", entropy_attention_entry<entropy_attention_cuda>);
  m.impl("entropy_attention_backward", entropy_attention_backward_entry<entropy_attention_backward_cuda>);
  m.impl("sigma_linear", sigma_linear_cuda);
  m.impl("sigma_linear_backward", sigma_linear_backward_cuda);
  m.impl("power_step", power_step_cuda);
  m.impl("token_entropy", token_entropy_cuda);
  m.impl("token_entropy_kept", token_entropy_kept_cuda);
  m.impl("linear_token_entropy", linear_token_entropy_cuda);
  m.impl("linear_token_entropy_kept", linear_token_entropy_kept_cuda);
  m.impl("linear_token_entropy_backward", linear_token_entropy_backward_cuda);
  m.impl("crrelu", crrelu_cuda);
  m.impl("crrelu_backward", crrelu_backward_cuda);
  m.impl("window_entropy", window_entropy_cuda);
  m.impl("window_entropy_backward", window_entropy_backward_cuda);
  m.impl("token_entropy_backward", token_entropy_backward_cuda);
  m.impl("token_entropy_backward_", token_entropy_backward_inplace_cuda);
  m.impl("grpo_select", grpo_select_entry<grpo_select_cuda>);
  m.impl("grpo_loss", grpo_loss_entry<grpo_loss_cuda>);
  m.impl("grpo_loss_backward", grpo_loss_backward_cuda);
  m.impl("linear_attention", linear_attention_entry<linear_attention_cuda>);
  m.impl("linear_attention_backward", linear_attention_backward_entry<linear_attention_backward_cuda>);
  m.impl("gated_delta_rule", gated_delta_rule_entry<gated_delta_rule_cuda>);
  m.impl("gated_delta_rule_backward", gated_delta_rule_backward_entry<gated_delta_rule_backward_cuda>);
}
