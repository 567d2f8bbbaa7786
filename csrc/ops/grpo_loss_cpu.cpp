// The CPU backend of grpo_select and grpo_loss: sixteen tokens at a time, in plain loops that the compiler
// makes vectors of. Compiled once for every instruction set, in a namespace of its name.
#include "csrc/ops/grpo_loss_cpu.h"

#include <cmath>
#include <cstring>

namespace isentrope::ops {
namespace CPU_CAPABILITY {
namespace {

using namespace kernels;

constexpr int kLanes =
    16;  // one AVX-512 vector of floats, two of AVX2: the order of sums is the same on both

// Calls function(T()) for the dtype of the parameters; the callers let only these two through.
template <class Function>
void with_type(DType dtype, Function&& function) {
  if (dtype == DType::kDouble) {
    function(double());
  } else {
    function(float());
  }
}

// e^x for |x| ≤ 20, to about one unit in the last place; NaN stays NaN. Branch-free, for the vectoriser.
inline __attribute__((always_inline)) float exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: a float that large has no digits after the point
  const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n log 2, the logarithm in two parts
  // The Taylor series to r^7: what it leaves out is below 6e-9 for |r| ≤ log(2)/2.
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = (sum * r * r + r) + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127) << 23;  // the low bits of shifted hold n: 2^n
  float scale;
  std::memcpy(&scale, &bits, 4);
  return sum * scale;
}
inline double exponential(double x) { return std::exp(x); }

// Which of the next lanes tokens count: 1 or 0; 0 beyond count.
template <class T>
inline void load_flags(const bool* flags, int count, T (&out)[kLanes]) {
  uint8_t byte[kLanes] = {};
  if (count == kLanes) {
    std::memcpy(byte, flags, kLanes);
  } else {
    std::memcpy(byte, flags, count);
  }
  for (int i = 0; i < kLanes; ++i) out[i] = byte[i] != 0 ? T(1) : T(0);
}

// source[i] where the token counts, else 0, whatever stands there. source may be null: all 0.
template <class T>
inline void load(const T* source, int64_t at, int count, const T (&counts)[kLanes], T (&out)[kLanes]) {
  T raw[kLanes] = {};
  if (source != nullptr) std::memcpy(raw, source + at, (count == kLanes ? kLanes : count) * sizeof(T));
  for (int i = 0; i < kLanes; ++i) out[i] = counts[i] > T(0) ? raw[i] : T(0);
}

template <class T>
inline void store(const T (&x)[kLanes], int count, T* target) {
  if (count == kLanes) {
    std::memcpy(target, x, sizeof(x));
  } else {
    std::memcpy(target, x, count * sizeof(T));
  }
}

// Calls function(sequence, first token, number of tokens ≤ kLanes) over a segment.
template <class Function>
inline void for_lanes(int64_t segment, int64_t length, Function&& function) {
  const int64_t per_sequence = grpo_segments(length), row = segment / per_sequence;
  const int64_t begin = segment % per_sequence * kGrpoSegment;
  const int64_t end = begin + kGrpoSegment < length ? begin + kGrpoSegment : length;
  int64_t t = begin;
  for (; t + kLanes <= end; t += kLanes) function(row * length + t, kLanes);
  if (t < end) function(row * length + t, static_cast<int>(end - t));
}

template <class T>
inline double total(const T (&x)[kLanes]) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

// ---- first pass -----------------------------------------------------------------------------------------------------

template <class T>
GrpoMoments<double> segment_moments(const GrpoLossForward& p, int64_t segment) {
  T tokens[kLanes] = {}, advantage[kLanes] = {}, logprob[kLanes] = {}, entropy[kLanes] = {},
    log_ratio[kLanes] = {};
  for_lanes(segment, p.length, [&](int64_t at, int count) {
    T counts[kLanes], l[kLanes], x[kLanes];
    load_flags(p.mask + at, count, counts);
    for (int i = 0; i < kLanes; ++i) tokens[i] += counts[i];
    load(static_cast<const T*>(p.advantage), at, count, counts, x);
    for (int i = 0; i < kLanes; ++i) advantage[i] += x[i];
    load(static_cast<const T*>(p.logprob), at, count, counts, l);
    for (int i = 0; i < kLanes; ++i) logprob[i] += l[i];
    if (p.entropy != nullptr) {
      load(static_cast<const T*>(p.entropy), at, count, counts, x);
      for (int i = 0; i < kLanes; ++i) entropy[i] += x[i];
    }
    if (p.rule.form == GrpoForm::kSequenceRatio) {
      load(static_cast<const T*>(p.old_logprob), at, count, counts, x);
      for (int i = 0; i < kLanes; ++i) log_ratio[i] += l[i] - x[i];
    }
  });
  return {total(tokens), total(advantage), total(logprob), total(entropy), total(log_ratio)};
}

// ---- second pass ----------------------------------------------------------------------------------------------------

// Adds the divergence of some tokens from the reference to their losses and slopes, and to the sums.
// logprob, ref, counts, loss, slope [kLanes], sum [kGrpoTerms, kLanes].
template <GrpoKl kind, class T>
void add_divergence(T coef, const T* logprob, const T* ref, const T* counts, T* __restrict loss,
                    T* __restrict slope, T (*__restrict sum)[kLanes]) {
  T exp_minus[kLanes];
  for (int i = 0; i < kLanes; ++i) exp_minus[i] = -grpo_log_ratio(logprob[i], ref[i]);
  for (int i = 0; i < kLanes; ++i) exp_minus[i] = exponential(exp_minus[i]);
  for (int i = 0; i < kLanes; ++i) {
    const GrpoDivergence<T> x = grpo_divergence<kind>(logprob[i] - ref[i], exp_minus[i]);
    const T added = coef * x.loss;
    loss[i] += added;
    slope[i] += coef * x.slope * counts[i];
    sum[kSumLoss][i] += added;
    sum[kSumRefK1][i] += x.k1;
    sum[kSumRefK2][i] += x.k2;
    sum[kSumRefK3][i] += x.k3;
  }
}

template <class T>
auto divergence_of(GrpoKl kind) {
  switch (kind) {
    case GrpoKl::kK1:
      return add_divergence<GrpoKl::kK1, T>;
    case GrpoKl::kK2:
      return add_divergence<GrpoKl::kK2, T>;
    case GrpoKl::kK3:
      return add_divergence<GrpoKl::kK3, T>;
    case GrpoKl::kK1Plus:
      return add_divergence<GrpoKl::kK1Plus, T>;
    default:
      return add_divergence<GrpoKl::kK3Plus, T>;
  }
}

template <GrpoForm form, class T>
GrpoTerms<double> segment_loss(const GrpoLossForward& p, const GrpoCentre& centre, const double* sequence,
                               int64_t segment) {
  const GrpoLossRule rule = p.rule;
  const T sequence_log_ratio = sequence == nullptr ? T(0) : T(sequence[segment / grpo_segments(p.length)]);
  const T sequence_ratio = std::exp(grpo_sequence_log_ratio(sequence_log_ratio));
  const auto divergence = divergence_of<T>(rule.ref_kl);
  T sum[kGrpoTerms][kLanes];
  for (int k = 0; k < kGrpoTerms; ++k)
    for (int i = 0; i < kLanes; ++i) sum[k][i] = static_cast<T>(grpo_neutral(k));
  for_lanes(segment, p.length, [&](int64_t at, int count) {
    T counts[kLanes], selected[kLanes] = {}, logprob[kLanes], old_logprob[kLanes], advantage[kLanes],
                      entropy[kLanes], exp_d[kLanes], loss[kLanes], slope[kLanes];
    load_flags(p.mask + at, count, counts);
    if (p.selected != nullptr) load_flags(p.selected + at, count, selected);
    load(static_cast<const T*>(p.logprob), at, count, counts, logprob);
    load(static_cast<const T*>(p.old_logprob), at, count, counts, old_logprob);
    load(static_cast<const T*>(p.advantage), at, count, counts, advantage);
    load(static_cast<const T*>(p.entropy), at, count, counts, entropy);
    for (int i = 0; i < kLanes; ++i) exp_d[i] = grpo_log_ratio(logprob[i], old_logprob[i]);
    for (int i = 0; i < kLanes; ++i) exp_d[i] = exponential(exp_d[i]);
    for (int i = 0; i < kLanes; ++i) {
      const GrpoToken<T> token{logprob[i], old_logprob[i], advantage[i],
                               entropy[i], counts[i],      selected[i] * counts[i]};
      const GrpoTerms<T> x =
          grpo_terms<form, T>(rule, centre, token, exp_d[i], sequence_log_ratio, sequence_ratio, &slope[i]);
      loss[i] = counts[i] > T(0) ? x.term[kSumLoss] : T(0);
#pragma GCC unroll 16
      for (int k = 0; k < kGrpoTerms; ++k) sum[k][i] = grpo_merge(k, sum[k][i], x.term[k]);
    }
    if (p.ref_logprob != nullptr) {
      T ref[kLanes];
      load(static_cast<const T*>(p.ref_logprob), at, count, counts, ref);
      divergence(T(rule.ref_kl_coef), logprob, ref, counts, loss, slope, sum);
    }
    store(loss, count, static_cast<T*>(p.token_loss) + at);
    if (p.slope != nullptr) store(slope, count, static_cast<T*>(p.slope) + at);
  });
  GrpoTerms<double> sums;
  for (int k = 0; k < kGrpoTerms; ++k) {
    sums.term[k] = grpo_neutral(k);
    for (int i = 0; i < kLanes; ++i)
      sums.term[k] = grpo_merge(k, sums.term[k], static_cast<double>(sum[k][i]));
  }
  return sums;
}

template <class T>
GrpoTerms<double> segment_loss(const GrpoLossForward& p, const GrpoCentre& centre, const double* sequence,
                               int64_t segment) {
  switch (p.rule.form) {
    case GrpoForm::kTokenRatio:
      return segment_loss<GrpoForm::kTokenRatio, T>(p, centre, sequence, segment);
    case GrpoForm::kSequenceRatio:
      return segment_loss<GrpoForm::kSequenceRatio, T>(p, centre, sequence, segment);
    case GrpoForm::kClippedWeight:
      return segment_loss<GrpoForm::kClippedWeight, T>(p, centre, sequence, segment);
    default:
      return segment_loss<GrpoForm::kUnitWeight, T>(p, centre, sequence, segment);
  }
}

template <class T>
void segment_backward(const GrpoLossBackward& p, int64_t segment) {
  const T row = p.dloss == nullptr ? T(0)
                                   : static_cast<const T*>(p.weight)[segment / grpo_segments(p.length)] *
                                         *static_cast<const T*>(p.dloss);
  const T coef = T(p.entropy_coef);
  for_lanes(segment, p.length, [&](int64_t at, int count) {
    T counts[kLanes], x[kLanes], slope[kLanes], d[kLanes];
    load_flags(p.mask + at, count, counts);
    load(static_cast<const T*>(p.dtoken_loss), at, count, counts, x);
    for (int i = 0; i < kLanes; ++i) x[i] += row;
    if (p.dlogprob != nullptr) {
      load(static_cast<const T*>(p.slope), at, count, counts, slope);
      for (int i = 0; i < kLanes; ++i) d[i] = x[i] * slope[i];
      store(d, count, static_cast<T*>(p.dlogprob) + at);
    }
    if (p.dentropy != nullptr) {
      for (int i = 0; i < kLanes; ++i) d[i] = -coef * x[i] * counts[i];
      store(d, count, static_cast<T*>(p.dentropy) + at);
    }
  });
}

// ---- selection ------------------------------------------------------------------------------------------------------

template <class T>
int64_t segment_keys(const GrpoSelect& p, const GrpoCentre& centre, int64_t segment, uint64_t* keys) {
  const bool in_band = p.choice == GrpoChoice::kClipCov,
             by_band = in_band || p.choice == GrpoChoice::kRandomClipCov;
  const bool by_rank = p.choice == GrpoChoice::kKlCov;
  GrpoLossRule rule;
  rule.lower = p.lower;
  rule.upper = p.upper;
  rule.dual_clip = INFINITY;
  int64_t available = 0;
  uint64_t block = kNoKey;
  PhiloxBlock draw{};
  for_lanes(segment, p.length, [&](int64_t at, int count) {
    T counts[kLanes], logprob[kLanes], old_logprob[kLanes], advantage[kLanes], ratio[kLanes], cov[kLanes],
        candidate[kLanes];
    load_flags(p.mask + at, count, counts);
    load(static_cast<const T*>(p.logprob), at, count, counts, logprob);
    load(static_cast<const T*>(p.advantage), at, count, counts, advantage);
    for (int i = 0; i < kLanes; ++i) cov[i] = grpo_covariance(centre, advantage[i], logprob[i]);
    for (int i = 0; i < kLanes; ++i) candidate[i] = counts[i];
    if (by_band) {
      load(static_cast<const T*>(p.old_logprob), at, count, counts, old_logprob);
      for (int i = 0; i < kLanes; ++i) ratio[i] = grpo_log_ratio(logprob[i], old_logprob[i]);
      for (int i = 0; i < kLanes; ++i) ratio[i] = exponential(ratio[i]);
      const T lower = T(p.cov_lower), upper = T(p.cov_upper);
      for (int i = 0; i < kLanes; ++i) {
        const GrpoToken<T> token{logprob[i], old_logprob[i], advantage[i], T(0), counts[i], T(0)};
        const GrpoPolicy<T> policy = grpo_policy<GrpoForm::kTokenRatio, T>(rule, token, T(0), ratio[i], T(1));
        candidate[i] =
            cov[i] > lower && cov[i] < upper ? counts[i] * (T(1) - policy.low) * (T(1) - policy.high) : T(0);
      }
    }
    for (int i = 0; i < count; ++i) {
      available += candidate[i] > T(0);
      keys[at + i] = kNoKey;
      if (!((in_band ? candidate[i] : counts[i]) > T(0))) continue;
      const uint64_t number = static_cast<uint64_t>(at + i);
      if (by_rank) {
        const float descending = -static_cast<float>(cov[i]) + 0.0f;  // + 0: -0 ranks as 0
        uint32_t bits;
        std::memcpy(&bits, &descending, 4);
        keys[at + i] = selection_key(ordered_bits(bits), number);
      } else {
        if (number / 4 != block) draw = philox(p.seed, block = number / 4, 0);
        keys[at + i] = selection_key(draw.word[number % 4], number);
      }
    }
  });
  return available;
}

}  // namespace

void grpo_moments(const GrpoLossForward& p, int64_t begin, int64_t end, GrpoMoments<double>* partial) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) partial[s] = segment_moments<decltype(zero)>(p, s);
  });
}

void grpo_loss_forward(const GrpoLossForward& p, const GrpoCentre& centre, const double* sequence,
                       int64_t begin, int64_t end, GrpoTerms<double>* partial) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) partial[s] = segment_loss<decltype(zero)>(p, centre, sequence, s);
  });
}

void grpo_loss_backward(const GrpoLossBackward& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) segment_backward<decltype(zero)>(p, s);
  });
}

void grpo_select_keys(const GrpoSelect& p, const GrpoCentre& centre, int64_t begin, int64_t end,
                      uint64_t* keys, int64_t* available) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) available[s] = segment_keys<decltype(zero)>(p, centre, s, keys);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::ops
