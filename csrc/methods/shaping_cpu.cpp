// The loops of csrc/methods/shaping_cpu.h, plain, so that the compiler makes vectors of them. Compiled once for every instruction set, in a
// namespace of its name.
#include "csrc/methods/shaping_cpu.h"

#include "csrc/methods/token_loops.h"

namespace isentrope::methods {
namespace CPU_CAPABILITY {
namespace {

template <class T>
inline __attribute__((always_inline)) T held_exponential(T x) {
  constexpr T kLeast = T(kLeastExponent);
  const T above = x < kLeast ? kLeast : x;
  return exponential(above > -kLeast ? -kLeast : above);
}
// Of a log-probability, which rounding may leave above 0.
template <class T>
inline __attribute__((always_inline)) T probability(T l) {
  return held_exponential(l > T(0) ? T(0) : l);
}

template <class T>
void entropy_gain(const EntropyGainLoop& p, int64_t begin, int64_t end) {
  const T *advantage = of<T>(p.advantage), *entropy = of<T>(p.entropy);
  const uint8_t* mask = flags(p.mask);
  T* __restrict out = static_cast<T*>(p.factor);
  const double alpha = p.alpha, kappa = p.kappa;
  for (int64_t i = begin; i < end; ++i) {
    const double A = advantage[i], h = entropy[i], H = h < 0 ? 0 : h;
    const double gain = alpha * H, cap = (A < 0 ? -A : A) / kappa;
    const T made = static_cast<T>(A + (cap < gain ? cap : gain));
    out[i] = mask[i] != 0 ? made : T(0);
  }
}

template <class T>
void position(const PositionLoop& p, int64_t row) {
  const int64_t at = row * p.length;
  const T* advantage = of<T>(p.advantage, at);
  const uint8_t* mask = flags(p.mask) + at;
  T* __restrict out = static_cast<T*>(p.factor) + at;
  const T slope = T(p.slope), centre = T(p.centre), gamma = T(p.gamma), cap = T(p.cap), step = T(1 / p.end[row]);
  for (int32_t t = 0; t < static_cast<int32_t>(p.length); ++t) {
    const T A = advantage[t], size = A < T(0) ? -A : A;
    const T most = gamma / (T(1) + held_exponential(-slope * (T(t) * step - centre))), bound = cap * size;
    const T gain = bound < most ? bound : most;
    const T made = A > T(0) ? A + gain : A < T(0) ? A - gain : A;
    out[t] = mask[t] != 0 ? made : T(0);
  }
}

template <class T>
void repo(const RepoLoop& p, int64_t begin, int64_t end) {
  const T *advantage = of<T>(p.advantage), *logprob = of<T>(p.logprob), *entropy = of<T>(p.entropy);
  const uint8_t* mask = flags(p.mask);
  T* __restrict out = static_cast<T*>(p.factor);
  const double beta = p.beta, centre = p.centre;
  if (p.rescale) {
    for (int64_t i = begin; i < end; ++i) {
      const double A = advantage[i], l = logprob[i], right = A * (1 - beta * l), wrong = A * (1 + beta * l);
      const double up = right < 0 ? 0 : right, down = wrong > 0 ? 0 : wrong;
      const double changed = A > 0 ? up : A < 0 ? down : A;
      const T made = static_cast<T>(l - l == 0 ? changed : A);
      out[i] = mask[i] != 0 ? made : T(0);
    }
  } else if (p.entropy != nullptr) {
    for (int64_t i = begin; i < end; ++i) {
      const double A = advantage[i], l = logprob[i], changed = A - beta * (l + static_cast<double>(entropy[i]));
      const T made = static_cast<T>(l - l == 0 ? changed : A);
      out[i] = mask[i] != 0 ? made : T(0);
    }
  } else {
    for (int64_t i = begin; i < end; ++i) {
      const double A = advantage[i], l = logprob[i], changed = A - beta * (l - centre);
      const T made = static_cast<T>(l - l == 0 ? changed : A);
      out[i] = mask[i] != 0 ? made : T(0);
    }
  }
}

template <class T>
void plan(const PlanLoop& p, int64_t begin, int64_t end) {
  const T* advantage = of<T>(p.advantage);
  const uint8_t *mask = flags(p.mask), *plans = flags(p.plans);
  T* __restrict out = static_cast<T*>(p.factor);
  const double alpha = p.alpha;
  for (int64_t i = begin; i < end; ++i) {
    const double A = advantage[i], more = A + alpha * (A < 0 ? -A : A);
    const T made = static_cast<T>(plans[i] != 0 ? more : A);
    out[i] = mask[i] != 0 ? made : T(0);
  }
}

template <class T>
void scale(const ScaleLoop& p, int64_t row) {
  const int64_t at = row * p.length;
  const T* advantage = of<T>(p.advantage, at);
  const uint8_t* mask = flags(p.mask) + at;
  T* __restrict out = static_cast<T*>(p.factor) + at;
  const double up = p.up[row], down = p.down[row];
  for (int64_t t = 0; t < p.length; ++t) {
    const double A = advantage[t], positive = A * up, negative = A * down;
    const T made = static_cast<T>(A > 0 ? positive : A < 0 ? negative : A);
    out[t] = mask[t] != 0 ? made : T(0);
  }
}

template <class T>
void further(const FurtherLoop& p, int64_t begin, int64_t end) {
  const T *logprob = of<T>(p.logprob), *old = of<T>(p.old_logprob), *sum_p2 = of<T>(p.sum_p2),
          *old_sum_p2 = of<T>(p.old_sum_p2), *advantage = of<T>(p.advantage), delta = T(p.delta);
  const uint8_t* mask = flags(p.mask);
  T* __restrict factor = static_cast<T*>(p.factor);
  for (int64_t i = begin; i < end; ++i) {
    const T u = probability(logprob[i]) - probability(old[i]), size = u < T(0) ? -u : u;
    const T along = advantage[i] * (u - (sum_p2[i] - old_sum_p2[i]) * T(0.5));
    const T kept = (size > delta) & (along > T(0)) ? T(0) : T(1);
    factor[i] = mask[i] != 0 ? kept : T(0);
  }
}

template <class T>
void discriminator(const DiscriminatorLoop& p, int64_t row) {
  double lanes[kLanes] = {};
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin), at = row * p.length + begin;
    const T *logprob = of<T>(p.logprob, at), *entropy = of<T>(p.entropy, at);
    const uint8_t* mask = flags(p.mask) + at;
    T* __restrict z = static_cast<T*>(p.z) + at;
    if (!any_flag(mask, count)) continue;  // nobody reads them
    for (int64_t i = 0; i < count; ++i) {
      const T x = logprob[i], below = x > T(0) ? T(0) : x, l = below < T(kLeastExponent) ? T(kLeastExponent) : below;
      z[i] = exponential(l) * (entropy[i] + l);
    }
    if (p.sum_p2 != nullptr) {
      const T *p2 = of<T>(p.sum_p2, at), *p2_logp = of<T>(p.sum_p2_logp, at);
      for (int64_t i = 0; i < count; ++i) z[i] -= entropy[i] * p2[i] + p2_logp[i];
    }
    add_marked<T>(count, mask, lanes, [&](int64_t i) { return z[i]; });
  }
  p.sum[row] = total(lanes);
  p.count[row] = count_marked_on_cpu(p.mask + row * p.length, p.length);
}

template <class T>
void square(const SquareLoop& p, int64_t row) {
  double lanes[kLanes] = {};
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin), at = row * p.length + begin;
    const T* x = of<T>(p.x, at);
    const uint8_t* mask = flags(p.mask) + at;
    if (!any_flag(mask, count)) continue;
    double chosen[kBlock];
    for (int64_t i = 0; i < count; ++i) {
      const double d = static_cast<double>(x[i]) - p.centre;
      chosen[i] = mask[i] != 0 ? d * d : 0.0;
    }
    add(count, lanes, [&](int64_t i) { return chosen[i]; });
  }
  p.sum[row] = total(lanes);
}

template <class T>
void beyond(const BeyondLoop& p, int64_t row) {
  const int64_t length = p.length, at = row * length;  // a store into flags might otherwise be one into p
  const T *z = of<T>(p.z, at), *advantage = of<T>(p.advantage, at);
  const uint8_t* mask = flags(p.mask) + at;
  T* __restrict far = static_cast<T*>(p.beyond) + at;
  auto* __restrict out = reinterpret_cast<uint8_t*>(p.out) + at;
  const double centre = p.centre, low = p.low, high = p.high;
  const T negative = T(p.negative ? 1 : 0), positive = T(p.positive ? 1 : 0);
  for (int64_t t = 0; t < length; ++t) {
    const double d = static_cast<double>(z[t]) - centre, below = low - d, above = d - high;
    far[t] = static_cast<T>(below > above ? below : above);
  }
  for (int64_t t = 0; t < length; ++t) {
    const T A = advantage[t], looked = A < T(0) ? negative : A > T(0) ? positive : T(0);
    out[t] = (far[t] * looked > T(0)) & (mask[t] != 0) ? 1 : 0;
  }
  p.count[row] = count_marked_on_cpu(p.out + at, p.length);
}

template <class T>
void tea(const TeaLoop& p, int64_t row) {
  const int64_t at = row * p.length;
  const T *logprob = of<T>(p.logprob, at), *advantage = of<T>(p.advantage, at);
  const uint8_t* mask = flags(p.mask) + at;
  T* __restrict factor = static_cast<T*>(p.factor) + at;
  const T mean_l = T(p.mean_logprob), mean_A = T(p.mean_advantage);
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  T greatest[kLanes];
  std::fill_n(greatest, kLanes, kNone);
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin);
    T* __restrict c = factor + begin;
    for (int64_t i = 0; i < count; ++i) {
      const T x = (advantage[begin + i] - mean_A) * (logprob[begin + i] - mean_l);
      c[i] = (mask[begin + i] != 0) & (x - x == T(0)) ? x : kNone;
    }
    raise(count, greatest, [&](int64_t i) { return c[i]; });
  }
  const T highest = most(greatest);
  if (highest == kNone) {
    std::fill_n(factor, p.length, T(0));
    return;
  }
  double lanes[kLanes] = {};
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin);
    T* __restrict c = factor + begin;
    for (int64_t i = 0; i < count; ++i) {
      const T e = held_exponential(c[i] - highest);
      c[i] = c[i] == kNone ? T(0) : e;
    }
    add(count, lanes, [&](int64_t i) { return static_cast<double>(c[i]); });
  }
  const T scale = static_cast<T>(p.alpha / total(lanes)), cap = T(p.most);
  for (int64_t t = 0; t < p.length; ++t) {
    const T f = scale * factor[t];
    factor[t] = f > cap ? cap : f;
  }
}

}  // namespace

ISENTROPE_MARKED(entropy_gain, EntropyGainLoop)
ISENTROPE_ROWS(position, PositionLoop)
ISENTROPE_MARKED(repo, RepoLoop)
ISENTROPE_MARKED(plan, PlanLoop)
ISENTROPE_ROWS(scale, ScaleLoop)
ISENTROPE_MARKED(further, FurtherLoop)
ISENTROPE_ROWS(discriminator, DiscriminatorLoop)
ISENTROPE_ROWS(square, SquareLoop)
ISENTROPE_ROWS(beyond, BeyondLoop)
ISENTROPE_ROWS(tea, TeaLoop)

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::methods
