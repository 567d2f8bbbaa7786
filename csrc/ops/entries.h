// What each op gives the dispatcher: the functions that library.cpp and library_cuda.cpp register. Shapes: ops.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "kernels/grpo_loss.h"
#include "kernels/token_entropy.h"

namespace isentrope::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- token_entropy -----------------------------------------------------------------------------------------------
// (logprob, entropy, lse, anchor, log_sum, sum_p2, sum_p2_logp), each of target's shape; without moments the last
// two are empty.
using TokenEntropyOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

TokenEntropyOutputs token_entropy_autograd(const Tensor& logits, const Tensor& target, double temperature,
                                           int64_t ignore_index, bool moments, bool inplace_backward);
TokenEntropyOutputs token_entropy_meta(const Tensor& logits, const Tensor& target, double temperature,
                                       int64_t ignore_index, bool moments, bool inplace_backward);
TokenEntropyOutputs token_entropy_cpu(const Tensor& logits, const Tensor& target, double temperature,
                                      int64_t ignore_index, bool moments, bool inplace_backward);
// Checks, allocates, and hands the parameters to the device's launcher.
TokenEntropyOutputs token_entropy_run(const Tensor& logits, const Tensor& target, double temperature,
                                      int64_t ignore_index, bool moments,
                                      void (*launch)(const kernels::TokenEntropyForward&));

// The gradient of the logits, [N, V] or [B, T, V]; entropy, anchor, log_sum as the forward op gave them.
Tensor token_entropy_backward_meta(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                   const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                   const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                   int64_t ignore_index);
Tensor token_entropy_backward_cpu(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                  const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                  const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                  int64_t ignore_index);
// The same, written over the logits.
void token_entropy_backward_inplace_meta(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                         const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                         const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                         int64_t ignore_index);
void token_entropy_backward_inplace_cpu(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                        const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                        const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                        int64_t ignore_index);
// Writes into dlogits, a new tensor or the logits themselves.
void token_entropy_backward_run(const Tensor& dlogits, const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                int64_t ignore_index, void (*launch)(const kernels::TokenEntropyBackward&));

// ---- grpo_select ----------------------------------------------------------------------------------------------------
struct GrpoSelectArguments {
  Tensor logprob, old_logprob, advantage, mask;
  c10::string_view mode;
  int64_t seed;
  double select_fraction, cov_lower, cov_upper, clip_low;
  std::optional<double> clip_high;
  int64_t minimum;
};
Tensor grpo_select_cpu(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage,
                       const Tensor& mask, c10::string_view mode, int64_t seed, double select_fraction,
                       double cov_lower, double cov_upper, double clip_low, std::optional<double> clip_high,
                       int64_t minimum);
Tensor grpo_select_meta(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage,
                        const Tensor& mask, c10::string_view mode, int64_t seed, double select_fraction,
                        double cov_lower, double cov_upper, double clip_low, std::optional<double> clip_high,
                        int64_t minimum);
// with_workspace: the launcher is CUDA's, whose workspace is allocated here.
Tensor grpo_select_run(const GrpoSelectArguments& arguments, void (*launch)(const kernels::GrpoSelect&),
                       bool with_workspace);

// ---- grpo_loss ------------------------------------------------------------------------------------------------------
struct GrpoLossArguments {
  Tensor logprob, old_logprob, advantage, mask;
  OptionalTensor selected, ref_logprob, entropy, normalizer;
  c10::string_view mode, aggregate;
  double clip_low;
  std::optional<double> clip_high, dual_clip;
  double kl_coef;
  c10::string_view ref_kl;
  double ref_kl_coef, entropy_coef;
  bool keep_slope = false;
};
// (loss, token_loss, stats, slope, weight); slope [B, T] is empty without keep_slope, weight is [B].
using GrpoLossOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

GrpoLossOutputs grpo_loss_autograd(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage,
                                   const Tensor& mask, const OptionalTensor& selected,
                                   const OptionalTensor& ref_logprob, const OptionalTensor& entropy,
                                   const OptionalTensor& normalizer, c10::string_view mode,
                                   c10::string_view aggregate, double clip_low,
                                   std::optional<double> clip_high, std::optional<double> dual_clip,
                                   double kl_coef, c10::string_view ref_kl, double ref_kl_coef,
                                   double entropy_coef, bool keep_slope);
GrpoLossOutputs grpo_loss_meta(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage,
                               const Tensor& mask, const OptionalTensor& selected,
                               const OptionalTensor& ref_logprob, const OptionalTensor& entropy,
                               const OptionalTensor& normalizer, c10::string_view mode,
                               c10::string_view aggregate, double clip_low, std::optional<double> clip_high,
                               std::optional<double> dual_clip, double kl_coef, c10::string_view ref_kl,
                               double ref_kl_coef, double entropy_coef, bool keep_slope);
GrpoLossOutputs grpo_loss_cpu(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage,
                              const Tensor& mask, const OptionalTensor& selected,
                              const OptionalTensor& ref_logprob, const OptionalTensor& entropy,
                              const OptionalTensor& normalizer, c10::string_view mode,
                              c10::string_view aggregate, double clip_low, std::optional<double> clip_high,
                              std::optional<double> dual_clip, double kl_coef, c10::string_view ref_kl,
                              double ref_kl_coef, double entropy_coef, bool keep_slope);
GrpoLossOutputs grpo_loss_run(const GrpoLossArguments& arguments,
                              void (*launch)(const kernels::GrpoLossForward&), bool with_workspace);

// (dlogprob, dentropy), both [B, T]; dentropy is empty without of_entropy.
std::tuple<Tensor, Tensor> grpo_loss_backward_meta(const OptionalTensor& dloss,
                                                   const OptionalTensor& dtoken_loss, const Tensor& slope,
                                                   const Tensor& weight, const Tensor& mask,
                                                   double entropy_coef, bool of_entropy);
std::tuple<Tensor, Tensor> grpo_loss_backward_cpu(const OptionalTensor& dloss,
                                                  const OptionalTensor& dtoken_loss, const Tensor& slope,
                                                  const Tensor& weight, const Tensor& mask,
                                                  double entropy_coef, bool of_entropy);
std::tuple<Tensor, Tensor> grpo_loss_backward_run(const OptionalTensor& dloss,
                                                  const OptionalTensor& dtoken_loss, const Tensor& slope,
                                                  const Tensor& weight, const Tensor& mask,
                                                  double entropy_coef, bool of_entropy,
                                                  void (*launch)(const kernels::GrpoLossBackward&));

}  // namespace isentrope::ops
