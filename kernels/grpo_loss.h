// The policy losses of the GRPO family, and the choice of tokens that two of them need. B sequences of T tokens.
//
// ℓ = log-probability of the token under the policy that learns, ℓ_old under the one that sampled it, ℓ_ref under the
// reference; A advantage, H entropy, M ∈ {0, 1} mask (1: the token counts); N = Σ M, n_i = Σ_t M_it, S = number of
// sequences with n_i > 0; mean_M over the tokens that count. d = ℓ - ℓ_old, clamped to ±20 with no gradient beyond;
// r = exp d. What stands where M = 0 is never used. Natural logarithms, nats.
//
// Policy term L of a token: kernels/grpo_policy.h, with the paper of each mode.
// Token loss = L + ref_kl_coef u K(Δ) - entropy_coef H with Δ = ℓ - ℓ_ref and u = ref_kl_weight, 1 where none is given
// (ARES, 2510.08457, weighs by difficulty and within windows of high entropy); K (Schulman, "Approximating KL divergence"):
//   k1 = Δ      k2 = Δ²/2      k3 = exp(-Δ) + Δ - 1, Δ clamped to ±20 and k3 to 10, no gradient beyond
//   k1+, k3+    the value of k1, k3 with the gradient of k2, which is the unbiased one
//   k3_is       r k3 with the gradient r Δ: k3 weighted by the ratio, differentiated through it, so that value and gradient
//               stay unbiased when the policy has moved from the one that sampled (DeepSeek-V3.2, 2512.02556; TRL's
//               use_bias_correction_kl); r is of the token, whatever ratio the mode has
// z = 2^-20 max(1, -ℓ or -ℓ_old, the smaller one) is what rounding alone makes of d: |d| has slope ±1 however small d is,
// so without it the first update of a batch, whose d is the difference of two roundings of one number, would follow their
// signs at full strength. ℓ is the float32 difference of two numbers of about its size; z is 8 to 16 of its last places. The
// same in double, since samplers tell ℓ_old in float32. Where forward passes differ by more, as in bfloat16, z is not enough.
//
// Loss = Σ_i w_i Σ_t M × token loss, with D the normalizer where one is given:
//   token-mean                w = 1/N               D in place of N
//   seq-mean-token-sum        w = 1/S               D in place of S
//   seq-mean-token-mean       w = 1/(S n_i)         D in place of S
//   seq-mean-token-sum-norm   w = 1/(S T)           D in place of S T     Dr. GRPO (2503.20783), as verl ≥ 0.7.1 and TRL have it
//   token-sum-norm            w = 1/T               D in place of T       the same without the mean; so verl ≤ 0.7.0
//   token-sum                 w = 1                 D in place of 1
// With N, S or a constant of a whole optimiser step as D, the losses of its micro-batches add up to that of the whole.
//
// Selection of tokens that count; f = fraction, n = max(int(f N), minimum), at most as many as may be chosen:
//   c = (A - mean_M A)(ℓ - mean_M ℓ), the covariance of the token; constant, as all of the selection
//   clip_cov           n at random among cov_lower < c < cov_upper that the clip leaves alone    2505.22617
//   kl_cov             the n largest c, compared as floats                                       2505.22617
//   random_clip_cov    as many as clip_cov, at random among all: its control
//   random_kl_cov      as many as kl_cov, at random among all: its control
// Token number j = b T + t draws word j mod 4 of philox(seed, j div 4, 0), and the n smallest draws are chosen; ties fall
// to the lower number. The choice depends on the seed, the order of the sequences and T, on nothing else.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/gpu/dtype.h"
#include "kernels/gpu/philox.h"
#include "kernels/grpo_policy.h"

namespace isentrope::kernels {

constexpr double kMaxK3 = 10.0;  // one token must not own the loss

// Sums run over segments of a sequence, cut here whatever the threads and blocks, so that the bits do not
// depend on their number: 2048 tokens are some microseconds of a core and 8 rounds of a block of 256.
constexpr int64_t kGrpoSegment = 2048;
ISENTROPE_HOST_DEVICE constexpr int64_t grpo_segments(int64_t length) {
  return (length + kGrpoSegment - 1) / kGrpoSegment;
}

// ---- statistics -----------------------------------------------------------------------------------------------------

// The float statistics of a call, in the order of kGrpoStatNames; 0 where there is no token. Means are over
// the tokens that count, so that those of several calls combine: means weighted by tokens, counts added, the
// largest of the maxima.
enum GrpoStat {
  kTokens,     // N
  kSequences,  // S
  kAdvantageMean,
  kLogprobMean,
  kEntropyMean,  // 0 without entropy, like its std (over N, not N - 1)
  kEntropyStd,
  kRatioMean,  // of the ratio in the loss: r, for gspo and luspo s_i, for geo_mean g_i, for vespo w_i
  kRatioMax,
  kKlK1,  // estimators of KL(old, learning policy) from Δ = -d
  kKlK2,
  kKlK3,
  kRefK1,  // the same from Δ = ℓ - ℓ_ref; 0 without ref_logprob
  kRefK2,
  kRefK3,
  kClipFrac,  // share of tokens that the clip, or the band of D, takes out of the gradient (cispo, reinforce, ce_gppo:
              // whose weight it changes); 0 of the modes without one
  kClipLow,   // those below the lower bound
  kClipHigh,  // those above the upper bound
  kClipDual,  // those bounded by the dual clip, or by delta
  kCovMean,   // of c
  kCovMax,
  kSelectFrac,  // share of tokens that are selected
  kGrpoStats
};
constexpr const char* kGrpoStatNames[kGrpoStats] = {
    "tokens",    "sequences", "advantage/mean", "logprob/mean", "entropy/mean", "entropy/std", "ratio/mean",
    "ratio/max", "kl/k1",     "kl/k2",          "kl/k3",        "ref_kl/k1",    "ref_kl/k2",   "ref_kl/k3",
    "clip/frac", "clip/low",  "clip/high",      "clip/dual",    "cov/mean",     "cov/max",     "select/frac"};

// ---- parameters -----------------------------------------------------------------------------------------------------

enum class GrpoChoice { kClipCov, kKlCov, kRandomClipCov, kRandomKlCov };

// dtype is float or double: of every void pointer here.
struct GrpoLossForward {
  DType dtype = DType::kFloat;
  int64_t batch = 0;   // B
  int64_t length = 0;  // T
  GrpoLossRule rule;
  const void* logprob = nullptr;        // [B, T]
  const void* old_logprob = nullptr;    // [B, T]
  const void* advantage = nullptr;      // [B, T]
  const bool* mask = nullptr;           // [B, T]
  const bool* selected = nullptr;       // [B, T], or null for none
  const void* ref_logprob = nullptr;    // [B, T], or null
  const void* ref_kl_weight = nullptr;  // [B, T] u, or null for 1
  const void* entropy = nullptr;        // [B, T], or null
  const void* normalizer = nullptr;     // [1], or null for the counts of this call
  void* loss = nullptr;                 // [1]
  void* token_loss = nullptr;           // [B, T]; 0 where M = 0
  float* stats = nullptr;               // [kGrpoStats], or null where none are wanted
  void* slope = nullptr;      // [B, T] derivative of the token loss by ℓ, or null where no gradient is wanted
  void* weight = nullptr;     // [B] w_i
  void* workspace = nullptr;  // [grpo_loss_workspace] bytes, 16-byte aligned; CUDA only
};

struct GrpoLossBackward {
  DType dtype = DType::kFloat;
  int64_t batch = 0;   // B
  int64_t length = 0;  // T
  double entropy_coef = 0;
  const void* dloss = nullptr;        // [1], or null for 0
  const void* dtoken_loss = nullptr;  // [B, T], or null for 0
  const void* slope = nullptr;        // [B, T] as the forward pass gave it, like weight
  const void* weight = nullptr;       // [B]
  const bool* mask = nullptr;         // [B, T]
  void* dlogprob = nullptr;           // [B, T], or null; (w_i dloss + dtoken_loss) slope
  void* dentropy = nullptr;           // [B, T], or null; -entropy_coef (w_i dloss + dtoken_loss) M
};

struct GrpoSelect {
  DType dtype = DType::kFloat;
  int64_t batch = 0;   // B
  int64_t length = 0;  // T; B T < 2^32
  GrpoChoice choice = GrpoChoice::kClipCov;
  uint64_t seed = 0;
  double fraction = 0;  // f
  int64_t minimum = 1;
  double cov_lower = 1, cov_upper = 5;
  double lower = 0.8, upper = 1.2;    // the clip
  const void* logprob = nullptr;      // [B, T]
  const void* old_logprob = nullptr;  // [B, T]
  const void* advantage = nullptr;    // [B, T]
  const bool* mask = nullptr;         // [B, T]
  bool* selected = nullptr;           // [B, T]
  void* workspace = nullptr;          // [grpo_select_workspace] bytes, 16-byte aligned; CUDA only
};

// stream is a cudaStream_t; each returns before the work is done, and never waits for the device. The order
// of every sum is fixed by the shape. Throw std::invalid_argument for a dtype that is neither float nor
// double.
void grpo_loss_forward_cuda(const GrpoLossForward& p, void* stream);
void grpo_loss_backward_cuda(const GrpoLossBackward& p, void* stream);
void grpo_select_cuda(const GrpoSelect& p, void* stream);

// ---- the mathematics of one token, for both backends --------------------------------------------------------------
// Free of branches that differ between
// tokens, so that compilers vectorise the loops around it. Inputs where M = 0 are to be set to 0 by the
// caller. A NaN of a token that counts goes through to its loss.

// First pass: sums over the tokens that count.
template <class T>
struct GrpoMoments {
  T tokens, advantage, logprob, entropy, log_ratio;
};
template <class T, class U>
ISENTROPE_HOST_DEVICE inline GrpoMoments<T> grpo_add(const GrpoMoments<T>& a, const GrpoMoments<U>& b) {
  return {a.tokens + T(b.tokens), a.advantage + T(b.advantage), a.logprob + T(b.logprob), a.entropy + T(b.entropy),
          a.log_ratio + T(b.log_ratio)};
}

// What the second pass needs of the first: N, S, and the means.
struct GrpoCentre {
  double tokens = 0, sequences = 0, advantage = 0, logprob = 0, entropy = 0;
};

// Second pass: sums of these over the tokens that count, then two maxima.
enum GrpoSum {
  kSumLoss,
  kSumRatio,
  kSumK1,
  kSumK2,
  kSumK3,
  kSumRefK1,
  kSumRefK2,
  kSumRefK3,
  kSumLow,
  kSumHigh,
  kSumDual,
  kSumCov,
  kSumSelected,
  kSumEntropySquare,
  kGrpoSums,
  kMaxRatio = kGrpoSums,
  kMaxCov,
  kGrpoTerms
};
// The first terms of them: the loss alone where no statistics are wanted.
template <class T, int terms = kGrpoTerms>
struct GrpoTerms {
  T term[terms];
};
template <bool statistics>
constexpr int kGrpoWanted = statistics ? kGrpoTerms : 1;
// What a sum or maximum starts from.
ISENTROPE_HOST_DEVICE inline double grpo_neutral(int k) { return k < kGrpoSums ? 0.0 : -3.0e38; }
template <class T>
ISENTROPE_HOST_DEVICE inline T grpo_merge(int k, T a, T b) {
  return k < kGrpoSums ? a + b : b > a ? b : a;
}

template <class T>
ISENTROPE_HOST_DEVICE inline T grpo_covariance(const GrpoCentre& centre, T advantage, T logprob) {
  return (advantage - T(centre.advantage)) * (logprob - T(centre.logprob));
}
// All of a token but its divergence from the reference; the terms of that are 0. exp_d = exp(d), factor = grpo_factor, each
// where the form has it. Writes the derivative of the token loss by ℓ.
template <GrpoForm form, class T>
ISENTROPE_HOST_DEVICE inline GrpoTerms<T> grpo_terms(const GrpoLossRule& rule, const GrpoCentre& centre,
                                                     const GrpoToken<T>& x, T exp_d, T factor,
                                                     const GrpoSequence<T>& sequence, T* slope) {
  constexpr bool kSequence = grpo_of_sequence(form);
  const T d = grpo_log_ratio(x.logprob, x.old_logprob);
  const T unclamped = kSequence ? sequence.log_ratio : x.logprob - x.old_logprob;
  const T most = T(kSequence ? kMaxSequenceLogRatio : kMaxLogRatio);
  const T inside = (unclamped > most ? T(0) : T(1)) * (unclamped < -T(kMaxLogRatio) ? T(0) : T(1));
  const T ratio = kSequence ? sequence.ratio : exp_d;
  if constexpr (form == GrpoForm::kGammaWeight) factor = x.advantage < T(0) ? sequence.weight_neg : sequence.weight_pos;
  const GrpoPolicy<T> policy = grpo_policy<form>(rule, x, d, ratio, inside, factor);
  const T cov = grpo_covariance(centre, x.advantage, x.logprob);
  const T spread = x.entropy - T(centre.entropy);
  *slope = x.counts > T(0) ? policy.slope : T(0);
  return {{policy.loss - T(rule.entropy_coef) * x.entropy, ratio * x.counts, -d, T(0.5) * d * d, exp_d - T(1) - d, T(0),
           T(0), T(0), policy.low * x.counts, policy.high * x.counts, policy.dual * x.counts, cov * x.counts,
           x.selected, spread * spread * x.counts, x.counts > T(0) ? ratio : T(-3.0e38),
           x.counts > T(0) ? cov : T(-3.0e38)}};
}

// Whether K looks at the ratio of the token, too.
ISENTROPE_HOST_DEVICE constexpr bool grpo_has_ratio(GrpoKl kind) { return kind == GrpoKl::kK3Is; }

// K(Δ), its derivative by ℓ, and the plain estimators. exp_minus = exp(-Δ), Δ clamped; ratio = r, read by k3_is alone.
template <class T>
struct GrpoDivergence {
  T loss, slope, k1, k2, k3;
};
template <GrpoKl kind, class T>
ISENTROPE_HOST_DEVICE inline GrpoDivergence<T> grpo_divergence(T delta, T exp_minus, T ratio) {
  const T k2 = T(0.5) * delta * delta;
  const T free = exp_minus + grpo_clamp(delta, -T(kMaxLogRatio), T(kMaxLogRatio)) - T(1);
  const T k3 = free > T(kMaxK3) ? T(kMaxK3) : free, pull = T(1) - exp_minus;
  const T k3_slope = free > T(kMaxK3) ? T(0) : pull;  // |Δ| > 20 makes k3 larger than 10
  const T loss = kind == GrpoKl::kK1 || kind == GrpoKl::kK1Plus ? delta : kind == GrpoKl::kK2 ? k2 : k3;
  const T slope = kind == GrpoKl::kK1 ? T(1) : kind == GrpoKl::kK3 ? k3_slope : delta;
  if constexpr (grpo_has_ratio(kind)) return {ratio * k3, ratio * delta, delta, k2, k3};
  return {loss, slope, delta, k2, k3};
}

// The weight of a sequence of tokens tokens; normalizer: what was given, or null.
template <class T>
ISENTROPE_HOST_DEVICE inline double grpo_weight(GrpoAggregate aggregate, const GrpoCentre& centre, double tokens,
                                                int64_t length, const T* normalizer) {
  double divisor = aggregate == GrpoAggregate::kTokenMean      ? centre.tokens
                   : aggregate == GrpoAggregate::kTokenSum     ? 1.0
                   : aggregate == GrpoAggregate::kTokenSumNorm ? static_cast<double>(length)
                                                               : centre.sequences;
  if (aggregate == GrpoAggregate::kSequenceMeanTokenSumNorm) divisor *= static_cast<double>(length);
  if (normalizer != nullptr) divisor = static_cast<double>(*normalizer);
  if (aggregate == GrpoAggregate::kSequenceMeanTokenMean) divisor *= tokens;
  return tokens > 0 && divisor != 0 ? 1.0 / divisor : 0.0;
}

// The statistics from the sums of the second pass.
ISENTROPE_HOST_DEVICE inline void grpo_statistics(const GrpoCentre& centre, const GrpoTerms<double>& sums,
                                                  float* stats) {
  const double share = centre.tokens > 0 ? 1.0 / centre.tokens : 0.0;
  const double* sum = sums.term;
  const double variance = sum[kSumEntropySquare] * share;
  const double value[kGrpoStats] = {centre.tokens,
                                    centre.sequences,
                                    centre.advantage,
                                    centre.logprob,
                                    centre.entropy,
                                    sqrt(variance),
                                    sum[kSumRatio] * share,
                                    centre.tokens > 0 ? sum[kMaxRatio] : 0.0,
                                    sum[kSumK1] * share,
                                    sum[kSumK2] * share,
                                    sum[kSumK3] * share,
                                    sum[kSumRefK1] * share,
                                    sum[kSumRefK2] * share,
                                    sum[kSumRefK3] * share,
                                    (sum[kSumLow] + sum[kSumHigh]) * share,
                                    sum[kSumLow] * share,
                                    sum[kSumHigh] * share,
                                    sum[kSumDual] * share,
                                    sum[kSumCov] * share,
                                    centre.tokens > 0 ? sum[kMaxCov] : 0.0,
                                    sum[kSumSelected] * share};
  for (int k = 0; k < kGrpoStats; ++k) stats[k] = static_cast<float>(value[k]);
}

// ---- selection ------------------------------------------------------------------------------------------------------

// A float as an unsigned integer of the same order.
ISENTROPE_HOST_DEVICE inline uint32_t ordered_bits(uint32_t float_bits) {
  return (float_bits & 0x80000000u) ? ~float_bits : float_bits | 0x80000000u;
}

// The n smallest keys are selected: rank in the high word, number of the token in the low word, so that no
// two are equal. kNoKey: the token may not be chosen.
constexpr uint64_t kNoKey = ~uint64_t{0};
ISENTROPE_HOST_DEVICE inline uint64_t selection_key(uint32_t rank, uint64_t number) {
  return uint64_t{rank} << 32 | number;
}

// How many to choose out of tokens that count, when available of them may be chosen.
ISENTROPE_HOST_DEVICE inline int64_t selection_count(double fraction, int64_t minimum, int64_t tokens,
                                                     int64_t available) {
  int64_t count = static_cast<int64_t>(fraction * static_cast<double>(tokens));
  count = count < minimum ? minimum : count;
  return count < available ? count : available;
}

// ---- workspaces of the CUDA launchers -------------------------------------------------------------------------------

// GrpoCentre; GrpoSequence<double> [B]; GrpoMoments<double> [B, segments]; GrpoTerms<double> [B, segments].
ISENTROPE_HOST_DEVICE constexpr int64_t grpo_loss_workspace(int64_t batch, int64_t length) {
  return static_cast<int64_t>(sizeof(GrpoCentre)) + batch * static_cast<int64_t>(sizeof(GrpoSequence<double>)) +
         batch * grpo_segments(length) * static_cast<int64_t>(sizeof(GrpoMoments<double>) + sizeof(GrpoTerms<double>));
}

// How far the search for the n-th smallest key has come after some of its bytes, from the highest.
struct GrpoSearch {
  uint64_t prefix;  // the bytes found, then zeros
  int64_t rank;     // of the key wanted among those with this prefix, from 1; 0: none is wanted
};
constexpr int kKeyBytes = 8;
// GrpoCentre; available [1] int64; GrpoSearch [kKeyBytes + 1]; histograms [kKeyBytes, 256] uint32;
// GrpoMoments<double> [B, segments]; keys [B, T] uint64.
ISENTROPE_HOST_DEVICE constexpr int64_t grpo_select_workspace(int64_t batch, int64_t length) {
  return static_cast<int64_t>(sizeof(GrpoCentre) + sizeof(int64_t) + (kKeyBytes + 1) * sizeof(GrpoSearch) +
                              kKeyBytes * 256 * sizeof(uint32_t)) +
         batch * grpo_segments(length) * static_cast<int64_t>(sizeof(GrpoMoments<double>)) +
         batch * length * static_cast<int64_t>(sizeof(uint64_t));
}

}  // namespace isentrope::kernels
