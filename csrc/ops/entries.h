// What each op but attention gives the dispatcher: the functions that library.cpp and library_cuda.cpp register. Shapes: ops.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include "csrc/ops/numbers.h"
#include "kernels/grpo_loss.h"
#include "kernels/linear_token_entropy.h"
#include "kernels/sigma_linear.h"
#include "kernels/token_entropy.h"
#include "kernels/window_entropy.h"

namespace isentrope::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- sigma_linear ----------------------------------------------------------------------------------------------------
// What a device does for sigma_linear: the launchers of kernels/sigma_linear.h and
// out = alpha · a b + beta · out, where alpha and beta are elements of factors, read where the product runs. a and b have
// unit stride in one dimension, out [rows, columns] is contiguous.
struct SigmaBackend {
  void (*norm)(const kernels::SigmaNorm&);
  void (*dot)(const kernels::SigmaDot&);
  void (*rank_one)(const kernels::SigmaRankOne&);
  void (*matmul)(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& factors, kernels::SigmaFactor alpha,
                 kernels::SigmaFactor beta);
};
void sigma_matmul_cuda(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& factors,
                       kernels::SigmaFactor alpha, kernels::SigmaFactor beta);

// (y, sigma [], v [out], factors [4])
using SigmaLinearOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

SigmaLinearOutputs sigma_linear_autograd(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                         const OptionalTensor& bias, c10::string_view sigma_grad);
SigmaLinearOutputs sigma_linear_autocast(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                         const OptionalTensor& bias, c10::string_view sigma_grad);
SigmaLinearOutputs sigma_linear_meta(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                     const OptionalTensor& bias, c10::string_view sigma_grad);
SigmaLinearOutputs sigma_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                    const OptionalTensor& bias, c10::string_view sigma_grad);
SigmaLinearOutputs sigma_linear_run(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                                    const OptionalTensor& bias, c10::string_view sigma_grad,
                                    const SigmaBackend& backend);

// (dx, dweight, dgamma, dbias), those that are not wanted empty. Without dy only dweight can be wanted.
using SigmaLinearGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

SigmaLinearGradients sigma_linear_backward_meta(const Tensor& x, const Tensor& weight, const Tensor& u,
                                                const Tensor& sigma, const Tensor& v, const Tensor& factors,
                                                const OptionalTensor& dy, const OptionalTensor& dsigma,
                                                c10::string_view sigma_grad, std::array<bool, 4> wanted);
SigmaLinearGradients sigma_linear_backward_cpu(const Tensor& x, const Tensor& weight, const Tensor& u,
                                               const Tensor& sigma, const Tensor& v, const Tensor& factors,
                                               const OptionalTensor& dy, const OptionalTensor& dsigma,
                                               c10::string_view sigma_grad, std::array<bool, 4> wanted);
SigmaLinearGradients sigma_linear_backward_run(const Tensor& x, const Tensor& weight, const Tensor& u,
                                               const Tensor& sigma, const Tensor& v, const Tensor& factors,
                                               const OptionalTensor& dy, const OptionalTensor& dsigma,
                                               c10::string_view sigma_grad, std::array<bool, 4> wanted,
                                               const SigmaBackend& backend);

// ---- power_step ------------------------------------------------------------------------------------------------------
// (sigmas [layers], steps [layers])
std::tuple<Tensor, Tensor> power_step_autograd(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                               double tolerance);
std::tuple<Tensor, Tensor> power_step_inplace_or_view(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                                      double tolerance);
std::tuple<Tensor, Tensor> power_step_meta(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                           double tolerance);
std::tuple<Tensor, Tensor> power_step_cpu(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                          double tolerance);
// with_workspace: the launcher is CUDA's, whose workspace is allocated here.
std::tuple<Tensor, Tensor> power_step_run(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                          double tolerance, void (*launch)(const kernels::PowerStep&),
                                          bool with_workspace);

// ---- token_entropy -----------------------------------------------------------------------------------------------
// (logprob, entropy, lse, anchor, log_sum, sum_p2, sum_p2_logp), each of target's shape; without moments the last
// two are empty.
using TokenEntropyOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
// The same, then kept_entropy of target's shape, and kept [..., 4] in double, the KeptTokens of each row.
using KeptTokenEntropyOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

TokenEntropyOutputs token_entropy_autograd(const Tensor& logits, const Tensor& target, double temperature,
                                           c10::SymInt ignore_index, bool moments, bool inplace_backward,
                                           const Numbers& numbers);
TokenEntropyOutputs token_entropy_meta(const Tensor& logits, const Tensor& target, double temperature,
                                       c10::SymInt ignore_index, bool moments, bool inplace_backward,
                                       const Numbers& numbers);
TokenEntropyOutputs token_entropy_cpu(const Tensor& logits, const Tensor& target, double temperature,
                                      int64_t ignore_index, bool moments, bool inplace_backward,
                                      const Numbers& numbers);
// Checks, allocates, and hands the parameters to the device's launcher.
TokenEntropyOutputs token_entropy_run(const Tensor& logits, const Tensor& target, double temperature,
                                      int64_t ignore_index, bool moments,
                                      void (*launch)(const kernels::TokenEntropyForward&));

// With the truncated entropy; keep and share are those of Keep in ops.h.
KeptTokenEntropyOutputs token_entropy_kept_autograd(const Tensor& logits, const Tensor& target, double temperature,
                                                    c10::SymInt ignore_index, bool moments, bool inplace_backward,
                                                    c10::string_view keep, double share, const Numbers& numbers);
KeptTokenEntropyOutputs token_entropy_kept_meta(const Tensor& logits, const Tensor& target, double temperature,
                                                c10::SymInt ignore_index, bool moments, bool inplace_backward,
                                                c10::string_view keep, double share, const Numbers& numbers);
KeptTokenEntropyOutputs token_entropy_kept_cpu(const Tensor& logits, const Tensor& target, double temperature,
                                               int64_t ignore_index, bool moments, bool inplace_backward,
                                               c10::string_view keep, double share, const Numbers& numbers);
// Of the outputs of token_entropy_run.
KeptTokenEntropyOutputs token_entropy_keep_run(const TokenEntropyOutputs& outputs, const Tensor& logits,
                                               const Tensor& target, double temperature, int64_t ignore_index,
                                               c10::string_view keep, double share,
                                               void (*launch)(const kernels::TokenEntropyKeep&));

// The gradient of the logits, [N, V] or [B, T, V]; entropy, anchor, log_sum and kept as the forward op gave them.
Tensor token_entropy_backward_meta(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                   const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                   const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                   c10::SymInt ignore_index, const OptionalTensor& dkept_entropy,
                                   const OptionalTensor& kept, const Numbers& numbers);
Tensor token_entropy_backward_cpu(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                  const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                  const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                  int64_t ignore_index, const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
                                  const Numbers& numbers);
// The same, written over the logits.
void token_entropy_backward_inplace_meta(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                         const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                         const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                         int64_t ignore_index, const OptionalTensor& dkept_entropy,
                                         const OptionalTensor& kept);
void token_entropy_backward_inplace_cpu(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                        const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                        const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                        int64_t ignore_index, const OptionalTensor& dkept_entropy,
                                        const OptionalTensor& kept);
// Writes into dlogits, a new tensor or the logits themselves.
void token_entropy_backward_run(const Tensor& dlogits, const Tensor& logits, const Tensor& target,
                                const Tensor& entropy, const Tensor& anchor, const Tensor& log_sum,
                                const OptionalTensor& dlogprob, const OptionalTensor& dentropy,
                                const OptionalTensor& dlse, double temperature, int64_t ignore_index,
                                const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
                                void (*launch)(const kernels::TokenEntropyBackward&));

// What linear_token_entropy shares: the type of statistics of rows of x; outputs like it; their pointers; arguments of a backward
// pass, checked and made contiguous (undefined where there is none); an error for a target that is neither a class nor
// ignore_index.
at::ScalarType statistic_type(const Tensor& x);
TokenEntropyOutputs token_entropy_empty(const Tensor& like, const Tensor& target, bool moments);
void token_entropy_rows(kernels::TokenEntropyRows& p, const TokenEntropyOutputs& outputs);
Tensor row_gradient(const char* op, const OptionalTensor& gradient, const char* name, const Tensor& target,
                    at::ScalarType type);
Tensor row_statistic(const char* op, const Tensor& x, const char* name, const Tensor& target, at::ScalarType type);
// keep and share of Keep in ops.h, checked.
kernels::Keep keep_kind(const char* op, c10::string_view keep, double share);
// What a row keeps, [N] as a backward pass takes it; null where dkept_entropy is undefined.
const kernels::KeptTokens* kept_tokens(const char* op, const Tensor& dkept_entropy, const OptionalTensor& kept,
                                       const Tensor& target);
// New kept_entropy and kept beside outputs.
KeptTokenEntropyOutputs with_kept(const TokenEntropyOutputs& outputs, const Tensor& target);
void check_targets(const char* op, const Tensor& target, int64_t vocab, int64_t ignore_index);

// ---- linear_token_entropy --------------------------------------------------------------------------------------------
TokenEntropyOutputs linear_token_entropy_autograd(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                  const OptionalTensor& bias, std::optional<double> softcap,
                                                  double temperature, c10::SymInt ignore_index, bool moments,
                                                  const Numbers& numbers);
TokenEntropyOutputs linear_token_entropy_autocast(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                  const OptionalTensor& bias, std::optional<double> softcap,
                                                  double temperature, c10::SymInt ignore_index, bool moments,
                                                  const Numbers& numbers);
TokenEntropyOutputs linear_token_entropy_meta(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                              const OptionalTensor& bias, std::optional<double> softcap,
                                              double temperature, c10::SymInt ignore_index, bool moments,
                                              const Numbers& numbers);
TokenEntropyOutputs linear_token_entropy_cpu(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                             const OptionalTensor& bias, std::optional<double> softcap,
                                             double temperature, int64_t ignore_index, bool moments,
                                             const Numbers& numbers);

KeptTokenEntropyOutputs linear_token_entropy_kept_autograd(const Tensor& hidden, const Tensor& weight,
                                                           const Tensor& target, const OptionalTensor& bias,
                                                           std::optional<double> softcap, double temperature,
                                                           c10::SymInt ignore_index, bool moments,
                                                           c10::string_view keep, double share, const Numbers& numbers);
KeptTokenEntropyOutputs linear_token_entropy_kept_autocast(const Tensor& hidden, const Tensor& weight,
                                                           const Tensor& target, const OptionalTensor& bias,
                                                           std::optional<double> softcap, double temperature,
                                                           c10::SymInt ignore_index, bool moments,
                                                           c10::string_view keep, double share, const Numbers& numbers);
KeptTokenEntropyOutputs linear_token_entropy_kept_meta(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                       const OptionalTensor& bias, std::optional<double> softcap,
                                                       double temperature, c10::SymInt ignore_index, bool moments,
                                                       c10::string_view keep, double share, const Numbers& numbers);
KeptTokenEntropyOutputs linear_token_entropy_kept_cpu(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                      const OptionalTensor& bias, std::optional<double> softcap,
                                                      double temperature, int64_t ignore_index, bool moments,
                                                      c10::string_view keep, double share, const Numbers& numbers);

// What a GPU does for linear_token_entropy: the launchers of kernels/linear_token_entropy.h and out = a b (+ out if add), where a
// and b are of one type and have unit stride in one dimension, out is contiguous, of that type or of the one sums are kept in.
struct LogitBackend {
  void (*forward)(const kernels::LinearTokenEntropyForward&);
  void (*keep)(const kernels::TokenEntropyKeep&);
  void (*backward)(const kernels::LinearTokenEntropyBackward&);
  void (*product)(const Tensor& out, const Tensor& a, const Tensor& b, bool add);
};
void logit_product_cuda(const Tensor& out, const Tensor& a, const Tensor& b, bool add);
TokenEntropyOutputs linear_token_entropy_run(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                             const OptionalTensor& bias, std::optional<double> softcap,
                                             double temperature, int64_t ignore_index, bool moments,
                                             const LogitBackend& backend);
KeptTokenEntropyOutputs linear_token_entropy_kept_run(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                      const OptionalTensor& bias, std::optional<double> softcap,
                                                      double temperature, int64_t ignore_index, bool moments,
                                                      c10::string_view keep, double share, const LogitBackend& backend);

// What linear_token_entropy.cpp and linear_token_entropy_blocks.cpp share: the checks; x with unit stride in a row and rows that do not
// share memory; the outputs of the forward pass and the incoming gradients of a backward pass, checked and contiguous.
void check_linear_arguments(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                            const OptionalTensor& bias, std::optional<double> softcap, double temperature);
Tensor with_rows(const Tensor& x);
struct LinearStatistics {
  Tensor entropy, anchor, log_sum, dlogprob, dentropy, dlse, dkept;
  OptionalTensor kept;
  const kernels::KeptTokens* tokens;  // of kept

  LinearStatistics(const Tensor& hidden, const Tensor& target, const Tensor& entropy, const Tensor& anchor,
                   const Tensor& log_sum, const OptionalTensor& dlogprob, const OptionalTensor& dentropy,
                   const OptionalTensor& dlse, const OptionalTensor& bias, std::array<bool, 3> wanted,
                   const OptionalTensor& dkept_entropy, const OptionalTensor& kept);
  void fill(kernels::TokenEntropyRowGradients& p) const;
};

// (dhidden, dweight, dbias), those that are not wanted empty; entropy, anchor, log_sum as the forward op gave them.
using LinearTokenEntropyGradients = std::tuple<Tensor, Tensor, Tensor>;

LinearTokenEntropyGradients linear_token_entropy_backward_meta(
    const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& entropy, const Tensor& anchor,
    const Tensor& log_sum, const OptionalTensor& dlogprob, const OptionalTensor& dentropy, const OptionalTensor& dlse,
    const OptionalTensor& bias, std::optional<double> softcap, double temperature, c10::SymInt ignore_index,
    std::array<bool, 3> wanted, const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
    const Numbers& numbers);
LinearTokenEntropyGradients linear_token_entropy_backward_cpu(
    const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& entropy, const Tensor& anchor,
    const Tensor& log_sum, const OptionalTensor& dlogprob, const OptionalTensor& dentropy, const OptionalTensor& dlse,
    const OptionalTensor& bias, std::optional<double> softcap, double temperature, int64_t ignore_index,
    std::array<bool, 3> wanted, const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
    const Numbers& numbers);
LinearTokenEntropyGradients linear_token_entropy_backward_run(
    const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& entropy, const Tensor& anchor,
    const Tensor& log_sum, const OptionalTensor& dlogprob, const OptionalTensor& dentropy, const OptionalTensor& dlse,
    const OptionalTensor& bias, std::optional<double> softcap, double temperature, int64_t ignore_index,
    std::array<bool, 3> wanted, const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
    const LogitBackend& backend);

// ---- grpo_select ----------------------------------------------------------------------------------------------------
struct GrpoSelectArguments {
  Tensor logprob, old_logprob, advantage, mask;
  c10::string_view mode;
  c10::SymInt seed;
  double cov_ratio, cov_lower, cov_upper, clip_low;
  std::optional<double> clip_high;
  c10::SymInt minimum;
  Numbers numbers;
};
Tensor grpo_select_cpu(const GrpoSelectArguments& arguments);
Tensor grpo_select_meta(const GrpoSelectArguments& arguments);
// with_workspace: the launcher is CUDA's, whose workspace is allocated here.
Tensor grpo_select_run(GrpoSelectArguments arguments, void (*launch)(const kernels::GrpoSelect&), bool with_workspace);

// A backend as the dispatcher calls it.
template <Tensor (*run)(const GrpoSelectArguments&)>
Tensor grpo_select_entry(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage, const Tensor& mask,
                         c10::string_view mode, c10::SymInt seed, double cov_ratio, double cov_lower, double cov_upper,
                         double clip_low, std::optional<double> clip_high, c10::SymInt minimum,
                         const Numbers& numbers) {
  return run({logprob, old_logprob, advantage, mask, mode, std::move(seed), cov_ratio, cov_lower, cov_upper, clip_low,
              clip_high, std::move(minimum), numbers});
}
using GrpoSelectSchema = decltype(grpo_select_entry<grpo_select_cpu>);

// ---- grpo_loss ------------------------------------------------------------------------------------------------------
struct GrpoLossArguments {
  Tensor logprob, old_logprob, advantage, mask;
  OptionalTensor selected, ref_logprob, ref_kl_weight, entropy, normalizer;
  c10::string_view mode, aggregate;
  double clip_low;
  std::optional<double> clip_high, dual_clip;
  double kl_cov_coef;
  c10::string_view ref_kl;
  double ref_kl_coef, entropy_coef;
  std::optional<double> delta;
  double tau_pos, tau_neg, vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg, gppo_beta1, gppo_beta2,
      dro_beta;
  bool statistics, keep_slope;
  Numbers numbers;
};
// (loss, token_loss, stats, slope, weight); stats is empty without statistics, slope [B, T] without
// keep_slope; weight is [B].
using GrpoLossOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
GrpoLossOutputs grpo_loss_autograd(const GrpoLossArguments& arguments);
GrpoLossOutputs grpo_loss_meta(const GrpoLossArguments& arguments);
GrpoLossOutputs grpo_loss_cpu(const GrpoLossArguments& arguments);
GrpoLossOutputs grpo_loss_run(const GrpoLossArguments& arguments, void (*launch)(const kernels::GrpoLossForward&),
                              bool with_workspace);

template <GrpoLossOutputs (*run)(const GrpoLossArguments&)>
GrpoLossOutputs grpo_loss_entry(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage,
                                const Tensor& mask, const OptionalTensor& selected, const OptionalTensor& ref_logprob,
                                const OptionalTensor& ref_kl_weight, const OptionalTensor& entropy,
                                const OptionalTensor& normalizer, c10::string_view mode, c10::string_view aggregate,
                                double clip_low, std::optional<double> clip_high, std::optional<double> dual_clip,
                                double kl_cov_coef, c10::string_view ref_kl, double ref_kl_coef, double entropy_coef,
                                std::optional<double> delta, double tau_pos, double tau_neg, double vespo_k_pos,
                                double vespo_lambda_pos, double vespo_k_neg, double vespo_lambda_neg, double gppo_beta1,
                                double gppo_beta2, double dro_beta, bool statistics, bool keep_slope,
                                const Numbers& numbers) {
  return run(
      {logprob,          old_logprob,  advantage,  mask,     selected,   ref_logprob, ref_kl_weight,    entropy,
       normalizer,       mode,         aggregate,  clip_low, clip_high,  dual_clip,   kl_cov_coef,      ref_kl,
       ref_kl_coef,      entropy_coef, delta,      tau_pos,  tau_neg,    vespo_k_pos, vespo_lambda_pos, vespo_k_neg,
       vespo_lambda_neg, gppo_beta1,   gppo_beta2, dro_beta, statistics, keep_slope,  numbers});
}
using GrpoLossSchema = decltype(grpo_loss_entry<grpo_loss_cpu>);

// (dlogprob, dentropy), both [B, T]; dentropy is empty without of_entropy.
std::tuple<Tensor, Tensor> grpo_loss_backward_meta(const OptionalTensor& dloss, const OptionalTensor& dtoken_loss,
                                                   const Tensor& slope, const Tensor& weight, const Tensor& mask,
                                                   double entropy_coef, bool of_entropy, const Numbers& numbers);
std::tuple<Tensor, Tensor> grpo_loss_backward_cpu(const OptionalTensor& dloss, const OptionalTensor& dtoken_loss,
                                                  const Tensor& slope, const Tensor& weight, const Tensor& mask,
                                                  double entropy_coef, bool of_entropy, const Numbers& numbers);
std::tuple<Tensor, Tensor> grpo_loss_backward_run(const OptionalTensor& dloss, const OptionalTensor& dtoken_loss,
                                                  const Tensor& slope, const Tensor& weight, const Tensor& mask,
                                                  double entropy_coef, bool of_entropy, const Numbers& numbers,
                                                  void (*launch)(const kernels::GrpoLossBackward&));

// ---- window_entropy --------------------------------------------------------------------------------------------------
// (mean, count)
std::tuple<Tensor, Tensor> window_entropy_autograd(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                                   c10::SymInt before, c10::SymInt after, bool shrink);
std::tuple<Tensor, Tensor> window_entropy_autocast(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                                   c10::SymInt before, c10::SymInt after, bool shrink);
std::tuple<Tensor, Tensor> window_entropy_meta(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                               c10::SymInt before, c10::SymInt after, bool shrink);
std::tuple<Tensor, Tensor> window_entropy_cpu(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                              int64_t before, int64_t after, bool shrink);
std::tuple<Tensor, Tensor> window_entropy_run(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                              int64_t before, int64_t after, bool shrink,
                                              void (*launch)(const kernels::WindowEntropyForward&),
                                              bool with_workspace);
Tensor window_entropy_backward_meta(const Tensor& dmean, const Tensor& count, const Tensor& mask, c10::SymInt before,
                                    c10::SymInt after);
Tensor window_entropy_backward_cpu(const Tensor& dmean, const Tensor& count, const Tensor& mask, int64_t before,
                                   int64_t after);
Tensor window_entropy_backward_run(const Tensor& dmean, const Tensor& count, const Tensor& mask, int64_t before,
                                   int64_t after, void (*launch)(const kernels::WindowEntropyBackward&),
                                   bool with_workspace);

// (high, threshold); _composite: of torch's own operators, for every device.
std::tuple<Tensor, Tensor> window_select_autograd(const Tensor& mean, const Tensor& count, c10::string_view threshold,
                                                  double level, c10::string_view scope, const Numbers& numbers);
std::tuple<Tensor, Tensor> window_select_cpu(const Tensor& mean, const Tensor& count, c10::string_view threshold,
                                             double level, c10::string_view scope, const Numbers& numbers);
std::tuple<Tensor, Tensor> window_select_meta(const Tensor& mean, const Tensor& count, c10::string_view threshold,
                                              double level, c10::string_view scope, const Numbers& numbers);
std::tuple<Tensor, Tensor> window_select_composite(const Tensor& mean, const Tensor& count, c10::string_view threshold,
                                                   double level, c10::string_view scope, const Numbers& numbers);

}  // namespace isentrope::ops
