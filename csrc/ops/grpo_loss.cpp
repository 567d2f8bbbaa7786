#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/grpo_arguments.h"
#include "csrc/ops/grpo_loss_cpu.h"
#include "csrc/ops/grpo_rule.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/result_memory.h"

namespace isentrope::ops {

using namespace kernels;

// ---- the first pass, over torch's threads ---------------------------------------------------------------------------

int64_t grpo_segment_grain(int64_t length) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, std::min(length, kGrpoSegment)));
}

GrpoCentre grpo_centre(const GrpoLossForward& p, bool means, std::vector<GrpoMoments<double>>& sequences) {
  static const auto moments = ISENTROPE_PICK(grpo_moments);
  const int64_t segments = grpo_segments(p.length);
  std::vector<GrpoMoments<double>> partial(p.batch * segments);
  at::parallel_for(0, p.batch * segments, grpo_segment_grain(p.length),
                   [&](int64_t begin, int64_t end) { moments(p, means, begin, end, partial.data()); });
  sequences.assign(p.batch, GrpoMoments<double>{});
  GrpoMoments<double> all{};
  GrpoCentre centre;
  for (int64_t row = 0; row < p.batch; ++row) {
    for (int64_t s = 0; s < segments; ++s) sequences[row] = grpo_add(sequences[row], partial[row * segments + s]);
    all = grpo_add(all, sequences[row]);
    centre.sequences += sequences[row].tokens > 0;
  }
  const double share = all.tokens > 0 ? 1.0 / all.tokens : 0.0;
  centre.tokens = all.tokens;
  centre.advantage = all.advantage * share;
  centre.logprob = all.logprob * share;
  centre.entropy = all.entropy * share;
  return centre;
}

namespace {

constexpr const char* kLoss = "grpo_loss";
constexpr const char* kBackward = "grpo_loss_backward";

// ---- checks ---------------------------------------------------------------------------------------------------------

void check_arguments(const GrpoLossArguments& a) {
  check_logprob(kLoss, a.logprob);
  check_values(kLoss, "old_logprob", a.old_logprob, a.logprob);
  check_values(kLoss, "advantage", a.advantage, a.logprob);
  check_like_logprob(kLoss, "mask", a.mask, a.logprob);
  if (a.ref_logprob) check_values(kLoss, "ref_logprob", *a.ref_logprob, a.logprob);
  if (a.ref_kl_weight) check_values(kLoss, "ref_kl_weight", *a.ref_kl_weight, a.logprob);
  if (a.entropy) check_values(kLoss, "entropy", *a.entropy, a.logprob);
  if (a.selected) {
    check_dtype(kLoss, "selected", *a.selected, {at::kBool});
    check_like_logprob(kLoss, "selected", *a.selected, a.logprob);
  }
  if (a.normalizer) {
    OP_CHECK(kLoss, a.normalizer->sym_numel() == 1, "normalizer has shape ", a.normalizer->sym_sizes(),
             "; wanted one number");
    check_device(kLoss, "normalizer", *a.normalizer, "logprob", a.logprob);
  }
}
// [B, T], not initialised: of what an op that runs returns, and of a Meta entry.
Tensor made(const Tensor& like, at::ScalarType type) {
  return like.is_cpu() ? result_like(like, type) : at::empty(like.sizes(), like.options().dtype(type));
}
Tensor made_up(const Tensor& like, at::ScalarType type) {
  return at::empty_symint(like.sym_sizes(), like.options().dtype(type).memory_format(at::MemoryFormat::Contiguous));
}

GrpoLossOutputs empty_outputs(const Tensor& logprob, bool statistics, bool keep_slope,
                              Tensor (*make)(const Tensor&, at::ScalarType)) {
  const at::ScalarType type = compute_type(logprob);
  const auto options = logprob.options().dtype(type);
  return {at::empty({}, options), make(logprob, type),
          at::empty({statistics ? kGrpoStats : 0}, options.dtype(at::kFloat)),
          keep_slope ? make(logprob, type) : at::empty({0}, options), at::empty_symint({logprob.sym_size(0)}, options)};
}
// ---- the CPU's launchers: segments over torch's threads -------------------------------------------------------------

template <class T>
void forward_as(const GrpoLossForward& p) {
  static const auto forward = ISENTROPE_PICK(grpo_loss_forward);
  std::vector<GrpoMoments<double>> sequences;
  const GrpoCentre centre = grpo_centre(p, p.stats != nullptr, sequences);
  std::vector<GrpoSequence<double>> known(p.batch);
  for (int64_t row = 0; row < p.batch; ++row)
    known[row] = grpo_sequence(p.rule, sequences[row].log_ratio, sequences[row].tokens);
  const int64_t segments = grpo_segments(p.length);
  std::vector<GrpoTerms<double>> partial(p.batch * segments);
  at::parallel_for(0, p.batch * segments, grpo_segment_grain(p.length),
                   [&](int64_t begin, int64_t end) { forward(p, centre, known.data(), begin, end, partial.data()); });
  GrpoTerms<double> sums;
  for (int k = 0; k < kGrpoTerms; ++k) sums.term[k] = grpo_neutral(k);
  double loss = 0;
  for (int64_t row = 0; row < p.batch; ++row) {
    const double weight =
        grpo_weight(p.rule.aggregate, centre, sequences[row].tokens, p.length, static_cast<const T*>(p.normalizer));
    static_cast<T*>(p.weight)[row] = static_cast<T>(weight);
    for (int64_t s = row * segments; s < (row + 1) * segments; ++s) {
      if (weight != 0) loss += weight * partial[s].term[kSumLoss];
      for (int k = 0; k < kGrpoTerms; ++k) sums.term[k] = grpo_merge(k, sums.term[k], partial[s].term[k]);
    }
  }
  *static_cast<T*>(p.loss) = static_cast<T>(loss);
  if (p.stats != nullptr) grpo_statistics(centre, sums, p.stats);
}

void forward_on_cpu(const GrpoLossForward& p) {
  p.dtype == DType::kDouble ? forward_as<double>(p) : forward_as<float>(p);
}

void backward_on_cpu(const GrpoLossBackward& p) {
  static const auto backward = ISENTROPE_PICK(grpo_loss_backward);
  at::parallel_for(0, p.batch * grpo_segments(p.length), grpo_segment_grain(p.length),
                   [&](int64_t begin, int64_t end) { backward(p, begin, end); });
}
}  // namespace

// ---- grpo_loss ------------------------------------------------------------------------------------------------------

GrpoLossOutputs grpo_loss_run(const GrpoLossArguments& given, void (*launch)(const GrpoLossForward&),
                              bool with_workspace) {
  check_arguments(given);
  const GrpoLossArguments a = with_grpo_numbers(given);
  GrpoLossForward p;
  p.rule = grpo_rule(a);
  const at::ScalarType type = compute_type(a.logprob);
  const Tensor logprob = as(a.logprob, type), old_logprob = as(a.old_logprob, type), advantage = as(a.advantage, type),
               mask = as(a.mask, at::kBool), selected = as(a.selected, at::kBool),
               ref_logprob = as(a.ref_logprob, type), ref_kl_weight = as(a.ref_kl_weight, type),
               entropy = as(a.entropy, type), normalizer = as(a.normalizer, type);
  const auto outputs = empty_outputs(a.logprob, a.statistics, a.keep_slope, made);
  const auto& [loss, token_loss, stats, slope, weight] = outputs;
  p.dtype = dtype_of(type);
  p.batch = logprob.size(0);
  p.length = logprob.size(1);
  p.logprob = data(logprob);
  p.old_logprob = data(old_logprob);
  p.advantage = data(advantage);
  p.mask = mask.const_data_ptr<bool>();
  p.selected = static_cast<const bool*>(data(selected));
  p.ref_logprob = data(ref_logprob);
  p.ref_kl_weight = data(ref_kl_weight);
  p.entropy = data(entropy);
  p.normalizer = data(normalizer);
  p.loss = loss.mutable_data_ptr();
  p.token_loss = token_loss.mutable_data_ptr();
  p.stats = a.statistics ? stats.mutable_data_ptr<float>() : nullptr;
  p.slope = a.keep_slope ? slope.mutable_data_ptr() : nullptr;
  p.weight = weight.mutable_data_ptr();
  Tensor workspace;
  if (with_workspace) {
    workspace =
        at::empty({static_cast<int64_t>(grpo_loss_workspace(p.batch, p.length))}, logprob.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
  }
  launch(p);
  return outputs;
}

GrpoLossOutputs grpo_loss_cpu(const GrpoLossArguments& a) { return grpo_loss_run(a, forward_on_cpu, false); }

GrpoLossOutputs grpo_loss_meta(const GrpoLossArguments& a) {
  check_arguments(a);
  if (!a.numbers) grpo_rule(a);  // else they are looked at when the op runs
  return empty_outputs(a.logprob, a.statistics, a.keep_slope, made_up);
}

// ---- backward -------------------------------------------------------------------------------------------------------

namespace {

void check_backward(const OptionalTensor& dloss, const OptionalTensor& dtoken_loss, const Tensor& slope,
                    const Tensor& weight, const Tensor& mask) {
  check_dtype(kBackward, "slope", slope, {at::kFloat, at::kDouble});
  OP_CHECK(kBackward, slope.dim() == 2, "slope has shape ", slope.sym_sizes(), "; wanted [B, T]");
  check_dtype(kBackward, "weight", weight, {slope.scalar_type()});
  check_shape(kBackward, "weight", weight, {slope.sym_size(0)}, "[B]");
  check_shape(kBackward, "mask", mask, slope.sym_sizes(), "[B, T], as slope");
  check_device(kBackward, "mask", mask, "slope", slope);
  check_device(kBackward, "weight", weight, "slope", slope);
  if (dloss) {
    OP_CHECK(kBackward, dloss->sym_numel() == 1, "dloss has shape ", dloss->sym_sizes(), "; wanted one number");
    check_device(kBackward, "dloss", *dloss, "slope", slope);
  }
  if (dtoken_loss) {
    check_shape(kBackward, "dtoken_loss", *dtoken_loss, slope.sym_sizes(), "[B, T], as slope");
    check_device(kBackward, "dtoken_loss", *dtoken_loss, "slope", slope);
  }
}

std::tuple<Tensor, Tensor> empty_gradients(const Tensor& slope, bool of_entropy,
                                           Tensor (*make)(const Tensor&, at::ScalarType)) {
  const at::ScalarType type = slope.scalar_type();
  return {make(slope, type), of_entropy ? make(slope, type) : at::empty({0}, slope.options())};
}

}  // namespace

std::tuple<Tensor, Tensor> grpo_loss_backward_run(const OptionalTensor& dloss_in, const OptionalTensor& dtoken_loss_in,
                                                  const Tensor& slope_in, const Tensor& weight_in,
                                                  const Tensor& mask_in, double entropy_coef, bool of_entropy,
                                                  const Numbers& numbers, void (*launch)(const GrpoLossBackward&)) {
  read_numbers(kBackward, numbers, {&entropy_coef});
  check_backward(dloss_in, dtoken_loss_in, slope_in, weight_in, mask_in);
  const at::ScalarType type = slope_in.scalar_type();
  const Tensor slope = slope_in.contiguous(), weight = weight_in.contiguous(), mask = as(mask_in, at::kBool),
               dloss = as(dloss_in, type), dtoken_loss = as(dtoken_loss_in, type);
  const auto gradients = empty_gradients(slope, of_entropy, made);
  const auto& [dlogprob, dentropy] = gradients;
  GrpoLossBackward p;
  p.dtype = dtype_of(type);
  p.batch = slope.size(0);
  p.length = slope.size(1);
  p.entropy_coef = entropy_coef;
  p.dloss = data(dloss);
  p.dtoken_loss = data(dtoken_loss);
  p.slope = data(slope);
  p.weight = data(weight);
  p.mask = mask.const_data_ptr<bool>();
  p.dlogprob = dlogprob.mutable_data_ptr();
  p.dentropy = of_entropy ? dentropy.mutable_data_ptr() : nullptr;
  if (slope.numel() > 0) launch(p);
  return gradients;
}

std::tuple<Tensor, Tensor> grpo_loss_backward_cpu(const OptionalTensor& dloss, const OptionalTensor& dtoken_loss,
                                                  const Tensor& slope, const Tensor& weight, const Tensor& mask,
                                                  double entropy_coef, bool of_entropy, const Numbers& numbers) {
  return grpo_loss_backward_run(dloss, dtoken_loss, slope, weight, mask, entropy_coef, of_entropy, numbers,
                                backward_on_cpu);
}

std::tuple<Tensor, Tensor> grpo_loss_backward_meta(const OptionalTensor& dloss, const OptionalTensor& dtoken_loss,
                                                   const Tensor& slope, const Tensor& weight, const Tensor& mask,
                                                   double, bool of_entropy, const Numbers&) {
  check_backward(dloss, dtoken_loss, slope, weight, mask);
  return empty_gradients(slope, of_entropy, made_up);
}

// ---- autograd -------------------------------------------------------------------------------------------------------

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

GrpoLossOutputs call_forward(const GrpoLossArguments& a, bool keep_slope) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("isentrope::grpo_loss", "").typed<GrpoLossSchema>();
  return op.call(a.logprob, a.old_logprob, a.advantage, a.mask, a.selected, a.ref_logprob, a.ref_kl_weight, a.entropy,
                 a.normalizer, a.mode, a.aggregate, a.clip_low, a.clip_high, a.dual_clip, a.kl_cov_coef, a.ref_kl,
                 a.ref_kl_coef, a.entropy_coef, a.delta, a.tau_pos, a.tau_neg, a.vespo_k_pos, a.vespo_lambda_pos,
                 a.vespo_k_neg, a.vespo_lambda_neg, a.gppo_beta1, a.gppo_beta2, a.dro_beta, a.statistics, keep_slope,
                 a.numbers);
}

// Gradients of logprob and entropy; everything else is a constant.
struct GrpoLossFunction : torch::autograd::Function<GrpoLossFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logprob, const OptionalTensor& entropy,
                               const GrpoLossArguments& arguments) {
    auto [loss, token_loss, stats, slope, weight] = call_forward(arguments, true);
    ctx->set_materialize_grads(false);
    variable_list kept{slope, weight, arguments.mask};
    if (arguments.numbers) kept.push_back(arguments.numbers->get(kGrpoEntropyCoef));
    ctx->save_for_backward(kept);
    // slope is no constant: through it grpo_loss_backward refuses second derivatives, which are slopes of the slopes.
    ctx->mark_non_differentiable({stats, weight});
    ctx->saved_data["entropy_coef"] = arguments.entropy_coef;
    ctx->saved_data["of_entropy"] = entropy && entropy->requires_grad() && arguments.entropy_coef != 0;
    ctx->saved_data["logprob_type"] = static_cast<int64_t>(logprob.scalar_type());
    ctx->saved_data["entropy_type"] = static_cast<int64_t>((entropy ? *entropy : logprob).scalar_type());
    return {loss, token_loss, stats, slope, weight};
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::grpo_loss_backward", "")
                               .typed<decltype(grpo_loss_backward_cpu)>();
    variable_list gradients(3);
    OP_CHECK(kLoss, !d[3].defined(),
             "slope, which the backward pass reads, has no gradient; wanted that of loss or token_loss");
    if (!d[0].defined() && !d[1].defined()) return gradients;
    const auto saved = ctx->get_saved_variables();
    const bool of_entropy = ctx->saved_data["of_entropy"].toBool();
    auto optional = [](const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; };
    auto type = [&](const char* name) { return static_cast<at::ScalarType>(ctx->saved_data[name].toInt()); };
    auto [dlogprob, dentropy] = op.call(optional(d[0]), optional(d[1]), saved[0], saved[1], saved[2],
                                        ctx->saved_data["entropy_coef"].toDouble(), of_entropy,
                                        saved.size() > 3 ? Numbers(c10::List<Tensor>({saved[3]})) : std::nullopt);
    gradients[0] = dlogprob.to(type("logprob_type"));
    if (of_entropy) gradients[1] = dentropy.to(type("entropy_type"));
    return gradients;
  }
};

}  // namespace

GrpoLossOutputs grpo_loss_autograd(const GrpoLossArguments& arguments) {
  const Tensor& logprob = arguments.logprob;
  const OptionalTensor& entropy = arguments.entropy;
  check_differentiation(kLoss, {{"logprob", logprob},
                                {"old_logprob", arguments.old_logprob},
                                {"advantage", arguments.advantage},
                                {"entropy", entropy},
                                {"ref_logprob", arguments.ref_logprob},
                                {"ref_kl_weight", arguments.ref_kl_weight},
                                {"normalizer", arguments.normalizer}});
  const bool differentiable = logprob.requires_grad() || (entropy && entropy->requires_grad());
  if (!differentiable || !at::GradMode::is_enabled()) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(arguments, arguments.keep_slope);
  }
  const auto out = record<GrpoLossFunction>(logprob, entropy, arguments);
  // Whoever asks for slope is the same op in another transform of torch.func, to which it is no constant either.
  const at::AutoDispatchBelowADInplaceOrView guard;
  return {out[0], out[1], out[2], arguments.keep_slope ? out[3] : out[3].detach(), out[4]};
}

GrpoLoss grpo_loss(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage, const Tensor& mask,
                   const GrpoLossOptions& o) {
  auto [loss, token_loss, stats, slope, weight] =
      call_forward({logprob,       old_logprob,     advantage,          mask,          o.selected,
                    o.ref_logprob, o.ref_kl_weight, o.entropy,          o.normalizer,  o.mode,
                    o.aggregate,   o.clip_low,      o.clip_high,        o.dual_clip,   o.kl_cov_coef,
                    o.ref_kl,      o.ref_kl_coef,   o.entropy_coef,     o.delta,       o.tau_pos,
                    o.tau_neg,     o.vespo_k_pos,   o.vespo_lambda_pos, o.vespo_k_neg, o.vespo_lambda_neg,
                    o.gppo_beta1,  o.gppo_beta2,    o.dro_beta,         o.statistics,  false,
                    std::nullopt},
                   false);
  return {loss, token_loss, stats};
}

// ---- statistics -----------------------------------------------------------------------------------------------------

std::vector<std::string> grpo_stat_names() { return {std::begin(kGrpoStatNames), std::end(kGrpoStatNames)}; }

Tensor grpo_combine_stats(const Tensor& stats) {
  OP_CHECK("grpo_combine_stats", stats.dim() == 2 && stats.size(0) >= 1 && stats.size(1) == kGrpoStats,
           "stats has shape ", stats.sizes(), "; wanted [calls, ", static_cast<int>(kGrpoStats),
           "], at least one call");
  const Tensor s = stats.to(at::kDouble), tokens = s.select(1, kTokens);
  const Tensor share = (tokens / tokens.sum().clamp_min(1)).unsqueeze(1);
  Tensor combined = (s * share).sum(0);
  auto about_means = [&](int mean, int other_mean, const Tensor& moment) {
    return ((moment + s.select(1, mean) * s.select(1, other_mean)) * share.squeeze(1)).sum() -
           combined[mean] * combined[other_mean];
  };
  // Moments about the means of each call become moments about the means of all.
  const Tensor variance = about_means(kEntropyMean, kEntropyMean, s.select(1, kEntropyStd).square());
  const Tensor covariance = about_means(kAdvantageMean, kLogprobMean, s.select(1, kCovMean));
  const Tensor none = at::full({}, -std::numeric_limits<double>::infinity(), s.options());
  const Tensor largest = at::where(tokens.unsqueeze(1) > 0, s, none).amax(0);
  combined[kTokens].copy_(tokens.sum());
  combined[kSequences].copy_(s.select(1, kSequences).sum());
  combined[kEntropyStd].copy_(variance.clamp_min(0).sqrt());
  combined[kCovMean].copy_(covariance);
  for (int k : {kRatioMax, kCovMax}) combined[k].copy_(at::where(combined[kTokens] > 0, largest[k], combined[k]));
  return combined.to(at::kFloat);
}

}  // namespace isentrope::ops
