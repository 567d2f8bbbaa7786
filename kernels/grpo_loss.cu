// Two passes over the tokens, a block a segment of a sequence, and after each a block of one that joins what the segments
// say in a fixed order. The selection ranks 64-bit keys and finds the n-th smallest byte by byte, from the highest: a
// histogram a byte, each launch picking up where the last one left off, so that nothing waits for the host.
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/reduce.h"
#include "kernels/grpo_loss.h"

namespace isentrope::kernels {
namespace grpo {

constexpr int kThreads = 256;

// What the mathematics of a token asks of a backend.
struct Math {
  GPU_DEVICE static float exponential(float x) { return ::expf(x); }
  GPU_DEVICE static double exponential(double x) { return ::exp(x); }
  GPU_DEVICE static float logarithm(float x) { return ::logf(x); }
  GPU_DEVICE static double logarithm(double x) { return ::log(x); }
};

struct JoinMoments {
  template <class T>
  GPU_DEVICE GrpoMoments<T> operator()(const GrpoMoments<T>& a, const GrpoMoments<T>& b) const {
    return grpo_add(a, b);
  }
};
struct JoinTerms {
  template <class T, int terms>
  GPU_DEVICE GrpoTerms<T, terms> operator()(const GrpoTerms<T, terms>& a, const GrpoTerms<T, terms>& b) const {
    GrpoTerms<T, terms> sum;
    GPU_UNROLL
    for (int k = 0; k < terms; ++k) sum.term[k] = grpo_merge(k, a.term[k], b.term[k]);
    return sum;
  }
};
template <class T, int terms>
GPU_DEVICE GrpoTerms<T, terms> no_terms() {
  GrpoTerms<T, terms> x;
  GPU_UNROLL
  for (int k = 0; k < terms; ++k) x.term[k] = static_cast<T>(grpo_neutral(k));
  return x;
}
// The first terms of x, in type T.
template <class T, int terms, class X, int given>
GPU_DEVICE GrpoTerms<T, terms> first_terms(const GrpoTerms<X, given>& x) {
  GrpoTerms<T, terms> y;
  GPU_UNROLL
  for (int k = 0; k < terms; ++k) y.term[k] = static_cast<T>(x.term[k]);
  return y;
}

// The tokens of this block: the segment blockIdx.x of the B * segments, sequence by sequence.
struct Segment {
  int64_t row, begin, end;  // the sequence; the first token and the one after the last, counted over all sequences
};
GPU_DEVICE Segment segment_of(int64_t length) {
  const int64_t per_row = grpo_segments(length), row = blockIdx.x / per_row,
                first = blockIdx.x % per_row * kGrpoSegment;
  const int64_t last = first + kGrpoSegment < length ? first + kGrpoSegment : length;
  return {row, row * length + first, row * length + last};
}

// values[i] where the token counts, else 0, whatever stands there. values may be null: 0.
template <class T>
GPU_DEVICE T at(const void* values, int64_t i, bool counts) {
  return counts && values != nullptr ? static_cast<const T*>(values)[i] : T(0);
}

// ---- workspaces ------------------------------------------------------------------------------------------------------

struct LossWorkspace {
  GrpoCentre* centre;              // [1]
  GrpoSequence<double>* sequence;  // [B]
  GrpoMoments<double>* moments;    // [B, segments]
  GrpoTerms<double>* terms;        // [B, segments]; without statistics the loss alone
};
inline LossWorkspace loss_workspace(void* p, int64_t batch, int64_t length) {
  LossWorkspace w;
  w.centre = static_cast<GrpoCentre*>(p);
  w.sequence = reinterpret_cast<GrpoSequence<double>*>(w.centre + 1);
  w.moments = reinterpret_cast<GrpoMoments<double>*>(w.sequence + batch);
  w.terms = reinterpret_cast<GrpoTerms<double>*>(w.moments + batch * grpo_segments(length));
  return w;
}

struct SelectWorkspace {
  GrpoCentre* centre;            // [1]
  int64_t* available;            // [1] tokens that the count rule may take
  GrpoSearch* search;            // [kKeyBytes + 1] before each byte, and at the end
  uint32_t* histogram;           // [kKeyBytes, 256]
  GrpoMoments<double>* moments;  // [B, segments]
  uint64_t* keys;                // [B, T]
};
inline SelectWorkspace select_workspace(void* p, int64_t batch, int64_t length) {
  SelectWorkspace w;
  w.centre = static_cast<GrpoCentre*>(p);
  w.available = reinterpret_cast<int64_t*>(w.centre + 1);
  w.search = reinterpret_cast<GrpoSearch*>(w.available + 1);
  w.histogram = reinterpret_cast<uint32_t*>(w.search + kKeyBytes + 1);
  w.moments = reinterpret_cast<GrpoMoments<double>*>(w.histogram + kKeyBytes * 256);
  w.keys = reinterpret_cast<uint64_t*>(w.moments + batch * grpo_segments(length));
  return w;
}

// ---- first pass ------------------------------------------------------------------------------------------------------

// Grid: B * segments. logprob, old_logprob (null: no log ratio), advantage, entropy, mask [B, T]; moments [B, segments].
// All but mask may be null where their sums are not wanted.
template <class T>
__global__ void __launch_bounds__(kThreads)
    grpo_moments_kernel(const GrpoLossRule rule, const void* logprob, const void* old_logprob, const void* advantage,
                        const void* entropy, const bool* mask, int64_t length, GrpoMoments<double>* moments) {
  GPU_SHARED(GrpoMoments<T>, scratch, kThreads / 32);
  const Segment segment = segment_of(length);
  GrpoMoments<T> sum = {T(0), T(0), T(0), T(0), T(0)};
  for (int64_t i = segment.begin + threadIdx.x; i < segment.end; i += kThreads) {
    if (!mask[i]) continue;
    const T l = at<T>(logprob, i, true), a = at<T>(advantage, i, true);
    sum = grpo_add(
        sum,
        GrpoMoments<T>{T(1), a, l, at<T>(entropy, i, true),
                       old_logprob == nullptr ? T(0) : grpo_sequence_term(rule, l - at<T>(old_logprob, i, true), a)});
  }
  sum = gpu::block_reduce<kThreads>(sum, JoinMoments(), scratch);
  if (threadIdx.x == 0) moments[blockIdx.x] = grpo_add(GrpoMoments<double>{0, 0, 0, 0, 0}, sum);
}

struct RowTotals {
  GrpoMoments<double> moments;
  double sequences;
};
struct JoinRows {
  GPU_DEVICE RowTotals operator()(const RowTotals& a, const RowTotals& b) const {
    return {grpo_add(a.moments, b.moments), a.sequences + b.sequences};
  }
};

// Grid: 1. moments [B, segments] → centre [1], sequence [B] (or null).
__global__ void __launch_bounds__(kThreads)
    grpo_centre_kernel(const GrpoLossRule rule, const GrpoMoments<double>* moments, int64_t batch, int64_t segments,
                       GrpoCentre* centre, GrpoSequence<double>* sequence) {
  GPU_SHARED(RowTotals, scratch, kThreads / 32);
  RowTotals all = {{0, 0, 0, 0, 0}, 0};
  for (int64_t row = threadIdx.x; row < batch; row += kThreads) {
    GrpoMoments<double> sum = {0, 0, 0, 0, 0};
    for (int64_t s = 0; s < segments; ++s) sum = grpo_add(sum, moments[row * segments + s]);
    if (sequence != nullptr) sequence[row] = grpo_sequence(rule, sum.log_ratio, sum.tokens);
    all = JoinRows()(all, RowTotals{sum, sum.tokens > 0 ? 1.0 : 0.0});
  }
  all = gpu::block_reduce<kThreads>(all, JoinRows(), scratch);
  if (threadIdx.x != 0) return;
  const double share = all.moments.tokens > 0 ? 1.0 / all.moments.tokens : 0.0;
  centre->tokens = all.moments.tokens;
  centre->sequences = all.sequences;
  centre->advantage = all.moments.advantage * share;
  centre->logprob = all.moments.logprob * share;
  centre->entropy = all.moments.entropy * share;
}

// ---- second pass -----------------------------------------------------------------------------------------------------

// The kind is the same for every token: a uniform branch costs less than six times as many kernels.
template <class T>
GPU_DEVICE GrpoDivergence<T> divergence_of(GrpoKl kind, T delta, T exp_minus, T ratio) {
  switch (kind) {
    case GrpoKl::kK1:
      return grpo_divergence<GrpoKl::kK1>(delta, exp_minus, ratio);
    case GrpoKl::kK2:
      return grpo_divergence<GrpoKl::kK2>(delta, exp_minus, ratio);
    case GrpoKl::kK1Plus:
      return grpo_divergence<GrpoKl::kK1Plus>(delta, exp_minus, ratio);
    case GrpoKl::kK3Plus:
      return grpo_divergence<GrpoKl::kK3Plus>(delta, exp_minus, ratio);
    case GrpoKl::kK3Is:
      return grpo_divergence<GrpoKl::kK3Is>(delta, exp_minus, ratio);
    default:
      return grpo_divergence<GrpoKl::kK3>(delta, exp_minus, ratio);
  }
}

// Grid: B * segments. Token losses, slopes, and the sums of the segment. (One block an SM is enough to ask for: more, and
// ptxas spills registers for the sake of occupancy.)
template <class T, GrpoForm form, bool statistics>
__global__ void __launch_bounds__(kThreads, 1)
    grpo_loss_forward_kernel(const GrpoLossForward p, const LossWorkspace w) {
  constexpr int kTerms = kGrpoWanted<statistics>;
  using Sums = GrpoTerms<double, kTerms>;
  GPU_SHARED(Sums, scratch, kThreads / 32);
  const Segment segment = segment_of(p.length);
  const GrpoCentre centre = *w.centre;
  const GrpoSequence<T> sequence = grpo_of_sequence(form) ? grpo_cast<T>(w.sequence[segment.row]) : GrpoSequence<T>{};
  GrpoTerms<T, kTerms> sum = no_terms<T, kTerms>();
  for (int64_t i = segment.begin + threadIdx.x; i < segment.end; i += kThreads) {
    const bool counts = p.mask[i];
    T slope = T(0), loss = T(0);
    if (counts) {
      const T l = at<T>(p.logprob, i, true);
      const GrpoToken<T> token = {l,
                                  at<T>(p.old_logprob, i, true),
                                  at<T>(p.advantage, i, true),
                                  at<T>(p.entropy, i, true),
                                  T(1),
                                  p.selected != nullptr && p.selected[i] ? T(1) : T(0)};
      const T exp_d = Math::exponential(grpo_log_ratio(l, token.old_logprob));
      T factor = T(0);
      if constexpr (grpo_has_factor(form))
        factor = grpo_factor<form, Math>(p.rule, l, token.old_logprob, token.advantage, exp_d);
      GrpoTerms<T> x = grpo_terms<form>(p.rule, centre, token, exp_d, factor, sequence, &slope);
      if (p.ref_logprob != nullptr && (statistics || p.rule.ref_kl_coef != 0)) {
        const T ref = at<T>(p.ref_logprob, i, true);
        const T coef = T(p.rule.ref_kl_coef) * (p.ref_kl_weight == nullptr ? T(1) : at<T>(p.ref_kl_weight, i, true));
        const GrpoDivergence<T> divergence =
            divergence_of(p.rule.ref_kl, l - ref, Math::exponential(-grpo_log_ratio(l, ref)), exp_d);
        x.term[kSumLoss] += coef * divergence.loss;
        slope += coef * divergence.slope;
        x.term[kSumRefK1] = divergence.k1;
        x.term[kSumRefK2] = divergence.k2;
        x.term[kSumRefK3] = divergence.k3;
      }
      loss = x.term[kSumLoss];
      sum = JoinTerms()(sum, first_terms<T, kTerms>(x));
    }
    static_cast<T*>(p.token_loss)[i] = loss;
    if (p.slope != nullptr) static_cast<T*>(p.slope)[i] = slope;
  }
  const Sums total = gpu::block_reduce<kThreads>(first_terms<double, kTerms>(sum), JoinTerms(), scratch);
  if (threadIdx.x != 0) return;
  GPU_UNROLL
  for (int k = 0; k < kTerms; ++k) w.terms[blockIdx.x].term[k] = total.term[k];
}

// Grid: 1. Weights, loss and statistics from the sums of the segments.
template <class T, bool statistics>
__global__ void __launch_bounds__(kThreads, 1) grpo_finish_kernel(const GrpoLossForward p, const LossWorkspace w) {
  constexpr int kTerms = kGrpoWanted<statistics>;
  using Sums = GrpoTerms<double, kTerms>;
  GPU_SHARED(Sums, scratch, kThreads / 32);
  const GrpoCentre centre = *w.centre;
  const int64_t segments = grpo_segments(p.length);
  Sums sum = no_terms<double, kTerms>();  // its loss is the weighted one
  for (int64_t row = threadIdx.x; row < p.batch; row += kThreads) {
    double tokens = 0;
    for (int64_t s = row * segments; s < (row + 1) * segments; ++s) tokens += w.moments[s].tokens;
    const double weight = grpo_weight(p.rule.aggregate, centre, tokens, p.length, static_cast<const T*>(p.normalizer));
    static_cast<T*>(p.weight)[row] = static_cast<T>(weight);
    for (int64_t s = row * segments; s < (row + 1) * segments; ++s) {
      Sums x = first_terms<double, kTerms>(w.terms[s]);
      x.term[kSumLoss] = weight != 0 ? weight * x.term[kSumLoss] : 0.0;
      sum = JoinTerms()(sum, x);
    }
  }
  sum = gpu::block_reduce<kThreads>(sum, JoinTerms(), scratch);
  if (threadIdx.x != 0) return;
  *static_cast<T*>(p.loss) = static_cast<T>(sum.term[kSumLoss]);
  if constexpr (statistics) grpo_statistics(centre, sum, p.stats);
}

// ---- backward --------------------------------------------------------------------------------------------------------

// Grid: B * segments.
template <class T>
__global__ void __launch_bounds__(kThreads) grpo_loss_backward_kernel(const GrpoLossBackward p) {
  const Segment segment = segment_of(p.length);
  const T row =
      p.dloss == nullptr ? T(0) : static_cast<const T*>(p.weight)[segment.row] * *static_cast<const T*>(p.dloss);
  for (int64_t i = segment.begin + threadIdx.x; i < segment.end; i += kThreads) {
    const bool counts = p.mask[i];
    const T d = counts ? row + at<T>(p.dtoken_loss, i, true) : T(0);
    if (p.dlogprob != nullptr) static_cast<T*>(p.dlogprob)[i] = counts ? d * static_cast<const T*>(p.slope)[i] : T(0);
    if (p.dentropy != nullptr) static_cast<T*>(p.dentropy)[i] = -T(p.entropy_coef) * d;
  }
}

// ---- selection -------------------------------------------------------------------------------------------------------

// Grid: 1. What the later kernels add to.
__global__ void __launch_bounds__(kThreads) grpo_clear_kernel(const SelectWorkspace w) {
  for (int i = threadIdx.x; i < kKeyBytes * 256; i += kThreads) w.histogram[i] = 0;
  if (threadIdx.x == 0) *w.available = 0;
}

// Grid: B * segments. Keys, and how many tokens the count rule may take (a sum of integers: any order gives the same).
template <class T, GrpoChoice choice>
__global__ void __launch_bounds__(kThreads) grpo_keys_kernel(const GrpoSelect p, const SelectWorkspace w) {
  constexpr bool kByBand = choice == GrpoChoice::kClipCov || choice == GrpoChoice::kRandomClipCov;
  GPU_SHARED(int, scratch, kThreads / 32);
  const Segment segment = segment_of(p.length);
  const GrpoCentre centre = *w.centre;
  GrpoLossRule rule;
  rule.lower = p.lower;
  rule.upper = p.upper;
  rule.dual_clip = INFINITY;
  int available = 0;
  for (int64_t i = segment.begin + threadIdx.x; i < segment.end; i += kThreads) {
    const bool counts = p.mask[i];
    uint64_t key = kNoKey;
    if (counts) {
      const T l = at<T>(p.logprob, i, true), advantage = at<T>(p.advantage, i, true);
      const T cov = grpo_covariance(centre, advantage, l);
      bool candidate = true;
      if constexpr (kByBand) {
        const T d = grpo_log_ratio(l, at<T>(p.old_logprob, i, true));
        const GrpoToken<T> token = {l, T(0), advantage, T(0), T(1), T(0)};
        const auto policy = grpo_policy<GrpoForm::kTokenRatio>(rule, token, d, Math::exponential(d), T(1));
        candidate = cov > T(p.cov_lower) && cov < T(p.cov_upper) && policy.low + policy.high == T(0);
      }
      available += candidate;
      if constexpr (choice == GrpoChoice::kKlCov) {
        key = selection_key(ordered_bits(__float_as_uint(-static_cast<float>(cov) + 0.0f)), i);  // + 0: -0 ranks as 0
      } else if (candidate || choice != GrpoChoice::kClipCov) {
        key = selection_key(philox(p.seed, static_cast<uint64_t>(i) / 4, 0).word[i % 4], i);
      }
    }
    w.keys[i] = key;
  }
  available = gpu::block_reduce<kThreads>(available, gpu::Sum(), scratch);
  if (threadIdx.x == 0 && available > 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(w.available), static_cast<unsigned long long>(available));
}

// Where the search stands before byte number byte (0 is the highest): from its start, or from the histogram of the byte
// before it. Every thread of every block comes to the same answer. counts [256] shared.
GPU_DEVICE GrpoSearch search_before(int byte, const GrpoSelect& p, const SelectWorkspace& w, uint32_t* counts) {
  if (byte == 0)
    return {0, selection_count(p.fraction, p.minimum, static_cast<int64_t>(w.centre->tokens), *w.available)};
  GrpoSearch search = w.search[byte - 1];
  counts[threadIdx.x] = w.histogram[(byte - 1) * 256 + threadIdx.x];
  __syncthreads();
  if (search.rank > 0) {
    int digit = 0;
    for (; digit < 255 && counts[digit] < search.rank; ++digit) search.rank -= counts[digit];
    search.prefix |= static_cast<uint64_t>(digit) << (8 * (kKeyBytes - byte));
  }
  __syncthreads();
  return search;
}

// Grid: any. Counts the bytes number byte of the keys with the prefix found so far.
__global__ void __launch_bounds__(kThreads)
    grpo_histogram_kernel(int byte, const GrpoSelect p, const SelectWorkspace w) {
  GPU_SHARED(uint32_t, counts, 256);
  const GrpoSearch search = search_before(byte, p, w, counts);
  if (blockIdx.x == 0 && threadIdx.x == 0) w.search[byte] = search;
  counts[threadIdx.x] = 0;
  __syncthreads();
  const int shift = 8 * (kKeyBytes - 1 - byte);
  const int64_t tokens = p.batch * p.length;
  if (search.rank > 0) {
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < tokens; i += int64_t{gridDim.x} * kThreads) {
      const uint64_t key = w.keys[i];
      // Two shifts, since one by all 64 bits is undefined.
      if ((key ^ search.prefix) >> shift >> 8 == 0) atomicAdd(&counts[key >> shift & 255], 1u);
    }
  }
  __syncthreads();
  if (counts[threadIdx.x] > 0) atomicAdd(&w.histogram[byte * 256 + threadIdx.x], counts[threadIdx.x]);
}

// Grid: any. selected [B, T]: the keys up to the one that was found.
__global__ void __launch_bounds__(kThreads) grpo_mark_kernel(const GrpoSelect p, const SelectWorkspace w) {
  GPU_SHARED(uint32_t, counts, 256);
  const GrpoSearch last = search_before(kKeyBytes, p, w, counts);
  const int64_t tokens = p.batch * p.length;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < tokens; i += int64_t{gridDim.x} * kThreads)
    p.selected[i] = last.rank > 0 && w.keys[i] <= last.prefix;
}

// ---- launchers -------------------------------------------------------------------------------------------------------

unsigned segments_of(int64_t batch, int64_t length) { return static_cast<unsigned>(batch * grpo_segments(length)); }

// means: those of advantage, logprob and entropy are wanted. old_logprob: null where no log ratio is.
template <class T>
void centre(const GrpoLossForward& p, bool means, const void* old_logprob, GrpoMoments<double>* moments,
            GrpoCentre* centre, GrpoSequence<double>* sequence, void* stream) {
  const bool of_sequences = old_logprob != nullptr;
  gpu::launch(grpo_moments_kernel<T>, dim3(segments_of(p.batch, p.length)), dim3(kThreads), 0, stream, p.rule,
              means || of_sequences ? p.logprob : nullptr, old_logprob, means || of_sequences ? p.advantage : nullptr,
              means ? p.entropy : nullptr, p.mask, p.length, moments);
  gpu::launch(grpo_centre_kernel, dim3(1), dim3(kThreads), 0, stream, p.rule, moments, p.batch, grpo_segments(p.length),
              centre, sequence);
}

}  // namespace grpo

void grpo_loss_forward_cuda(const GrpoLossForward& p, void* stream) {
  using namespace grpo;
  const LossWorkspace w = loss_workspace(p.workspace, p.batch, p.length);
  gpu::dispatch<DType::kFloat, DType::kDouble>("grpo_loss_forward: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    const bool of_sequences = grpo_of_sequence(p.rule.form);
    centre<T>(p, p.stats != nullptr, of_sequences ? p.old_logprob : nullptr, w.moments, w.centre, w.sequence, stream);
    gpu::dispatch<false, true>("grpo_loss_forward: statistics", p.stats != nullptr, [&](auto statistics) {
      gpu::dispatch<GrpoForm::kTokenRatio, GrpoForm::kSequenceRatio, GrpoForm::kClippedWeight, GrpoForm::kUnitWeight,
                    GrpoForm::kTotalVariation, GrpoForm::kBinaryKl, GrpoForm::kSoftGate, GrpoForm::kGeometricMean,
                    GrpoForm::kGammaWeight, GrpoForm::kKeptGradient, GrpoForm::kQuadratic>(
          "grpo_loss_forward: form", p.rule.form, [&](auto form) {
            gpu::launch(grpo_loss_forward_kernel<T, form(), statistics()>, dim3(segments_of(p.batch, p.length)),
                        dim3(kThreads), 0, stream, p, w);
          });
      gpu::launch(grpo_finish_kernel<T, statistics()>, dim3(1), dim3(kThreads), 0, stream, p, w);
    });
  });
}

void grpo_loss_backward_cuda(const GrpoLossBackward& p, void* stream) {
  gpu::dispatch<DType::kFloat, DType::kDouble>("grpo_loss_backward: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    gpu::launch(grpo::grpo_loss_backward_kernel<T>, dim3(grpo::segments_of(p.batch, p.length)), dim3(grpo::kThreads), 0,
                stream, p);
  });
}

void grpo_select_cuda(const GrpoSelect& p, void* stream) {
  using namespace grpo;
  const SelectWorkspace w = select_workspace(p.workspace, p.batch, p.length);
  const unsigned segments = segments_of(p.batch, p.length);
  gpu::dispatch<DType::kFloat, DType::kDouble>("grpo_select: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    GrpoLossForward first;
    first.batch = p.batch;
    first.length = p.length;
    first.logprob = p.logprob;
    first.advantage = p.advantage;
    first.mask = p.mask;
    gpu::launch(grpo_clear_kernel, dim3(1), dim3(kThreads), 0, stream, w);
    centre<T>(first, true, nullptr, w.moments, w.centre, nullptr, stream);
    gpu::dispatch<GrpoChoice::kClipCov, GrpoChoice::kKlCov, GrpoChoice::kRandomClipCov, GrpoChoice::kRandomKlCov>(
        "grpo_select: choice", p.choice, [&](auto choice) {
          gpu::launch(grpo_keys_kernel<T, choice()>, dim3(segments), dim3(kThreads), 0, stream, p, w);
        });
  });
  // Enough blocks for the largest device, few enough that joining their histograms costs little.
  const int64_t blocks = gpu::ceil_div<int64_t>(p.batch * p.length, 4 * kThreads);
  const dim3 grid(static_cast<unsigned>(blocks < 264 ? blocks : 264));
  for (int byte = 0; byte < kKeyBytes; ++byte)
    gpu::launch(grpo_histogram_kernel, grid, dim3(kThreads), 0, stream, byte, p, w);
  gpu::launch(grpo_mark_kernel, grid, dim3(kThreads), 0, stream, p, w);
}

}  // namespace isentrope::kernels
