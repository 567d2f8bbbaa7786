// The CPU backend of grpo_select and grpo_loss: blocks of tokens in plain loops that the compiler makes vectors of.
// Compiled once for every instruction set, in a namespace of its name.
#include "csrc/ops/grpo_loss_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace isentrope::ops {
namespace CPU_CAPABILITY {
namespace {

using namespace kernels;

// Sums have this many lanes, token t in lane t mod kLanes: one AVX-512 vector of floats, two of AVX2, so that the order of
// sums is the same on both.
constexpr int kLanes = 16;
constexpr int kBlock = 256;  // tokens at once: a dozen arrays of them stay in the first-level cache

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

// A block: count tokens from number at on; the arrays go on to padded, a multiple of kLanes, with tokens that do not count.
struct Block {
  int64_t at;
  int count, padded;
};

// Calls function(Block) over a segment.
template <class Function>
inline void for_blocks(int64_t segment, int64_t length, Function&& function) {
  const int64_t per_sequence = grpo_segments(length), row = segment / per_sequence;
  const int64_t begin = segment % per_sequence * kGrpoSegment;
  const int64_t end = begin + kGrpoSegment < length ? begin + kGrpoSegment : length;
  for (int64_t t = begin; t < end; t += kBlock) {
    const int count = static_cast<int>(end - t < kBlock ? end - t : kBlock);
    function(Block{row * length + t, count, (count + kLanes - 1) / kLanes * kLanes});
  }
}

// The flags of a block [padded], 0 behind the last; in buffer [kBlock] where the block is not full. flags may be null: all 0.
inline const uint8_t* read_flags(const bool* flags, const Block& block, uint8_t* buffer) {
  if (flags != nullptr && block.count == block.padded) return reinterpret_cast<const uint8_t*>(flags) + block.at;
  std::memset(buffer, 0, kBlock);
  if (flags != nullptr) std::memcpy(buffer, flags + block.at, block.count);
  return buffer;
}

// out [padded]: 1 where a flag is set, else 0. flags may be null: all 0.
template <class T>
inline void load_flags(const bool* flags, const Block& block, T* __restrict out) {
  uint8_t buffer[kBlock];
  const uint8_t* byte = read_flags(flags, block, buffer);
  for (int i = 0; i < block.padded; ++i) out[i] = T(byte[i] < 1 ? byte[i] : 1);
}

// How many flags are set.
inline int count_flags(const bool* flags, const Block& block) {
  uint8_t buffer[kBlock], sum[kLanes] = {};
  const uint8_t* byte = read_flags(flags, block, buffer);
  for (int first = 0; first < block.padded; first += kLanes)
    for (int i = 0; i < kLanes; ++i) sum[i] += byte[first + i] < 1 ? byte[first + i] : 1;
  int total = 0;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  return total;
}

// out [padded]: source where the token counts, else 0, whatever stands there. source may be null: all 0.
template <class T>
inline void load(const void* source, const Block& block, const T* __restrict counts, T* __restrict out) {
  const T* from = static_cast<const T*>(source) + (source == nullptr ? 0 : block.at);
  const int given = source == nullptr ? 0 : block.count;
  for (int i = 0; i < given; ++i) {
    const T x = from[i];
    out[i] = counts[i] > T(0) ? x : T(0);
  }
  for (int i = given; i < block.padded; ++i) out[i] = T(0);
}

// Adds x(0), …, x(padded - 1) to sum [kLanes].
template <class T, class Function>
inline void add_lanes(const Block& block, T (&sum)[kLanes], Function&& x) {
  for (int first = 0; first < block.padded; first += kLanes)
    for (int i = 0; i < kLanes; ++i) sum[i] += x(first + i);
}
template <class T>
inline double total(const T (&x)[kLanes]) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

// out [count] = factor x [count]
template <class T>
inline void scale(const T* x, T factor, int count, T* __restrict out) {
  for (int i = 0; i < count; ++i) out[i] = factor * x[i];
}

// ---- first pass ----------------------------------------------------------------------------------------------

template <class T>
GrpoMoments<double> segment_moments(const GrpoLossForward& p, bool means, int64_t segment) {
  T advantage[kLanes] = {}, logprob[kLanes] = {}, entropy[kLanes] = {}, log_ratio[kLanes] = {};
  int64_t tokens = 0;
  for_blocks(segment, p.length, [&](const Block& block) {
    tokens += count_flags(p.mask, block);
    const bool of_sequence = p.rule.form == GrpoForm::kSequenceRatio;
    if (!means && !of_sequence) return;
    T counts[kBlock], l[kBlock], x[kBlock];
    load_flags(p.mask, block, counts);
    load(p.logprob, block, counts, l);
    if (of_sequence) {
      load(p.old_logprob, block, counts, x);
      add_lanes(block, log_ratio, [&](int i) { return l[i] - x[i]; });
    }
    if (!means) return;
    add_lanes(block, logprob, [&](int i) { return l[i]; });
    load(p.advantage, block, counts, x);
    add_lanes(block, advantage, [&](int i) { return x[i]; });
    if (p.entropy == nullptr) return;
    load(p.entropy, block, counts, x);
    add_lanes(block, entropy, [&](int i) { return x[i]; });
  });
  return {static_cast<double>(tokens), total(advantage), total(logprob), total(entropy), total(log_ratio)};
}

// ---- second pass ---------------------------------------------------------------------------------------------

// The tokens of a block [padded] as far as they count, else 0.
template <class T>
struct Tokens {
  T logprob[kBlock], old_logprob[kBlock], advantage[kBlock], entropy[kBlock], counts[kBlock], selected[kBlock];
};

// Whether anything depends on the ratio of the token, and so on ℓ_old.
template <GrpoForm form, bool statistics>
constexpr bool kUsesRatio = statistics || form == GrpoForm::kTokenRatio || form == GrpoForm::kClippedWeight;

template <class T, int... k>
inline __attribute__((always_inline)) void merge(const GrpoTerms<T>& x, int i, T (*sum)[kLanes],
                                                 std::integer_sequence<int, k...>) {
  ((sum[k][i] = grpo_merge(k, sum[k][i], x.term[k])), ...);
}

// What gspo knows of a sequence, once a lane: a condition that is the same for all tokens becomes a branch, and the loop
// stays scalar.
template <class T>
struct Sequence {
  T log_ratio[kLanes], ratio[kLanes];
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
  for (int first = 0; first < padded; first += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = first + lane;
      const GrpoToken<T> token{x.logprob[i], x.old_logprob[i], x.advantage[i],
                               x.entropy[i], x.counts[i],      x.selected[i] * x.counts[i]};
      const GrpoTerms<T> terms = grpo_terms<form, T>(r, c, token, kWithRatio ? exp_d[i] : T(0),
                                                     sequence.log_ratio[lane], sequence.ratio[lane], &slope[i]);
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
  for (int first = 0; first < padded; first += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = first + lane;
      const GrpoDivergence<T> kl = grpo_divergence<kind>(x.logprob[i] - ref[i], exp_minus[i]);
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
    default:
      return add_divergence<GrpoKl::kK3Plus, statistics, weighted, T>;
  }
}

template <GrpoForm form, bool statistics, class T>
GrpoTerms<double> segment_loss(const GrpoLossForward& p, const GrpoCentre& centre, const double* log_ratio,
                               int64_t segment) {
  Sequence<T> sequence;
  const T mean = log_ratio == nullptr ? T(0) : T(log_ratio[segment / grpo_segments(p.length)]);
  std::fill_n(sequence.log_ratio, kLanes, mean);
  std::fill_n(sequence.ratio, kLanes, std::exp(grpo_sequence_log_ratio(mean)));
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
    if (kUsesRatio<form, statistics>) load(p.old_logprob, block, x.counts, x.old_logprob);
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
GrpoTerms<double> segment_loss(const GrpoLossForward& p, const GrpoCentre& centre, const double* sequence,
                               int64_t segment) {
  return p.stats != nullptr ? segment_loss<form, true, T>(p, centre, sequence, segment)
                            : segment_loss<form, false, T>(p, centre, sequence, segment);
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

// ---- selection -----------------------------------------------------------------------------------------------

// cov [padded]: the covariance of each token. candidate [padded]: 1 where it counts and, by_band, clip_cov may
// choose it; else 0.
template <bool by_band, class T>
__attribute__((noinline)) void find_candidates(const GrpoSelect& p, const GrpoCentre& centre, int padded,
                                               const Tokens<T>& x, T* __restrict cov, T* __restrict candidate) {
  const GrpoCentre c = centre;
  for (int i = 0; i < padded; ++i) cov[i] = grpo_covariance(c, x.advantage[i], x.logprob[i]);
  if constexpr (!by_band) {
    for (int i = 0; i < padded; ++i) candidate[i] = x.counts[i];
    return;
  }
  GrpoLossRule rule;
  rule.lower = p.lower;
  rule.upper = p.upper;
  rule.dual_clip = INFINITY;
  const T lower = T(p.cov_lower), upper = T(p.cov_upper);
  T ratio[kBlock];
  for (int i = 0; i < padded; ++i) ratio[i] = exponential(grpo_log_ratio(x.logprob[i], x.old_logprob[i]));
  for (int i = 0; i < padded; ++i) {
    const GrpoToken<T> token{x.logprob[i], x.old_logprob[i], x.advantage[i], T(0), x.counts[i], T(0)};
    const GrpoPolicy<T> policy = grpo_policy<GrpoForm::kTokenRatio, T>(rule, token, T(0), ratio[i], T(1));
    const T inside = (cov[i] > lower ? T(1) : T(0)) * (cov[i] < upper ? T(1) : T(0));
    candidate[i] = x.counts[i] * inside * (T(1) - policy.low) * (T(1) - policy.high);
  }
}

// Ranks of some tokens [padded]: the largest covariance first.
template <class T>
void rank_by_covariance(const T* cov, int padded, uint32_t* __restrict rank) {
  for (int i = 0; i < padded; ++i) {
    const float descending = -static_cast<float>(cov[i]) + 0.0f;  // + 0: -0 ranks as 0
    uint32_t bits;
    std::memcpy(&bits, &descending, 4);
    rank[i] = ordered_bits(bits);
  }
}

// The same by the draws of those among them.
template <class T>
void rank_by_draw(uint64_t seed, const Block& block, const T* among, uint32_t* __restrict rank) {
  uint64_t drawn = kNoKey;
  PhiloxBlock draw{};
  for (int i = 0; i < block.count; ++i) {
    if (!(among[i] > T(0))) continue;
    const uint64_t number = static_cast<uint64_t>(block.at + i);
    if (number / 4 != drawn) draw = philox(seed, drawn = number / 4, 0);
    rank[i] = draw.word[number % 4];
  }
}

// Appends the keys below limit of those among the tokens to keys; returns how many.
template <class T>
int64_t keys_below(uint64_t limit, const Block& block, const T* among, const uint32_t* rank, uint64_t* keys) {
  const uint32_t limit_rank = static_cast<uint32_t>(limit >> 32);
  int64_t found = 0;
  for (int first = 0; first < block.padded; first += kLanes) {
    // Most tokens end here: few are below the limit once some segments have been seen.
    int near = 0;
    for (int i = first; i < first + kLanes; ++i)
      near |= static_cast<int>(among[i] > T(0)) & static_cast<int>(rank[i] <= limit_rank);
    if (near == 0) continue;
    for (int i = first; i < first + kLanes; ++i) {
      const uint64_t key = selection_key(rank[i], static_cast<uint64_t>(block.at + i));
      if (among[i] > T(0) && key < limit) keys[found++] = key;
    }
  }
  return found;
}

template <class T>
int64_t segment_keys(const GrpoSelect& p, const GrpoCentre& centre, int64_t segment, uint64_t limit, uint64_t* keys,
                     int64_t* available) {
  const bool in_band = p.choice == GrpoChoice::kClipCov, by_band = in_band || p.choice == GrpoChoice::kRandomClipCov;
  int64_t found = 0;
  T candidates[kLanes] = {};
  for_blocks(segment, p.length, [&](const Block& block) {
    T cov[kBlock], candidate[kBlock];
    uint32_t rank[kBlock] = {};
    Tokens<T> x;
    load_flags(p.mask, block, x.counts);
    load(p.logprob, block, x.counts, x.logprob);
    load(p.advantage, block, x.counts, x.advantage);
    if (by_band) load(p.old_logprob, block, x.counts, x.old_logprob);
    (by_band ? find_candidates<true, T> : find_candidates<false, T>)(p, centre, block.padded, x, cov, candidate);
    add_lanes(block, candidates, [&](int i) { return candidate[i]; });
    const T* among = in_band ? candidate : x.counts;
    if (p.choice == GrpoChoice::kKlCov) {
      rank_by_covariance(cov, block.padded, rank);
    } else {
      rank_by_draw(p.seed, block, among, rank);
    }
    found += keys_below(limit, block, among, rank, keys + found);
  });
  *available += static_cast<int64_t>(total(candidates));
  return found;
}

}  // namespace

void grpo_moments(const GrpoLossForward& p, bool means, int64_t begin, int64_t end, GrpoMoments<double>* partial) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) partial[s] = segment_moments<decltype(zero)>(p, means, s);
  });
}

void grpo_loss_forward(const GrpoLossForward& p, const GrpoCentre& centre, const double* sequence, int64_t begin,
                       int64_t end, GrpoTerms<double>* partial) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) partial[s] = segment_loss<decltype(zero)>(p, centre, sequence, s);
  });
}

void grpo_loss_backward(const GrpoLossBackward& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto zero) {
    for (int64_t s = begin; s < end; ++s) segment_backward<decltype(zero)>(p, s);
  });
}

int64_t grpo_select_keys(const GrpoSelect& p, const GrpoCentre& centre, int64_t segment, uint64_t limit, uint64_t* keys,
                         int64_t* available) {
  int64_t found = 0;
  with_type(p.dtype,
            [&](auto zero) { found = segment_keys<decltype(zero)>(p, centre, segment, limit, keys, available); });
  return found;
}

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::ops
