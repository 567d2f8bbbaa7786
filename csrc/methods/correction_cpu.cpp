// The loops of correction and mismatch. Compiled once for every instruction set, in a namespace of its name.
#include <tuple>

#include "csrc/methods/token_loops.h"

namespace isentrope::methods {
namespace CPU_CAPABILITY {
namespace {

// The logarithm of the ratio of a token; 0 where it is NaN, as of tokens that one side could not score.
template <class T>
inline __attribute__((always_inline)) T log_ratio(T logprob, T old_logprob) {
  const T d = logprob - old_logprob;
  return d != d ? T(0) : d;
}
template <class T>
inline __attribute__((always_inline)) T held(T d) {
  constexpr T kMost = T(20);  // keeps exp(d) finite in float, as in the packages
  const T x = d > kMost ? kMost : d;
  return x < -kMost ? -kMost : x;
}

template <class T>
void ratio(const RatioLoop& p, int64_t begin, int64_t end) {
  const T low = T(p.low), high = T(p.high);
  T buffer[kBlock];
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = std::min(kBlock, end - at);
    const T *logprob = of<T>(p.logprob, at), *old = of<T>(p.old_logprob, at);
    const uint8_t* mask = flags(p.mask) + at;
    T* __restrict factor = static_cast<T*>(p.factor) + at;
    const bool rejects = p.outside == Outside::kReject;
    uint8_t* __restrict removed = rejects ? reinterpret_cast<uint8_t*>(p.removed) + at : nullptr;
    if (!any_flag(mask, count)) {
      std::fill_n(factor, count, T(0));
      if (rejects) std::fill_n(removed, count, uint8_t{0});
      continue;
    }
    const bool whole = !rejects && all_flags(mask, count);
    T* __restrict w = whole ? factor : buffer;
    if (p.outside == Outside::kTruncate && low == T(0)) {
      for (int64_t i = 0; i < count; ++i) {
        const T e = exponential(held(log_ratio(logprob[i], old[i])));
        w[i] = e > high ? high : e;
      }
    } else if (p.outside == Outside::kTruncate) {
      for (int64_t i = 0; i < count; ++i) {
        const T e = exponential(held(log_ratio(logprob[i], old[i]))), f = e > high ? high : e;
        w[i] = f < low ? low : f;
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const T e = exponential(held(log_ratio(logprob[i], old[i])));
        w[i] = (e >= low) & (e <= high) ? e : T(0);
      }
    }
    if (whole) continue;
    if (!rejects) {
      for (int64_t i = 0; i < count; ++i) factor[i] = mask[i] != 0 ? w[i] : T(0);
      continue;
    }
    for (int64_t i = 0; i < count; ++i) factor[i] = (mask[i] != 0) & (w[i] > T(0)) ? T(1) : T(0);
    for (int64_t i = 0; i < count; ++i) removed[i] = (mask[i] != 0) & (w[i] == T(0)) ? 1 : 0;
  }
}

// factor ← value and removed ← gone where a token counts, else 0; removed may be null.
template <class T>
void fill_row(const TokenRows& p, int64_t row, T value, bool gone, void* factors, bool* flags_out) {
  const int64_t at = row * p.length;
  const uint8_t* mask = flags(p.mask) + at;
  T* __restrict factor = static_cast<T*>(factors) + at;
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin);
    if (all_flags(mask + begin, count))
      std::fill_n(factor + begin, count, value);
    else
      for (int64_t t = begin; t < begin + count; ++t) factor[t] = mask[t] != 0 ? value : T(0);
  }
  if (flags_out == nullptr) return;
  const uint8_t flag = gone ? 1 : 0;
  auto* __restrict removed = reinterpret_cast<uint8_t*>(flags_out) + at;
  for (int64_t t = 0; t < p.length; ++t) removed[t] = mask[t] != 0 ? flag : 0;
}
template <class T>
void fill(const FillLoop& p, int64_t row) {
  fill_row(p, row, T(p.value[row]), p.gone != nullptr && p.gone[row], p.factor,
           p.gone == nullptr ? nullptr : p.removed);
}

// exp(d) − 1 − d, without the digits that the difference loses where d is small: d² (1/2 + d/6 + d²/24 + …).
template <class T>
inline __attribute__((always_inline)) T excess(T d, T w) {
  T sum = T(1) / 5040;
  sum = sum * d + T(1) / 720;
  sum = sum * d + T(1) / 120;
  sum = sum * d + T(1) / 24;
  sum = sum * d + T(1) / 6;
  sum = sum * d + T(1) / 2;
  const T near = sum * d * d, far = w - T(1) - d;
  return (d < T(0.25)) & (d > T(-0.25)) ? near : far;  // the next term of the series is below 1e-9 of it there
}

// (Σ d, tokens) of a row; a block that counts as a whole asks no mask.
template <class T>
std::pair<double, int64_t> row_gap(const TokenRows& p, const void* logprobs, const void* old_logprobs, int64_t row) {
  int64_t tokens = 0;
  double sum[kLanes] = {};
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin), at = row * p.length + begin;
    const T *logprob = of<T>(logprobs, at), *old = of<T>(old_logprobs, at);
    const uint8_t* mask = flags(p.mask) + at;
    if (!any_flag(mask, count)) continue;
    if (all_flags(mask, count)) {
      tokens += count;
      add(count, sum, [&](int64_t i) { return static_cast<double>(log_ratio(logprob[i], old[i])); });
    } else {
      tokens += count_marked_on_cpu(p.mask + at, count);
      add_marked<T>(count, mask, sum, [&](int64_t i) { return log_ratio(logprob[i], old[i]); });
    }
  }
  return {total(sum), tokens};
}

// Sum and factor in one pass: the memory of a row is written while those of the next are read.
template <class T>
void sequence_ratio(const SequenceRatioLoop& p, int64_t row) {
  const auto [sum, tokens] = row_gap<T>(p, p.logprob, p.old_logprob, row);
  const double d = !p.geometric ? sum : tokens == 0 ? 0 : sum / static_cast<double>(tokens);
  const double w = std::exp(held(d));
  const bool gone = p.outside != Outside::kTruncate && (w < p.low || w > p.high);
  const double value = p.outside == Outside::kTruncate ? std::clamp(w, p.low, p.high)
                       : gone                          ? 0
                       : p.outside == Outside::kReject ? 1
                                                       : w;
  fill_row(p, row, T(value), gone, p.factor, p.outside == Outside::kReject ? p.removed : nullptr);
}

template <class T>
void gap(const GapLoop& p, int64_t row) {
  GapSums& to = p.gap[row];
  to = {};
  if (!p.all) {
    std::tie(to.sum, to.tokens) = row_gap<T>(p, p.logprob, p.old_logprob, row);
    return;
  }
  to.tokens = count_marked_on_cpu(p.mask + row * p.length, p.length);
  double sum[kLanes] = {}, absolute[kLanes] = {}, k3[kLanes] = {}, square[kLanes] = {}, weight[kLanes] = {},
         weight_square[kLanes] = {};
  T greatest[kLanes] = {};
  T d[kBlock], w[kBlock], x[kBlock];
  const T most_weight = T(p.clamp);
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin), at = row * p.length + begin;
    const T *logprob = of<T>(p.logprob, at), *old = of<T>(p.old_logprob, at);
    const uint8_t* mask = flags(p.mask) + at;
    if (!any_flag(mask, count)) continue;
    for (int64_t i = 0; i < count; ++i) {
      const T own = logprob[i] - old[i];
      d[i] = (own == own) & (mask[i] != 0) ? own : T(0);
    }
    add(count, sum, [&](int64_t i) { return static_cast<double>(d[i]); });
    for (int64_t i = 0; i < count; ++i) x[i] = d[i] < T(0) ? -d[i] : d[i];
    add(count, absolute, [&](int64_t i) { return static_cast<double>(x[i]); });
    raise(count, greatest, [&](int64_t i) { return x[i]; });
    for (int64_t i = 0; i < count; ++i) {
      const T e = exponential(held(d[i]));
      w[i] = mask[i] != 0 ? e : T(0);
    }
    for (int64_t i = 0; i < count; ++i) x[i] = mask[i] != 0 ? excess(held(d[i]), w[i]) : T(0);
    add(count, k3, [&](int64_t i) { return static_cast<double>(x[i]); });
    add(count, square, [&](int64_t i) { return static_cast<double>(w[i]) * static_cast<double>(w[i]); });
    for (int64_t i = 0; i < count; ++i) w[i] = w[i] > most_weight ? most_weight : w[i];
    add(count, weight, [&](int64_t i) { return static_cast<double>(w[i]); });
    add(count, weight_square, [&](int64_t i) { return static_cast<double>(w[i]) * static_cast<double>(w[i]); });
  }
  to.sum = total(sum);
  to.absolute = total(absolute), to.most = static_cast<double>(most(greatest));
  to.k3 = total(k3), to.square = total(square);
  to.weight = total(weight), to.weight_square = total(weight_square);
}

}  // namespace

ISENTROPE_CHUNKS(ratio, RatioLoop)
ISENTROPE_ROWS(fill, FillLoop)
ISENTROPE_ROWS(sequence_ratio, SequenceRatioLoop)
ISENTROPE_ROWS(gap, GapLoop)

void drop_on_cpu(const DropLoop& p) {
  const int64_t bytes = p.length * static_cast<int64_t>(p.wide ? sizeof(double) : sizeof(float));
  for (int64_t row = 0; row < p.rows; ++row)
    if (p.drop[row]) std::memset(static_cast<char*>(p.factor) + row * bytes, 0, bytes);
}

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::methods
