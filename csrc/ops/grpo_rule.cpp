#include "csrc/ops/grpo_rule.h"

#include <cmath>
#include <limits>
#include <string>

#include "csrc/ops/check.h"
#include "csrc/ops/grpo_arguments.h"
#include "csrc/ops/numbers.h"

namespace isentrope::ops {

using namespace kernels;

namespace {

constexpr const char* kLoss = "grpo_loss";
constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr const char* kModes[] = {"clip",     "clip_higher", "clip_cov",  "kl_cov",  "gspo",    "luspo",
                                  "geo_mean", "cispo",       "reinforce", "dppo_tv", "dppo_kl", "sapo",
                                  "vespo",    "ce_gppo",     "dro",       "gpg"};
enum Mode {
  kClip,
  kClipHigher,
  kClipCov,
  kKlCov,
  kGspo,
  kLuspo,
  kGeoMean,
  kCispo,
  kReinforce,
  kDppoTv,
  kDppoKl,
  kSapo,
  kVespo,
  kCeGppo,
  kDro,
  kGpg
};
constexpr GrpoForm kForms[] = {
    GrpoForm::kTokenRatio,    GrpoForm::kTokenRatio,     GrpoForm::kTokenRatio,    GrpoForm::kTokenRatio,
    GrpoForm::kSequenceRatio, GrpoForm::kSequenceRatio,  GrpoForm::kGeometricMean, GrpoForm::kClippedWeight,
    GrpoForm::kClippedWeight, GrpoForm::kTotalVariation, GrpoForm::kBinaryKl,      GrpoForm::kSoftGate,
    GrpoForm::kGammaWeight,   GrpoForm::kKeptGradient,   GrpoForm::kQuadratic,     GrpoForm::kUnitWeight};
static_assert(std::size(kModes) == kGpg + 1 && std::size(kForms) == kGpg + 1);
constexpr const char* kAggregates[] = {"token-mean",          "seq-mean-token-sum",
                                       "seq-mean-token-mean", "seq-mean-token-sum-norm",
                                       "token-sum-norm",      "token-sum"};
constexpr const char* kRefKls[] = {"k1", "k2", "k3", "k1+", "k3+", "k3_is"};

constexpr double kClipHigherUpper = 0.28;  // DAPO's upper clip (arXiv 2503.14476), the default of clip_higher
constexpr double kReinforceDelta = 2.0;    // verl's rollout_is_threshold
constexpr double kDppoDelta = 20.0;  // the fallback of verl's dppo: far out, since truncation biases (2602.04879, 5.4)

bool any_of(Mode mode, std::initializer_list<Mode> modes) {
  for (const Mode one : modes)
    if (mode == one) return true;
  return false;
}

double positive(const char* name, double value) {
  OP_CHECK(kLoss, std::isfinite(value) && value > 0, name, " is ", value, "; wanted a number above 0");
  return value;
}

// The bound of the ratio itself: what is given as dual_clip or delta, or the mode's own.
double ratio_bound(Mode mode, const GrpoLossArguments& a, double upper) {
  const std::string name(a.mode);
  if (a.dual_clip) {
    OP_CHECK(kLoss, any_of(mode, {kClip, kClipHigher, kCeGppo}), "dual_clip is given with mode ", name,
             "; it belongs to clip, clip_higher and ce_gppo, wanted None");
    OP_CHECK(kLoss, std::isfinite(*a.dual_clip) && *a.dual_clip > 1, "dual_clip is ", *a.dual_clip,
             "; wanted above 1, or None");
    OP_CHECK(kLoss, !a.delta, "dual_clip is ", *a.dual_clip, " and delta ", *a.delta,
             "; both bound the loss where the advantage is negative, wanted one of them");
    return *a.dual_clip;
  }
  const bool truncates = any_of(mode, {kReinforce, kDppoTv, kDppoKl});
  if (!a.delta) return mode == kReinforce ? kReinforceDelta : truncates ? kDppoDelta : kInfinity;
  const double delta = positive("delta", *a.delta);
  if (truncates) return delta;
  OP_CHECK(
      kLoss, any_of(mode, {kClip, kClipHigher, kGspo, kLuspo, kCeGppo}), "delta is given with mode ", name,
      "; it bounds the ratio of clip, clip_higher, gspo, luspo, ce_gppo, reinforce, dppo_tv and dppo_kl, wanted None");
  OP_CHECK(kLoss, delta > upper, "delta is ", delta, "; wanted above 1 + clip_high, which is ", upper,
           ": below it the clip holds the ratio already where the advantage is positive");
  return delta;
}

}  // namespace

GrpoLossArguments with_grpo_numbers(GrpoLossArguments a) {
  read_numbers(kLoss, a.numbers,
               {&a.clip_low, optional_number(a.clip_high), optional_number(a.dual_clip), &a.kl_cov_coef, &a.ref_kl_coef,
                &a.entropy_coef, optional_number(a.delta), &a.tau_pos, &a.tau_neg, &a.vespo_k_pos, &a.vespo_lambda_pos,
                &a.vespo_k_neg, &a.vespo_lambda_neg, &a.gppo_beta1, &a.gppo_beta2, &a.dro_beta});
  return a;
}

GrpoLossRule grpo_rule(const GrpoLossArguments& a) {
  GrpoLossRule rule;
  const auto mode = static_cast<Mode>(index_of(kLoss, "mode", a.mode, kModes));
  const bool selects = mode == kClipCov || mode == kKlCov;
  OP_CHECK(kLoss, selects == a.selected.has_value(), "mode is ", std::string(a.mode), ", and selected is ",
           selects ? "missing; wanted the tokens that grpo_select(logprob, old_logprob, advantage, mask, "
                     "mode=..., seed=...) chooses"
                   : "given, which only clip_cov and kl_cov use; wanted None");
  rule.form = kForms[mode];
  const double low = checked(kLoss, "clip_low", a.clip_low, 0.0);
  const double high =
      checked(kLoss, "clip_high", a.clip_high.value_or(mode == kClipHigher ? kClipHigherUpper : a.clip_low), 0.0);
  // geo_mean clips log-ratios, dppo differences: their bounds are about 0.
  const double centre = any_of(mode, {kGeoMean, kDppoTv, kDppoKl}) ? 0.0 : 1.0;
  rule.lower = centre - low;
  rule.upper = centre + high;
  rule.dual_clip = ratio_bound(mode, a, rule.upper);
  if (any_of(mode, {kKlCov, kGpg, kReinforce})) {
    rule.lower = 0;
    rule.upper = mode == kReinforce ? rule.dual_clip : kInfinity;
  }
  const double kl_cov_coef = checked(kLoss, "kl_cov_coef", a.kl_cov_coef, 0.0);
  if (mode == kClipCov) rule.drop = 1;
  if (mode == kKlCov) rule.penalty = kl_cov_coef;
  rule.tau_pos = positive("tau_pos", a.tau_pos);
  rule.tau_neg = positive("tau_neg", a.tau_neg);
  rule.k_pos = checked(kLoss, "vespo_k_pos", a.vespo_k_pos, 0.0);
  rule.lambda_pos = checked(kLoss, "vespo_lambda_pos", a.vespo_lambda_pos, 0.0);
  rule.k_neg = checked(kLoss, "vespo_k_neg", a.vespo_k_neg, 0.0);
  rule.lambda_neg = checked(kLoss, "vespo_lambda_neg", a.vespo_lambda_neg, 0.0);
  rule.kept_low = checked(kLoss, "gppo_beta1", a.gppo_beta1, 0.0);
  rule.kept_high = checked(kLoss, "gppo_beta2", a.gppo_beta2, 0.0);
  rule.quadratic = checked(kLoss, "dro_beta", a.dro_beta, 0.0);
  rule.ref_kl = static_cast<GrpoKl>(index_of(kLoss, "ref_kl", a.ref_kl, kRefKls));
  rule.ref_kl_coef = checked(kLoss, "ref_kl_coef", a.ref_kl_coef, 0.0);
  rule.entropy_coef = checked(kLoss, "entropy_coef", a.entropy_coef, std::numeric_limits<double>::lowest());
  rule.aggregate = static_cast<GrpoAggregate>(index_of(kLoss, "aggregate", a.aggregate, kAggregates));
  OP_CHECK(kLoss,
           mode != kLuspo ||
               (rule.aggregate != GrpoAggregate::kTokenMean && rule.aggregate != GrpoAggregate::kSequenceMeanTokenMean),
           "mode is luspo and aggregate \"", std::string(a.aggregate),
           "\", under which it is gspo; wanted one that sums over the tokens of a sequence: seq-mean-token-sum, "
           "seq-mean-token-sum-norm, token-sum-norm or token-sum");
  OP_CHECK(kLoss, rule.ref_kl_coef == 0 || a.ref_logprob, "ref_kl_coef is ", rule.ref_kl_coef,
           ", and ref_logprob is missing; wanted the log-probabilities of the reference policy");
  OP_CHECK(kLoss, !a.ref_kl_weight || a.ref_logprob,
           "ref_kl_weight is given, and ref_logprob is missing; wanted the "
           "log-probabilities of the reference policy, from which the weighted divergence is");
  OP_CHECK(kLoss, rule.entropy_coef == 0 || a.entropy, "entropy_coef is ", rule.entropy_coef,
           ", and entropy is missing; wanted the entropy that token_entropy gives");
  return rule;
}

}  // namespace isentrope::ops
