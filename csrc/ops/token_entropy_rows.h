// Rows of logits on the CPU: the sums that a row's outputs are made of, and its gradient. token_entropy and
// linear_token_entropy share them, each compiled for its instruction set. A row goes by in blocks; each block is summed against
// the anchor of the blocks before it, a logit near their maximum, and once more only if it holds a logit well above that.
#pragma once
#include <cmath>
#include <limits>

#include "csrc/ops/cpu_vector.h"
#include "csrc/ops/token_entropy_cpu.h"

namespace isentrope::ops::CPU_CAPABILITY {

constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kLog2e = 1.4426950408889634074, kLn2 = 0.69314718055994530942;
constexpr int64_t kBlock = 4096;  // 16 KB of floats: half of a usual L1, for the second look
constexpr int64_t kGuess = 256;   // the first anchor is the maximum of so many
constexpr double kSlack = 2.0;    // log2 s may rise to this: costs two bits of no accumulator, saves most second looks
constexpr int64_t kPrefetch = 1536;  // bytes ahead; the hardware's own prefetch ends at each page

// n < kStep elements as a pair, the rest filled.
template <class T>
struct Few {
  alignas(64) T element[kStep<T>];
  Few(const T* z, int64_t n, T fill) {
    for (int64_t i = 0; i < kStep<T>; ++i) element[i] = fill;
    std::memcpy(element, z, n * sizeof(T));
  }
  Pairs<T> load() const { return Pairs<T>::load(element); }
};

template <class T>
T from_bits_or_value(uint16_t bits, double value) {
  if constexpr (sizeof(T) == 2)
    return T{bits};
  else
    return static_cast<T>(value);
}
inline uint16_t minus_infinity_bits(const BFloat16*) { return 0xff80; }
inline uint16_t minus_infinity_bits(const Half*) { return 0xfc00; }
inline uint16_t minus_infinity_bits(const void*) { return 0; }
template <class T>
T minus_infinity() {
  return from_bits_or_value<T>(minus_infinity_bits(static_cast<const T*>(nullptr)), -kInfinity);
}

// One logit as double: pairs keep their own order, so all but the first place is -inf and the maximum is taken.
template <class T>
double widen(const T* z) {
  const Few<T> one(z, 1, minus_infinity<T>());
  const Pairs<T> pair = one.load();
  const double first = reduce_max(pair.first), second = reduce_max(pair.second);
  return first > second ? first : second;
}
template <>
inline double widen(const float* z) {
  return *z;
}
template <>
inline double widen(const double* z) {
  return *z;
}

// ---- sums -----------------------------------------------------------------------------------------------------------

inline void move_anchor(TokenEntropySums& x, double anchor, double c) {
  // Before the first finite logit there is nothing to move: the sums are 0, or NaN for good.
  if (x.anchor != -kInfinity) {
    const double shift = (x.anchor - anchor) * c, scale = ::exp2(shift);
    x.sum_log = scale * (x.sum_log + shift * x.sum);
    x.sum *= scale;
    x.square_log = scale * scale * (x.square_log + shift * x.square);
    x.square *= scale * scale;
  }
  x.anchor = anchor;
}

inline void add(TokenEntropySums& x, const TokenEntropySums& block) {
  x.sum += block.sum;
  x.sum_log += block.sum_log;
  x.square += block.square;
  x.square_log += block.square_log;
}

template <class V, bool kMoments>
struct LaneSums {
  V sum{0}, sum_log{0}, square{0}, square_log{0}, top{0};
  // y = log2 s. kMinusInfinity: logits of -inf are expected, and y is kept finite so that s·y is 0, not NaN.
  template <bool kMinusInfinity>
  ISENTROPE_INLINE void add(V z, V anchor, V c) {
    V y = (z - anchor) * c;
    if constexpr (kMinusInfinity) y = max(V(static_cast<typename V::Scalar>(-1100)), y);
    top = raise(y, top);
    const V s = exp2(y);
    sum = sum + s;
    sum_log = fma(s, y, sum_log);
    if constexpr (kMoments) {
      const V s2 = s * s;
      square = square + s2;
      square_log = fma(s2, y, square_log);
    }
  }
};

template <class T>
ISENTROPE_INLINE void prefetch(const T* z) {
  const char* ahead = reinterpret_cast<const char*>(z) + kPrefetch;
  for (size_t i = 0; i < kStep<T> * sizeof(T); i += 64) __builtin_prefetch(ahead + i);
}

// The sums of a block; top receives the largest log2 s, where one is above 0.
template <class T, bool kMoments, bool kMinusInfinity>
TokenEntropySums block_sums(const T* z, int64_t n, double anchor, ScalarOf<T> c, double& top) {
  using V = VectorOf<T>;
  const V from(static_cast<ScalarOf<T>>(anchor == -kInfinity ? 0.0 : anchor)), scale(c);
  LaneSums<V, kMoments> a, b;
  int64_t i = 0;
  for (; i + kStep<T> <= n; i += kStep<T>) {
    prefetch(z + i);
    const Pairs<T> pair = Pairs<T>::load(z + i);
    a.template add<kMinusInfinity>(pair.first, from, scale);
    b.template add<kMinusInfinity>(pair.second, from, scale);
  }
  if (i < n) {
    const Pairs<T> pair = Few<T>(z + i, n - i, minus_infinity<T>()).load();
    a.template add<true>(pair.first, from, scale);
    b.template add<true>(pair.second, from, scale);
  }
  TokenEntropySums s;
  s.anchor = anchor;
  s.sum = static_cast<double>(reduce_add(a.sum + b.sum));
  s.sum_log = static_cast<double>(reduce_add(a.sum_log + b.sum_log));
  if constexpr (kMoments) {
    s.square = static_cast<double>(reduce_add(a.square + b.square));
    s.square_log = static_cast<double>(reduce_add(a.square_log + b.square_log));
  }
  top = static_cast<double>(reduce_max(raise(a.top, b.top)));
  return s;
}

template <class T>
double maximum_of(const T* z, int64_t n) {
  using V = VectorOf<T>;
  V m(static_cast<ScalarOf<T>>(-kInfinity));
  for (int64_t i = 0; i < n; i += kStep<T>) {
    const Pairs<T> pair = i + kStep<T> <= n ? Pairs<T>::load(z + i) : Few<T>(z + i, n - i, minus_infinity<T>()).load();
    m = max(pair.first, max(pair.second, m));
  }
  return static_cast<double>(reduce_max(m));
}

// Adds n logits to the sums of those of the row before them; c = log2(e)/τ. A row begins with kNoLogits.
constexpr TokenEntropySums kNoLogits{-kInfinity, 0, 0, 0, 0};

template <class T, bool kMoments>
void add_logits(TokenEntropySums& total, const T* z, int64_t n, ScalarOf<T> c) {
  if (total.anchor == -kInfinity) total.anchor = maximum_of(z, n < kGuess ? n : kGuess);
  bool minus_infinity_seen = false;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t length = n - i < kBlock ? n - i : kBlock;
    double top;
    auto sum_up = [&] {
      return minus_infinity_seen ? block_sums<T, kMoments, true>(z + i, length, total.anchor, c, top)
                                 : block_sums<T, kMoments, false>(z + i, length, total.anchor, c, top);
    };
    TokenEntropySums block = sum_up();
    if (!(top <= kSlack) || total.anchor == -kInfinity) {
      const double maximum = maximum_of(z + i, length);
      if (total.anchor == -kInfinity ? maximum > -kInfinity : (maximum - total.anchor) * c > kSlack) {
        move_anchor(total, maximum, c);
        block = sum_up();
      }
    }
    if (!minus_infinity_seen && block.sum_log != block.sum_log) {
      minus_infinity_seen = true;
      block = sum_up();
    }
    add(total, block);
  }
}

// ---- outputs --------------------------------------------------------------------------------------------------------

struct RowOutputs {
  double logprob = 0, entropy = 0, lse = 0, anchor = 0, log_sum = 0, sum_p2 = 0, sum_p2_logp = 0;
};

// part [chunks]: the sums of a row's chunks, joined in order.
inline RowOutputs row_outputs(const TokenEntropySums* part, int64_t chunks, double target_logit, double temperature,
                              double c) {
  TokenEntropySums s = part[0];
  for (int64_t i = 1; i < chunks; ++i) {
    TokenEntropySums other = part[i];
    const double anchor = other.anchor > s.anchor ? other.anchor : s.anchor;
    move_anchor(s, anchor, c);
    move_anchor(other, anchor, c);
    add(s, other);
  }
  RowOutputs out;
  if (s.anchor == -kInfinity && s.sum == 0) {
    out.logprob = out.lse = out.anchor = -kInfinity;
    return out;
  }
  const double log2_sum = ::log2(s.sum), H = kLn2 * (log2_sum - s.sum_log / s.sum);
  out.entropy = H < 0 ? 0 : H;  // rounding alone takes it below
  out.anchor = s.anchor;
  out.log_sum = kLn2 * log2_sum;
  out.logprob = (target_logit - s.anchor) / temperature - out.log_sum;
  out.lse = s.anchor / temperature + out.log_sum;
  out.sum_p2 = s.square / (s.sum * s.sum);
  out.sum_p2_logp = kLn2 * (s.square_log - log2_sum * s.square) / (s.sum * s.sum);
  return out;
}

template <class S>
void write_row(const kernels::TokenEntropyRows& p, int64_t n, const RowOutputs& out) {
  auto put = [n](void* to, double value) {
    if (to) static_cast<S*>(to)[n] = static_cast<S>(value);
  };
  put(p.logprob, out.logprob);
  put(p.entropy, out.entropy);
  put(p.lse, out.lse);
  put(p.anchor, out.anchor);
  put(p.log_sum, out.log_sum);
  put(p.sum_p2, out.sum_p2);
  put(p.sum_p2_logp, out.sum_p2_logp);
}

// ---- what cpu_vector.h has no use for elsewhere: a where x ≥ bound, else b (of a NaN too) ------------------------------

ISENTROPE_INLINE Double1 where_at_least(Double1 x, Double1 bound, Double1 a, Double1 b) {
  return x.v >= bound.v ? a : b;
}
#if defined(__AVX512F__)
ISENTROPE_INLINE Float where_at_least(Float x, Float bound, Float a, Float b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, bound.v, _CMP_GE_OQ), b.v, a.v);
}
#elif defined(__AVX2__)
ISENTROPE_INLINE Float where_at_least(Float x, Float bound, Float a, Float b) {
  return _mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, bound.v, _CMP_GE_OQ));
}
#else
ISENTROPE_INLINE Float where_at_least(Float x, Float bound, Float a, Float b) {
  const Integers at_least = x.v >= bound.v;
  return same_bits<FloatBits>((at_least & same_bits<Integers>(a.v)) | (~at_least & same_bits<Integers>(b.v)));
}
#endif

// ---- gradient -------------------------------------------------------------------------------------------------------

// dz = p·(A + B·log2 p), p = 2^((z - anchor)·c - log2_sum); the target's share is added by the caller. In a row with a
// NaN log2_sum is NaN, and the caller makes A one too.
template <class V>
struct Gradient {
  V anchor, c, minus_log2_sum, A, B;
  ISENTROPE_INLINE V operator()(V z) const {
    const V y = clamp(fma(z - anchor, c, minus_log2_sum));
    return exp2(y) * fma(y, B, A);
  }
};

// The same with a gradient of kept_entropy, of tokens that are kept if z ≥ edge. There p' = p·2^shift, shift = log2(Σ p / Σ_K p), and
// dz = p'·(A' + B'·log2 p'): in p' and not in p, so that no digits are lost to the difference.
template <class V>
struct KeptGradient : Gradient<V> {
  V edge, kept_minus_log2_sum, kept_A, kept_B;
  ISENTROPE_INLINE V operator()(V z) const {
    const auto here = [&](V kept, V other) { return where_at_least(z, edge, kept, other); };
    const V y = clamp(fma(z - this->anchor, this->c, here(kept_minus_log2_sum, this->minus_log2_sum)));
    return exp2(y) * fma(y, here(kept_B, this->B), here(kept_A, this->A));
  }
};

template <class T, class G>
ISENTROPE_INLINE Pairs<T> gradient_of(const Pairs<T>& z, const G& gradient) {
  return {gradient(z.first), gradient(z.second)};
}

template <class T, class G>
void few_gradients(const T* z, T* dz, int64_t n, const G& gradient) {
  Few<T> few(z, n, minus_infinity<T>());
  gradient_of<T>(few.load(), gradient).store(few.element);
  std::memcpy(dz, few.element, n * sizeof(T));
}

template <class T, class G>
void span_gradients(const T* z, T* dz, int64_t n, const G& gradient, bool past_cache) {
  int64_t i = 0;
  if (past_cache) {
    const int64_t head = static_cast<int64_t>((64 - (reinterpret_cast<uintptr_t>(dz) & 63)) & 63) / sizeof(T);
    i = head < n ? head : n;
    for (int64_t j = 0; j < i; j += kStep<T>)
      few_gradients(z + j, dz + j, i - j < kStep<T> ? i - j : kStep<T>, gradient);
    for (; i + kStep<T> <= n; i += kStep<T>) {
      prefetch(z + i);
      gradient_of<T>(Pairs<T>::load(z + i), gradient).stream(dz + i);
    }
  } else {
    for (; i + kStep<T> <= n; i += kStep<T>) {
      prefetch(z + i);
      gradient_of<T>(Pairs<T>::load(z + i), gradient).store(dz + i);
    }
  }
  if (i < n) few_gradients(z + i, dz + i, n - i, gradient);
}

// x, but any NaN is the usual one, whose rounding to bfloat16 stays a NaN.
inline double plain_nan(double x) { return x != x ? kNaN : x; }

// What the gradient of row n is made of.
template <class S>
struct RowGradient {
  double entropy, anchor, log_sum, dlogprob, dentropy, dlse, dkept;
  const kernels::KeptTokens* kept;  // null where dkept is 0: the row's gradient then has the bits of one without

  RowGradient(const kernels::TokenEntropyRowGradients& p, int64_t n)
      : entropy(get(p.entropy, n)),
        anchor(get(p.anchor, n)),
        log_sum(get(p.log_sum, n)),
        dlogprob(plain_nan(get(p.dlogprob, n))),
        dentropy(plain_nan(get(p.dentropy, n))),
        dlse(plain_nan(get(p.dlse, n))),
        dkept(plain_nan(get(p.dkept, n))),
        kept(dkept != 0 ? p.kept + n : nullptr) {}

  // The gradient is 0 whatever the logits are: nothing flows in, or every logit is -inf (log_sum is NaN where all is NaN).
  bool zero() const {
    return (dlogprob == 0 && dentropy == 0 && dlse == 0 && dkept == 0) || (anchor == -kInfinity && log_sum == 0);
  }

  // What span_gradients() takes of it. valid: the row has a target.
  template <class V>
  Gradient<V> coefficients(bool valid, double temperature) const {
    const double c = static_cast<S>(kLog2e / temperature), log2_sum = log_sum * kLog2e;
    const double A = (dlse - dlogprob - dentropy * entropy) / temperature, B = -dentropy * kLn2 / temperature;
    return {V(static_cast<S>(anchor)), V(static_cast<S>(c)), V(static_cast<S>(-log2_sum)),
            V(static_cast<S>(valid && log2_sum == log2_sum ? plain_nan(A) : kNaN)), V(static_cast<S>(B))};
  }

  // Of the tokens that are kept: KeptGradient's coefficients, in double.
  struct InKept {
    double log2_sum, A, B;
  };
  InKept in_kept(double temperature) const {
    const double shift = (log_sum - kept->log_sum) * kLog2e, part = ::exp2(-shift), factor = -dkept / temperature;
    const double A = (dlse - dlogprob - dentropy * entropy) / temperature, B = -dentropy * kLn2 / temperature;
    return {kept->log_sum * kLog2e, part * (A - B * shift) + factor * kept->entropy, part * B + factor * kLn2};
  }

  // dz [n] of logits z [n], a part of the row from id first on; dz may be z. y: the target's place in the part, outside 0 … n - 1 if
  // it is elsewhere in the row. valid: the row has a target.
  template <class T>
  void write(const T* z, T* dz, int64_t first, int64_t n, int64_t y, bool valid, double temperature,
             bool past_cache) const {
    using V = VectorOf<T>;
    const double c = static_cast<S>(kLog2e / temperature), log2_sum = log_sum * kLog2e;
    const double A = (dlse - dlogprob - dentropy * entropy) / temperature, B = -dentropy * kLn2 / temperature;
    const bool has_target = valid && y >= 0 && y < n;
    double target_gradient = 0;
    if (has_target) {
      const double z_y = widen(z + y);
      const bool is_kept = kept != nullptr && (z_y > kept->logit || (z_y == kept->logit && first + y <= kept->last));
      const InKept at = is_kept ? in_kept(temperature) : InKept{log2_sum, A, B};
      const double raw = (z_y - anchor) * c - at.log2_sum, log2_p = raw < -1100 ? -1100 : raw;
      target_gradient = ::exp2(log2_p) * (at.A + at.B * log2_p) + dlogprob / temperature;
    }
    if (kept == nullptr) {
      span_gradients(z, dz, n, coefficients<V>(valid, temperature), past_cache);
    } else {  // up to the last id the edge is kept, from there on what is above it
      const InKept in = in_kept(temperature);
      const S edge = static_cast<S>(kept->logit), above = std::nextafter(edge, static_cast<S>(kInfinity));
      const double to = kept->last + 1 - first;
      const int64_t length = to < 0 ? 0 : to > n ? n : static_cast<int64_t>(to);
      KeptGradient<V> gradient{coefficients<V>(valid, temperature), V(edge), V(static_cast<S>(-in.log2_sum)),
                               V(static_cast<S>(plain_nan(in.A))), V(static_cast<S>(in.B))};
      span_gradients(z, dz, length, gradient, past_cache);
      gradient.edge = V(above);
      span_gradients(z + length, dz + length, n - length, gradient, past_cache);
    }
    if (has_target) {
      // A pair of equal values, so that the order within it does not matter; one of them is kept.
      alignas(64) T rounded[kStep<T>];
      const V value(static_cast<S>(plain_nan(target_gradient)));
      Pairs<T>{value, value}.store(rounded);
      dz[y] = rounded[0];
    }
  }

 private:
  static double get(const void* from, int64_t n) {
    return from ? static_cast<double>(static_cast<const S*>(from)[n]) : 0.0;
  }
};

}  // namespace isentrope::ops::CPU_CAPABILITY
