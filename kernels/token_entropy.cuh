// Device code of token_entropy's rows, which linear_token_entropy shares: the centred sums of the logits that a thread meets, the
// outputs of a row made of them, and its gradient.
#pragma once
#include <type_traits>

#include "kernels/gpu/platform.h"
#include "kernels/token_entropy.h"

namespace isentrope::kernels {
namespace token_entropy {

GPU_DEVICE float natural_log(float x) { return ::logf(x); }
GPU_DEVICE double natural_log(double x) { return ::log(x); }

// log2 of a probability, bounded so that p·log p is 0 at -inf. exp2 of the bound is 0. A NaN stays.
template <class A>
GPU_DEVICE A bounded(A y) {
  return y < A(-1100) ? A(-1100) : y;
}

// Of the logits met: anchor = their maximum, and with s = 2^((z - anchor)·c): sums of s, s·log2 s, s², s²·log2 s.
template <class A>
struct Sums {
  A anchor, sum, sum_log, square, square_log;
};

template <class A, bool kMoments>
GPU_DEVICE void move_anchor(Sums<A>& x, A anchor, A c) {
  if (x.anchor != -INFINITY) {  // before the first finite logit the sums are 0, or NaN for good
    const A shift = (x.anchor - anchor) * c, scale = gpu::exp2_approx(shift);
    x.sum_log = scale * (x.sum_log + bounded(shift) * x.sum);
    x.sum = scale * x.sum;
    if constexpr (kMoments) {
      x.square_log = scale * scale * (x.square_log + bounded(shift) * x.square);
      x.square = scale * scale * x.square;
    }
  }
  x.anchor = anchor;
}

// count logits at once: one look at the anchor for all of them.
template <bool kMoments, int kCount, class T, class A>
GPU_DEVICE void add(Sums<A>& x, const T (&z)[kCount], A c) {
  A largest = gpu::widen(z[0]);
  GPU_UNROLL
  for (int i = 1; i < kCount; ++i) largest = gpu::maximum(largest, gpu::widen(z[i]));
  if (largest > x.anchor) move_anchor<A, kMoments>(x, largest, c);
  const A anchor = x.anchor == -INFINITY ? A(0) : x.anchor;
  GPU_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const A y = bounded((gpu::widen(z[i]) - anchor) * c), s = gpu::exp2_approx(y);
    x.sum += s;
    x.sum_log += s * y;
    if constexpr (kMoments) {
      x.square += s * s;
      x.square_log += s * s * y;
    }
  }
}

template <class A, bool kMoments>
struct Join {
  A c;
  GPU_DEVICE Sums<A> operator()(Sums<A> a, Sums<A> b) const {
    const A anchor = a.anchor < b.anchor ? b.anchor : a.anchor;
    move_anchor<A, kMoments>(a, anchor, c);
    move_anchor<A, kMoments>(b, anchor, c);
    return {anchor, a.sum + b.sum, a.sum_log + b.sum_log, a.square + b.square, a.square_log + b.square_log};
  }
};

template <class A>
GPU_DEVICE void write_row(const TokenEntropyRows& p, int64_t n, A logprob, A entropy, A lse, A anchor, A log_sum,
                          A sum_p2, A sum_p2_logp) {
  static_cast<A*>(p.logprob)[n] = logprob;
  static_cast<A*>(p.entropy)[n] = entropy;
  static_cast<A*>(p.lse)[n] = lse;
  static_cast<A*>(p.anchor)[n] = anchor;
  static_cast<A*>(p.log_sum)[n] = log_sum;
  if (p.sum_p2) {
    static_cast<A*>(p.sum_p2)[n] = sum_p2;
    static_cast<A*>(p.sum_p2_logp)[n] = sum_p2_logp;
  }
}

template <class A>
GPU_DEVICE void finish_row(const TokenEntropyRows& p, int64_t n, const Sums<A>& x, A target_logit, double temperature) {
  const A zero = 0;
  if (x.anchor == -INFINITY && x.sum == 0) {
    write_row<A>(p, n, -INFINITY, zero, -INFINITY, -INFINITY, zero, zero, zero);
    return;
  }
  const A log_sum = natural_log(x.sum), entropy = log_sum - A(0.69314718055994530942) * (x.sum_log / x.sum);
  const A square_sum = x.sum * x.sum;
  // In double, once a row: at large logits a second rounding would be the largest error there is.
  const double wide_anchor = x.anchor, wide_log_sum = log_sum;
  write_row<A>(p, n, static_cast<A>((target_logit - wide_anchor) / temperature - wide_log_sum),
               entropy < 0 ? zero : entropy,  // rounding alone takes it below
               static_cast<A>(wide_anchor / temperature + wide_log_sum), x.anchor, log_sum, x.square / square_sum,
               (A(0.69314718055994530942) * x.square_log - log_sum * x.square) / square_sum);
}

template <class A>
GPU_DEVICE A value_or_zero(const void* x, int64_t n) {
  return x ? static_cast<const A*>(x)[n] : A(0);
}

// The gradient of row n is 0 whatever its logits: nothing flows in, or all of them are -inf (log_sum is NaN where all is NaN).
template <class A>
GPU_DEVICE bool nothing_flows(const TokenEntropyRowGradients& p, int64_t n) {
  const bool none = value_or_zero<A>(p.dlogprob, n) == 0 && value_or_zero<A>(p.dentropy, n) == 0 &&
                    value_or_zero<A>(p.dlse, n) == 0 && value_or_zero<A>(p.dkept, n) == 0;
  return none || (value_or_zero<A>(p.anchor, n) == -INFINITY && value_or_zero<A>(p.log_sum, n) == 0);
}

// What a row's gradient is made of: dz = p·(constant + slope·log2 p), and target_share more at the target;
// p = 2^((z - anchor)·c - log2_sum).
template <class A>
struct Gradient {
  A anchor, c, log2_sum, constant, slope, target_share;

  GPU_DEVICE Gradient(const TokenEntropyRowGradients& p, int64_t n, double temperature, bool valid) {
    const A inverse_temperature = static_cast<A>(1 / temperature), dlogprob = value_or_zero<A>(p.dlogprob, n),
            dentropy = value_or_zero<A>(p.dentropy, n);
    anchor = value_or_zero<A>(p.anchor, n);
    c = static_cast<A>(1.4426950408889634074 / temperature);
    log2_sum = value_or_zero<A>(p.log_sum, n) * A(1.4426950408889634074);
    constant =
        (value_or_zero<A>(p.dlse, n) - dlogprob - dentropy * value_or_zero<A>(p.entropy, n)) * inverse_temperature;
    slope = -dentropy * A(0.69314718055994530942) * inverse_temperature;
    target_share = dlogprob * inverse_temperature;
    if (!valid) constant = static_cast<A>(NAN);
  }

  GPU_DEVICE A operator()(A z, int64_t) const {
    const A y = bounded((z - anchor) * c - log2_sum);
    return gpu::exp2_approx(y) * (constant + slope * y);
  }
};

// Token i of logit z is kept.
GPU_DEVICE bool is_kept(const KeptTokens& kept, double z, int64_t i) {
  return z > kept.logit || (z == kept.logit && i <= static_cast<int64_t>(kept.last));
}

// The same with a gradient of kept_entropy. In K it is made of p' = p·2^shift, shift = log2(Σ p / Σ_K p), with another constant and
// slope: in p' and not in p, so that no digits are lost to the difference.
template <class A>
struct KeptGradient : Gradient<A> {
  A edge, kept_log2_sum, kept_constant, kept_slope;
  int64_t last;

  GPU_DEVICE KeptGradient(const TokenEntropyRowGradients& p, int64_t n, double temperature, bool valid)
      : Gradient<A>(p, n, temperature, valid) {
    const KeptTokens kept = p.kept[n];
    // Where its gradient is 0 no token counts as kept: the row's gradient then has the bits of one without.
    edge = value_or_zero<A>(p.dkept, n) == 0 ? static_cast<A>(INFINITY) : static_cast<A>(kept.logit);
    last = static_cast<int64_t>(kept.last);
    kept_log2_sum = static_cast<A>(kept.log_sum * 1.4426950408889634074);
    const double log_sum = value_or_zero<A>(p.log_sum, n);
    const A shift = static_cast<A>((log_sum - kept.log_sum) * 1.4426950408889634074), part = gpu::exp2_approx(-shift),
            factor = -value_or_zero<A>(p.dkept, n) * static_cast<A>(1 / temperature);
    kept_constant = part * (this->constant - this->slope * shift) + factor * static_cast<A>(kept.entropy);
    kept_slope = part * this->slope + factor * A(0.69314718055994530942);
  }

  GPU_DEVICE A operator()(A z, int64_t i) const {
    const bool kept = z > edge || (z == edge && i <= last);
    const A y = bounded((z - this->anchor) * this->c - (kept ? kept_log2_sum : this->log2_sum));
    return gpu::exp2_approx(y) * ((kept ? kept_constant : this->constant) + (kept ? kept_slope : this->slope) * y);
  }
};

template <class A, bool kKept>
using GradientOf = typename std::conditional<kKept, KeptGradient<A>, Gradient<A>>::type;

}  // namespace token_entropy
}  // namespace isentrope::kernels
