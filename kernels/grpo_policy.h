// The policy term of one token, in every form that grpo_loss has, for both backends. Names and symbols: kernels/grpo_loss.h.
//
// Policy term L of a token (sg: no gradient through it; clip to [1 - clip_low, 1 + clip_high]), and its source on arXiv:
//   clip, clip_higher  max(-A r, -A clip(r)); with a dual clip c at most -A c where A < 0        1707.06347, 1912.09729
//   clip_cov           max(-A r, -A clip(r)), and 0 on selected tokens                           2505.22617
//   kl_cov             -A r, plus kl_cov_coef |d| on selected tokens where |d| > z; no clip          2505.22617
//   gspo               as clip, with r = sg[s_i] exp(ℓ - sg ℓ), s_i = exp(mean_t (ℓ - ℓ_old)),
//                      that mean clamped to [-20, 10]                                            2507.18071
//   luspo              as gspo, under an aggregation that sums over the tokens of a sequence: its length weighs its loss
//                                                                                                2602.05261
//   geo_mean           -A g_i exp(e - sg e), e = d at most clip_high where A has no minus sign, else at least -clip_low, and
//                      g_i = exp(mean_t e), that mean clamped as for gspo. A zero has a sign too: a token whose A was
//                      multiplied by 0 has no term and keeps the side of its clip in the mean of its sequence  2507.20673
//   cispo              -sg[clip(r)] A ℓ                                                          2506.13585
//   reinforce          -sg[min(r, delta)] A ℓ
//   dppo_tv, dppo_kl   -sg[min(r, delta)] A ℓ, and 0 where A > 0 and D > clip_high, or A ≤ 0 and D < -clip_low; D of
//                      π = exp ℓ, at most 1: π - π_old, and the sign of that times
//                      π_old (ℓ_old - ℓ) + (1 - π_old) log((1 - π_old + 1e-8)/(1 - π + 1e-8))    2602.04879
//   sapo               -A 4/τ σ(τ(r - 1)), σ the logistic function, τ = tau_pos where A > 0, else tau_neg    2511.20347
//   vespo              -sg[φ(w_i)] A ℓ, φ(w) = exp(λ(1 - w)) w^k with (k, λ) of the sign of A, w_i = exp(Σ_t d), that sum
//                      clamped to [log 1e-8, 20]                                                 2602.10693
//   ce_gppo            -β₁ (1 - clip_low) A exp(ℓ - sg ℓ) where r < 1 - clip_low and A < 0, -β₂ (1 + clip_high) A exp(ℓ - sg ℓ)
//                      where r > 1 + clip_high and A > 0, else -A r: what the clip leaves out keeps a gradient    2509.20712
//   dro                -A ℓ + dro_beta/2 d²                                                      2405.19107
//   gpg                -A ℓ                                                                      2504.02546
// delta, the two-sided clip (2505.07291): r of clip, clip_higher, gspo, luspo and ce_gppo is at most delta, which lies above
// 1 + clip_high: at most -A delta where A < 0. It is the dual clip, by another name and for the ratios of sequences too.
#pragma once
#include <cmath>

#include "kernels/gpu/philox.h"  // ISENTROPE_HOST_DEVICE

namespace isentrope::kernels {

constexpr double kMaxLogRatio = 20.0;          // keeps exp(d) finite in float; far outside any clip
constexpr double kMaxSequenceLogRatio = 10.0;  // of gspo and geo_mean, whose ratio stands for a whole sequence
constexpr double kLeastWeightLogRatio = -18.420680743952367;  // of vespo: log 1e-8
constexpr double kLogRatioRounding = 1.0 / (1 << 20);         // z of kernels/grpo_loss.h, relative
constexpr double kLeastLogprob = -80.0;                       // under it π counts as e^-80: no D knows the difference
constexpr double kLeastRest = 1e-8;                           // added to 1 - π in the D of dppo_kl

// ---- the forms ------------------------------------------------------------------------------------------------------

enum class GrpoForm {
  kTokenRatio,      // -A r with a clip
  kSequenceRatio,   // the same with the ratio of the sequence
  kClippedWeight,   // -sg[clip(r)] A ℓ
  kUnitWeight,      // -A ℓ
  kTotalVariation,  // -sg[min(r, cap)] A ℓ within a band of π - π_old
  kBinaryKl,        // the same within a band of the divergence between being this token and being another
  kSoftGate,        // -A 4/τ σ(τ(r - 1))
  kGeometricMean,   // -A times the geometric mean of ratios clipped one by one
  kGammaWeight,     // -sg[φ(w)] A ℓ
  kKeptGradient,    // as kTokenRatio, with a gradient outside the clip
  kQuadratic        // -A ℓ + β/2 d²
};

// What a form looks at beside ℓ and A: ℓ_old, exp d, a number of the sequence, a further exponential or logarithm of the token.
ISENTROPE_HOST_DEVICE constexpr bool grpo_of_sequence(GrpoForm form) {
  return form == GrpoForm::kSequenceRatio || form == GrpoForm::kGeometricMean || form == GrpoForm::kGammaWeight;
}
ISENTROPE_HOST_DEVICE constexpr bool grpo_has_factor(GrpoForm form) {
  return form == GrpoForm::kTotalVariation || form == GrpoForm::kBinaryKl || form == GrpoForm::kSoftGate;
}
ISENTROPE_HOST_DEVICE constexpr bool grpo_has_ratio(GrpoForm form) {
  return form == GrpoForm::kTokenRatio || form == GrpoForm::kClippedWeight || form == GrpoForm::kKeptGradient ||
         grpo_has_factor(form);
}
ISENTROPE_HOST_DEVICE constexpr bool grpo_has_old(GrpoForm form) {
  return grpo_has_ratio(form) || form == GrpoForm::kGeometricMean || form == GrpoForm::kQuadratic;
}

enum class GrpoKl { kK1, kK2, kK3, kK1Plus, kK3Plus, kK3Is };
enum class GrpoAggregate {
  kTokenMean,
  kSequenceMeanTokenSum,
  kSequenceMeanTokenMean,
  kSequenceMeanTokenSumNorm,
  kTokenSumNorm,
  kTokenSum
};

// A mode as numbers.
struct GrpoLossRule {
  GrpoForm form = GrpoForm::kTokenRatio;
  double drop = 0;     // 1: selected tokens lose their policy term (clip_cov)
  double lower = 0.8;  // the clip, of r, e or D; 0 and infinity: none
  double upper = 1.2;
  double dual_clip = 0;  // c, or delta; infinity for none
  double penalty = 0;    // kl_cov_coef of kl_cov
  GrpoKl ref_kl = GrpoKl::kK3;
  double ref_kl_coef = 0;
  double entropy_coef = 0;
  GrpoAggregate aggregate = GrpoAggregate::kTokenMean;
  double tau_pos = 1, tau_neg = 1;     // of kSoftGate
  double k_pos = 0, lambda_pos = 0;    // of kGammaWeight, where A ≥ 0,
  double k_neg = 0, lambda_neg = 0;    // and where A < 0
  double kept_low = 0, kept_high = 0;  // β₁, β₂ of kKeptGradient
  double quadratic = 0;                // β of kQuadratic
};

template <class T>
struct GrpoToken {
  T logprob, old_logprob, advantage, entropy;
  T counts, selected;  // 0 or 1
};

// ---- ratios ---------------------------------------------------------------------------------------------------------

template <class T>
ISENTROPE_HOST_DEVICE inline T grpo_clamp(T x, T low, T high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}
template <class T>
ISENTROPE_HOST_DEVICE inline T grpo_log_ratio(T logprob, T old_logprob) {
  return grpo_clamp(logprob - old_logprob, -T(kMaxLogRatio), T(kMaxLogRatio));
}
// 1, -1, or 0 where d is no more than rounding makes of two equal log-probabilities.
template <class T>
ISENTROPE_HOST_DEVICE inline T grpo_sign(T d, T logprob, T old_logprob) {
  const T larger = logprob > old_logprob ? logprob : old_logprob;  // neither is above 0
  const T zone = T(kLogRatioRounding) * (larger < T(-1) ? -larger : T(1));
  return (d > zone ? T(1) : T(0)) - (d < -zone ? T(1) : T(0));
}

// What a token adds to the sum of its sequence, from ℓ - ℓ_old and A; 0 where both are.
template <GrpoForm form, class T>
ISENTROPE_HOST_DEVICE inline T grpo_sequence_term(const GrpoLossRule& rule, T difference, T advantage) {
  if constexpr (form == GrpoForm::kGeometricMean) {
    const T low = T(rule.lower), high = T(rule.upper), most = difference > high ? high : difference;
    const T least = difference < low ? low : difference;
    return copysign(T(1), advantage) > T(0) ? most : least;
  } else if constexpr (form == GrpoForm::kGammaWeight) {
    return grpo_clamp(difference, -T(kMaxLogRatio), T(kMaxLogRatio));
  } else {
    return difference;
  }
}
// The same of a form known at run time, which is the same for every token: a uniform branch.
template <class T>
ISENTROPE_HOST_DEVICE inline T grpo_sequence_term(const GrpoLossRule& rule, T difference, T advantage) {
  switch (rule.form) {
    case GrpoForm::kGeometricMean:
      return grpo_sequence_term<GrpoForm::kGeometricMean>(rule, difference, advantage);
    case GrpoForm::kGammaWeight:
      return grpo_sequence_term<GrpoForm::kGammaWeight>(rule, difference, advantage);
    default:
      return grpo_sequence_term<GrpoForm::kSequenceRatio>(rule, difference, advantage);
  }
}
// What is known of a sequence: the exponent of its ratio before its clamp, the ratio, and φ for A ≥ 0 and A < 0.
template <class T>
struct GrpoSequence {
  T log_ratio, ratio, weight_pos, weight_neg;
};
// From the sum of its terms, of whose mean the ratio is, for vespo of the sum itself. In double: a rounding of it is one of
// every token, and adds up.
ISENTROPE_HOST_DEVICE inline GrpoSequence<double> grpo_sequence(const GrpoLossRule& rule, double sum, double tokens) {
  if (!(tokens > 0) || !grpo_of_sequence(rule.form)) return {0, 0, 0, 0};
  if (rule.form != GrpoForm::kGammaWeight) {
    const double mean = sum / tokens;
    return {mean, exp(grpo_clamp(mean, -kMaxLogRatio, kMaxSequenceLogRatio)), 0, 0};
  }
  const double log_w = grpo_clamp(sum, kLeastWeightLogRatio, kMaxLogRatio), w = exp(log_w);
  return {sum, w, exp(rule.k_pos * log_w + rule.lambda_pos * (1 - w)),
          exp(rule.k_neg * log_w + rule.lambda_neg * (1 - w))};
}
template <class T>
ISENTROPE_HOST_DEVICE inline GrpoSequence<T> grpo_cast(const GrpoSequence<double>& s) {
  return {T(s.log_ratio), T(s.ratio), T(s.weight_pos), T(s.weight_neg)};
}

// ---- a further number of the token ----------------------------------------------------------------------------------

// exp(τ(1 - r)) of sapo; D of dppo_tv and dppo_kl. Math has exponential and logarithm of the backend.
template <GrpoForm form, class Math, class T>
ISENTROPE_HOST_DEVICE inline T grpo_factor(const GrpoLossRule& rule, T logprob, T old_logprob, T advantage, T exp_d) {
  static_assert(grpo_has_factor(form), "the form has no further number");
  const T least = T(kLeastLogprob);
  if constexpr (form == GrpoForm::kSoftGate) {
    const T tau = advantage > T(0) ? T(rule.tau_pos) : T(rule.tau_neg);
    const T x = tau * (T(1) - exp_d);
    return x < least ? T(0) : Math::exponential(grpo_clamp(x, least, -least));
  } else {
    const T p = Math::exponential(grpo_clamp(logprob, least, T(0)));  // rounding may take ℓ above 0
    const T p_old = Math::exponential(grpo_clamp(old_logprob, least, T(0)));
    if constexpr (form == GrpoForm::kTotalVariation) return p - p_old;
    const T rest = T(1) - p_old, floor = T(kLeastRest);
    const T kl = rest * Math::logarithm((rest + floor) / (T(1) - p + floor)) - p_old * (logprob - old_logprob);
    return p > p_old ? kl : -kl;
  }
}

// ---- the policy term ------------------------------------------------------------------------------------------------

// Its value, its derivative by ℓ, and 1 where the clip, below or above, or the dual clip took hold.
template <class T>
struct GrpoPolicy {
  T loss, slope, low, high, dual;
};
// ratio is that of the loss; inside is 0 where its logarithm was clamped, else 1; d as in the head of kernels/grpo_loss.h;
// factor is grpo_factor, or φ of the sequence.
template <GrpoForm form, class T>
ISENTROPE_HOST_DEVICE inline GrpoPolicy<T> grpo_policy(const GrpoLossRule& rule, const GrpoToken<T>& x, T d, T ratio,
                                                       T inside, T factor = T(0)) {
  const T lower = T(rule.lower), upper = T(rule.upper), clipped = grpo_clamp(ratio, lower, upper);
  const T below = ratio < lower ? T(1) : T(0), above = ratio > upper ? T(1) : T(0);
  if constexpr (form == GrpoForm::kUnitWeight) {
    return {-x.advantage * x.logprob, -x.advantage, T(0), T(0), T(0)};
  } else if constexpr (form == GrpoForm::kQuadratic) {
    const T beta = T(rule.quadratic), unclamped = x.logprob - x.old_logprob;
    return {-x.advantage * x.logprob + T(0.5) * beta * d * d, -x.advantage + beta * (unclamped == d ? d : T(0)), T(0),
            T(0), T(0)};
  } else if constexpr (form == GrpoForm::kClippedWeight) {
    return {-x.advantage * clipped * x.logprob, -x.advantage * clipped, below, above, T(0)};
  } else if constexpr (form == GrpoForm::kGammaWeight) {
    return {-x.advantage * factor * x.logprob, -x.advantage * factor, T(0), T(0), T(0)};
  } else if constexpr (form == GrpoForm::kSoftGate) {
    const T tau = x.advantage > T(0) ? T(rule.tau_pos) : T(rule.tau_neg), rest = T(1) + factor;
    return {-x.advantage * T(4) / tau / rest, -x.advantage * T(4) * ratio * factor / (rest * rest) * inside, T(0), T(0),
            T(0)};
  } else if constexpr (form == GrpoForm::kTotalVariation || form == GrpoForm::kBinaryKl) {
    const T cap = T(rule.dual_clip), weight = ratio > cap ? cap : ratio, gains = x.advantage > T(0) ? T(1) : T(0);
    const T high = gains * (factor > upper ? T(1) : T(0)), low = (T(1) - gains) * (factor < lower ? T(1) : T(0));
    const T keep = T(1) - high - low, pull = -x.advantage * weight * keep;
    return {pull * x.logprob, pull, low, high, keep * (ratio > cap ? T(1) : T(0))};
  } else if constexpr (form == GrpoForm::kGeometricMean) {
    const T difference = x.logprob - x.old_logprob, pull = -x.advantage * ratio;
    const T high = (x.advantage > T(0) ? T(1) : T(0)) * (difference > upper ? T(1) : T(0));
    const T low = (x.advantage < T(0) ? T(1) : T(0)) * (difference < lower ? T(1) : T(0));
    return {pull, high + low > T(0) ? T(0) : pull * inside, low, high, T(0)};
  } else {
    const T free = -x.advantage * ratio, bound = -x.advantage * clipped, pull = free * inside;
    const T held = bound > free ? T(1) : T(0), larger = bound > free ? bound : free;
    const T most = -x.advantage * T(rule.dual_clip);
    if constexpr (form == GrpoForm::kKeptGradient) {
      const T kept = bound * (x.advantage < T(0) ? T(rule.kept_low) : T(rule.kept_high));
      const T value = bound > free ? kept : free, dual_bound = x.advantage < T(0) ? most : value;
      const T dual = value > dual_bound ? T(1) : T(0), slope = bound > free ? kept : pull;
      return {value > dual_bound ? dual_bound : value, dual > T(0) ? T(0) : slope, held * below, held * above, dual};
    } else {
      const T dual_bound = x.advantage < T(0) ? most : larger;
      const T dual = larger > dual_bound ? T(1) : T(0);
      const T loss = larger > dual_bound ? dual_bound : larger;
      const T slope = held + dual > T(0) ? T(0) : pull;
      if constexpr (form == GrpoForm::kSequenceRatio) return {loss, slope, held * below, held * above, dual};
      const T keep = T(1) - T(rule.drop) * x.selected;
      const T penalty = T(rule.penalty) * x.selected;
      const T sign = grpo_sign(d, x.logprob, x.old_logprob);
      return {(keep > T(0) ? loss : T(0)) + penalty * sign * d, (keep > T(0) ? slope : T(0)) + penalty * sign * inside,
              held * below, held * above, dual};
    }
  }
}

}  // namespace isentrope::kernels
