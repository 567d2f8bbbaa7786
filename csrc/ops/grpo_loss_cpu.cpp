// The CPU backend of grpo_loss. Compiled once for every instruction set, in a namespace of its name.
#include "csrc/ops/grpo_loss_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "csrc/ops/grpo_blocks.h"

namespace isentrope::ops {
namespace CPU_CAPABILITY {
namespace {

// out [count] = factor x [count]
template <class T>
inline void scale(const T* x, T factor, int count, T* __restrict out) {
  for (int i = 0; i < count; ++i) out[i] = factor * x[i];
}

// ---- first pass ----------------------------------------------------------------------------------------------

// Adds what the tokens give to the sum of their sequence to sum [kLanes]. l, old [padded]; advantage [padded], read by geo_mean
// alone.
template <class T>
void add_sequence_terms(const GrpoLossRule& rule, const Block& block, const T* l, const T* old, const T* advantage,
                        T (&sum)[kLanes]) {
  const GrpoLossRule r = rule;
  switch (r.form) {
    case GrpoForm::kGeometricMean:
      return add_lanes(block, sum, [&](int i) {
        return grpo_sequence_term<GrpoForm::kGeometricMean>(r, l[i] - old[i], advantage[i]);
      });
    case GrpoForm::kGammaWeight:
      return add_lanes(block, sum,
                       [&](int i) { return grpo_sequence_term<GrpoForm::kGammaWeight>(r, l[i] - old[i], T(0)); });
    default:
      return add_lanes(block, sum, [&](int i) { return l[i] - old[i]; });
  }
}

template <class T>
GrpoMoments<double> segment_moments(const GrpoLossForward& p, bool means, int64_t segment) {
  T advantage[kLanes] = {}, logprob[kLanes] = {}, entropy[kLanes] = {};
  double log_ratio = 0;
  int64_t tokens = 0;
  for_blocks(segment, p.length, [&](const Block& block) {
    tokens += count_flags(p.mask, block);
    const bool of_sequence = grpo_of_sequence(p.rule.form);
    if (!means && !of_sequence) return;
    T counts[kBlock], l[kBlock], x[kBlock], a[kBlock];
    load_flags(p.mask, block, counts);
    load(p.logprob, block, counts, l);
    if (of_sequence) {
      load(p.old_logprob, block, counts, x);
      if (p.rule.form == GrpoForm::kGeometricMean) load(p.advantage, block, counts, a);
      T part[kLanes] = {};
      add_sequence_terms(p.rule, block, l, x, a, part);
      log_ratio += total(part);
    }
    if (!means) return;
    add_lanes(block, logprob, [&](int i) { return l[i]; });
    load(p.advantage, block, counts, x);
    add_lanes(block, advantage, [&](int i) { return x[i]; });
    if (p.entropy == nullptr) return;
    load(p.entropy, block, counts, x);
    add_lanes(block, entropy, [&](int i) { return x[i]; });
  });
  return {static_cast<double>(tokens), total(advantage), total(logprob), total(entropy), log_ratio};
}

// ---- second pass ---------------------------------------------------------------------------------------------

// Whether anything depends on the ratio of the token, and on ℓ_old.
template <GrpoForm form, bool statistics>
constexpr bool kUsesRatio = statistics || grpo_has_ratio(form);
template <GrpoForm form, bool statistics>
constexpr bool kUsesOld = statistics || grpo_has_old(form);

template <class T, int... k>
inline __attribute__((always_inline)) void merge(const GrpoTerms<T>& x, int i, T (*sum)[kLanes],
                                                 std::integer_sequence<int, k...>) {
  ((sum[k][i] = grpo_merge(k, sum[k][i], x.term[k])), ...);
}

// What is known of a sequence, once a lane: a condition that is the same for all tokens becomes a branch, and the loop stays
// scalar.
template <class T>
struct Sequence {
  T log_ratio[kLanes], ratio[kLanes], weight_pos[kLanes], weight_neg[kLanes];
};

// Losses and slopes [padded] without the divergence from the reference, and their part of the sums [kGrpoWanted, kLanes].
// Not inlined: alone, and with k a constant, the last loop is one that the compiler makes vectors of.
template <GrpoForm form, bool statistics, class T>
__attribute__((noinline)) void add_policy(const GrpoLossRule& rule, const GrpoCentre& centre, int padded,
                                          const Sequence<T>& sequence, const Tokens<T>& x, T* __restrict loss,
                                          T* __restrict slope, T (*__restrict sum)[kLanes]) {
  constexpr bool kWithRatio = kUsesRatio<form, statistics>;
  T exp_d[kBlock];
  if constexpr (kWithRatio)
    for (int i = 0; i < padded; ++i) exp_d[i] = exponential(grpo_log_ratio(x.logprob[i], x.old_logprob[i]));
  const GrpoLossRule r = rule;
  const GrpoCentre c = centre;
  T factor[grpo_has_factor(form) ? kBlock : 1];
  if constexpr (grpo_has_factor(form))
    for (int i = 0; i < padded; ++i)
      factor[i] = grpo_factor<form, VectorMath>(r, x.logprob[i], x.old_logprob[i], x.advantage[i], exp_d[i]);
  for (int first = 0; first < padded; first += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = first + lane;
      const GrpoToken<T> token{x.logprob[i], x.old_logprob[i], x.advantage[i],
                               x.entropy[i], x.counts[i],      x.selected[i] * x.counts[i]};
      const GrpoSequence<T> s{sequence.log_ratio[lane], sequence.ratio[lane], sequence.weight_pos[lane],
                              sequence.weight_neg[lane]};
      const GrpoTerms<T> terms = grpo_terms<form, T>(r, c, token, kWithRatio ? exp_d[i] : T(0),
                                                     grpo_has_factor(form) ? factor[i] : T(0), s, &slope[i]);
      loss[i] = x.counts[i] > T(0) ? terms.term[kSumLoss] : T(0);
      merge(terms, lane, sum, std::make_integer_sequence<int, kGrpoWanted<statistics>>());
    }
}

// Adds the divergence from the reference to losses and slopes, and to the sums. ref [padded]; weight [padded], not read
// unless weighted.
template <GrpoKl kind, bool statistics, bool weighted, class T>
__attribute__((noinline)) void add_divergence(T coef, int padded, const T* ref, const T* weight, const Tokens<T>& x,
                                              T* __restrict loss, T* __restrict slope, T (*__restrict sum)[kLanes]) {
  T exp_minus[kBlock];
  for (int i = 0; i < padded; ++i) exp_minus[i] = exponential(-grpo_log_ratio(x.logprob[i], ref[i]));
  T ratio[grpo_has_ratio(kind) ? kBlock : 1];
  if constexpr (grpo_has_ratio(kind))
    for (int i = 0; i < padded; ++i) ratio[i] = exponential(grpo_log_ratio(x.logprob[i], x.old_logprob[i]));
  for (int first = 0; first < padded; first += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = first + lane;
      const GrpoDivergence<T> kl =
          grpo_divergence<kind>(x.logprob[i] - ref[i], exp_minus[i], grpo_has_ratio(kind) ? ratio[i] : T(1));
      const T c = weighted ? coef * weight[i] : coef;
      const T added = c * kl.loss;
      loss[i] += added;
      slope[i] += c * kl.slope * x.counts[i];
      sum[kSumLoss][lane] += added;
      if constexpr (statistics) {
        sum[kSumRefK1][lane] += kl.k1;
        sum[kSumRefK2][lane] += kl.k2;
        sum[kSumRefK3][lane] += kl.k3;
      }
    }
}

template <bool statistics, bool weighted, class T>
auto divergence_of(GrpoKl kind) {
  switch (kind) {
    case GrpoKl::kK1:
      return add_divergence<GrpoKl::kK1, statistics, weighted, T>;
    case GrpoKl::kK2:
      return add_divergence<GrpoKl::kK2, statistics, weighted, T>;
    case GrpoKl::kK3:
      return add_divergence<GrpoKl::kK3, statistics, weighted, T>;
    case GrpoKl::kK1Plus:
      return add_divergence<GrpoKl::kK1Plus, statistics, weighted, T>;
    case GrpoKl::kK3Plus:
      return add_divergence<GrpoKl::kK3Plus, statistics, weighted, T>;
    default:
      return add_divergence<GrpoKl::kK3Is, statistics, weighted, T>;
  }
}

template <GrpoForm form, bool statistics, class T>
GrpoTerms<double> segment_loss(const GrpoLossForward& p, const GrpoCentre& centre,
                               const GrpoSequence<double>* sequences, int64_t segment) {
  Sequence<T> sequence{};
  if constexpr (grpo_of_sequence(form)) {
    const GrpoSequence<T> s = grpo_cast<T>(sequences[segment / grpo_segments(p.length)]);
    std::fill_n(sequence.log_ratio, kLanes, s.log_ratio);
    std::fill_n(sequence.ratio, kLanes, s.ratio);
    std::fill_n(sequence.weight_pos, kLanes, s.weight_pos);
    std::fill_n(sequence.weight_neg, kLanes, s.weight_neg);
  }
  const auto divergence = p.ref_kl_weight == nullptr ? divergence_of<statistics, false, T>(p.rule.ref_kl)
                                                     : divergence_of<statistics, true, T>(p.rule.ref_kl);
  const bool bonus = p.entropy != nullptr && (statistics || p.rule.entropy_coef != 0);
  const bool refers = p.ref_logprob != nullptr && (statistics || p.rule.ref_kl_coef != 0);
  T sum[kGrpoWanted<statistics>][kLanes];
  for (int k = 0; k < kGrpoWanted<statistics>; ++k)
    for (int i = 0; i < kLanes; ++i) sum[k][i] = static_cast<T>(grpo_neutral(k));
  Tokens<T> x{};
  for_blocks(segment, p.length, [&](const Block& block) {
    T loss_buffer[kBlock], slope_buffer[kBlock];
    const bool full = block.count == block.padded;
    T* const token_loss = static_cast<T*>(p.token_loss) + block.at;
    T* const slopes = p.slope == nullptr ? nullptr : static_cast<T*>(p.slope) + block.at;
    T* const loss = full ? token_loss : loss_buffer;
    T* const slope = full && slopes != nullptr ? slopes : slope_buffer;
    load_flags(p.mask, block, x.counts);
    load(p.logprob, block, x.counts, x.logprob);
    load(p.advantage, block, x.counts, x.advantage);
    if (kUsesOld<form, statistics> || grpo_has_ratio(p.rule.ref_kl))
      load(p.old_logprob, block, x.counts, x.old_logprob);
    if (p.selected != nullptr) load_flags(p.selected, block, x.selected);
    if (bonus) load(p.entropy, block, x.counts, x.entropy);
    add_policy<form, statistics, T>(p.rule, centre, block.padded, sequence, x, loss, slope, sum);
    if (refers) {
      T ref[kBlock], weight[kBlock];
      load(p.ref_logprob, block, x.counts, ref);
      if (p.ref_kl_weight != nullptr) load(p.ref_kl_weight, block, x.counts, weight);
      divergence(T(p.rule.ref_kl_coef), block.padded, ref, weight, x, loss, slope, sum);
    }
    if (full) return;
    std::memcpy(token_loss, loss, block.count * sizeof(T));
    if (slopes != nullptr) std::memcpy(slopes, slope, block.count * sizeof(T));
  });
  GrpoTerms<double> sums{};
  for (int k = 0; k < kGrpoWanted<statistics>; ++k) {
    sums.term[k] = grpo_neutral(k);
    for (int i = 0; i < kLanes; ++i) sums.term[k] = grpo_merge(k, sums.term[k], static_cast<double>(sum[k][i]));
  }
  return sums;
}

template <GrpoForm form, class T>
GrpoTerms<double> segment_loss(const GrpoLossForward& p, const GrpoCentre& centre,
                               const GrpoSequence<double>* sequences, int64_t segment) {
  return p.stats != nullptr ? segment_loss<form, true, T>(p, centre, sequences, segment)
                            : segment_loss<form, false, T>(p, centre, sequences, segment);
}

template <class T>
GrpoTerms<double> segment_loss(const GrpoLossForward& p, const GrpoCentre& centre,
                               const GrpoSequence<double>* sequences, int64_t segment) {
  switch (p.rule.form) {
    case GrpoForm::kTokenRatio:
      return segment_loss<GrpoForm::kTokenRatio, T>(p, centre, sequences, segment);
    case GrpoForm::kSequenceRatio:
      return segment_loss<GrpoForm::kSequenceRatio, T>(p, centre, sequences, segment);
    case GrpoForm::kClippedWeight:
      return segment_loss<GrpoForm::kClippedWeight, T>(p, centre, sequences, segment);
    case GrpoForm::kUnitWeight:
      return segment_loss<GrpoForm::kUnitWeight, T>(p, centre, sequences, segment);
    case GrpoForm::kTotalVariation:
      return segment_loss<GrpoForm::kTotalVariation, T>(p, centre, sequences, segment);
    case GrpoForm::kBinaryKl:
      return segment_loss<GrpoForm::kBinaryKl, T>(p, centre, sequences, segment);
    case GrpoForm::kSoftGate:
      return segment_loss<GrpoForm::kSoftGate, T>(p, centre, sequences, segment);
    case GrpoForm::kGeometricMean:
      return segment_loss<GrpoForm::kGeometricMean, T>(p, centre, sequences, segment);
    case GrpoForm::kGammaWeight:
      return segment_loss<GrpoForm::kGammaWeight, T>(p, centre, sequences, segment);
    case GrpoForm::kKeptGradient:
      return segment_loss<GrpoForm::kKeptGradient, T>(p, centre, sequences, segment);
    default:
      return segment_loss<GrpoForm::kQuadratic, T>(p, centre, sequences, segment);
  }
}

template <class T>
void segment_backward(const GrpoLossBackward& p, int64_t segment) {
  const T row = p.dloss == nullptr ? T(0)
                                   : static_cast<const T*>(p.weight)[segment / grpo_segments(p.length)] *
                                         *static_cast<const T*>(p.dloss);
  const T coef = T(p.entropy_coef);
  for_blocks(segment, p.length, [&](const Block& block) {
    const T* const slope = static_cast<const T*>(p.slope) + block.at;
    T* const dlogprob = p.dlogprob == nullptr ? nullptr : static_cast<T*>(p.dlogprob) + block.at;
    if (p.dtoken_loss == nullptr && p.dentropy == nullptr) {  // slopes are 0 where no token counts
      scale(slope, row, block.count, dlogprob);
      return;
    }
    T counts[kBlock], d[kBlock], s[kBlock];
    load_flags(p.mask, block, counts);
    load(p.dtoken_loss, block, counts, d);
    for (int i = 0; i < block.padded; ++i) d[i] += row;
    if (dlogprob != nullptr) {
      load(p.slope, block, counts, s);
      for (int i = 0; i < block.count; ++i) dlogprob[i] = d[i] * s[i];
    }
    if (p.dentropy != nullptr) {
      T* const dentropy = static_cast<T*>(p.dentropy) + block.at;
      for (int i = 0; i < block.count; ++i) dentropy[i] = -coef * d[i] * counts[i];
    }
  });
}

}  // namespace

void grpo_moments(const GrpoLossForward& p, bool means, int64_t begin, int64_t end, GrpoMoments<double>* partial) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) partial[s] = segment_moments<decltype(zero)>(p, means, s);
  });
}

void grpo_loss_forward(const GrpoLossForward& p, const GrpoCentre& centre, const GrpoSequence<double>* sequences,
                       int64_t begin, int64_t end, GrpoTerms<double>* partial) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) partial[s] = segment_loss<decltype(zero)>(p, centre, sequences, s);
  });
}

void grpo_loss_backward(const GrpoLossBackward& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) segment_backward<decltype(zero)>(p, s);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::ops
