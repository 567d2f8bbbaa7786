// The loops of the weight methods, plain, so that the compiler makes vectors of them. Compiled once for every instruction set, in a
// namespace of its name.
#include "csrc/methods/token_loops.h"

namespace isentrope::methods {
namespace CPU_CAPABILITY {
namespace {

// How many of flags [count], each 0 or 1, are set.
int64_t count_flags(const uint8_t* flag, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += flag[i];
  return sum;
}

// factor ← taken for the first *left tokens whose flag [count] is set; *left falls by as many.
template <class T>
void take_first(const uint8_t* flag, int64_t count, T taken, T* factor, int64_t* left) {
  for (int64_t i = 0; i<count&& * left> 0; ++i)
    if (flag[i] != 0) factor[i] = taken, --*left;
}

template <class T>
void kept(const KeptLoop& p) {
  const auto key = static_cast<OrderedBits<T>>(p.key);
  int64_t left = p.equal;
  uint8_t tie[kBlock];
  for (int64_t begin = 0; begin < p.size(); begin += kBlock) {
    const int64_t count = std::min(kBlock, p.size() - begin);
    const T* x = of<T>(p.x, begin);
    const uint8_t* mask = flags(p.mask) + begin;
    T* __restrict factor = static_cast<T*>(p.factor) + begin;
    for (int64_t i = 0; i < count; ++i) {
      const OrderedBits<T> own = ordered(x[i]);
      factor[i] = (own > key) & (mask[i] != 0) ? T(1) : T(0);
    }
    if (left == 0) continue;
    for (int64_t i = 0; i < count; ++i) tie[i] = (ordered(x[i]) == key) & (mask[i] != 0) ? 1 : 0;
    if (count_flags(tie, count) > 0) take_first(tie, count, T(1), factor, &left);
  }
}

template <class T>
void surprisal_band(const SurprisalBandLoop& p, int64_t begin, int64_t end) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const T *logprob = of<T>(p.logprob), *entropy = of<T>(p.entropy), low = T(p.low), high = T(p.high);
  const uint8_t* mask = flags(p.mask);
  T* __restrict factor = static_cast<T*>(p.factor);
  for (int64_t i = begin; i < end; ++i) {
    const T own = -logprob[i], h = entropy[i], s = own < T(0) ? T(0) : own;  // rounding may leave it below 0
    const T none = s > T(0) ? kInfinity : T(0), quotient = s / h, r = h <= T(0) ? none : quotient;
    factor[i] = (r >= low) & (r <= high) & (mask[i] != 0) ? T(1) : T(0);
  }
}

template <class T>
void ratio_band(const RatioBandLoop& p, int64_t begin, int64_t end) {
  const T *entropy = of<T>(p.entropy), *old = of<T>(p.old_entropy), low = T(p.low), high = T(p.high), bias = T(p.bias);
  const uint8_t* mask = flags(p.mask);
  T* __restrict factor = static_cast<T*>(p.factor);
  for (int64_t i = begin; i < end; ++i) {
    const T r = (entropy[i] + bias) / (old[i] + bias);
    factor[i] = (r > low) & (r < high) & (mask[i] != 0) ? T(1) : T(0);
  }
}

template <class T>
void change(const ChangeLoop& p, int64_t row) {
  constexpr T kMost = std::numeric_limits<T>::max(), kInfinity = std::numeric_limits<T>::infinity();
  const T kFloor = T(-18.420680743952367);  // log 1e-8, below which the released code holds no probability
  T least[kLanes], greatest[kLanes];
  std::fill_n(least, kLanes, -kInfinity);  // of −change
  std::fill_n(greatest, kLanes, -kInfinity);
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin), at = row * p.length + begin;
    const T *logprob = of<T>(p.logprob, at), *old = of<T>(p.old_logprob, at), *entropy = of<T>(p.entropy, at),
            *advantage = of<T>(p.advantage, at);
    const uint8_t* mask = flags(p.mask) + at;
    T* __restrict out = static_cast<T*>(p.change) + at;
    if (!any_flag(mask, count)) {
      std::fill_n(out, count, T(0));
      continue;
    }
    T inverse[kBlock], probability[kBlock];
    for (int64_t i = 0; i < count; ++i) {
      const T x = old[i], held = x < kFloor ? kFloor : x;
      inverse[i] = exponential(-(held > T(0) ? T(0) : held));
    }
    for (int64_t i = 0; i < count; ++i) {
      const T x = logprob[i], held = x < kFloor ? kFloor : x;
      probability[i] = exponential(held > T(0) ? T(0) : held);
    }
    const bool square = p.power == 2;
    for (int64_t i = 0; i < count; ++i) {
      const T x = logprob[i], held = x < kFloor ? kFloor : x, l = held > T(0) ? T(0) : held;
      const T other = T(1) - probability[i], rest = square ? other * other : other;
      const T omega = advantage[i] * inverse[i] * (probability[i] * rest * (l + entropy[i]));
      const T size = omega < T(0) ? -omega : omega;
      out[i] = (size <= kMost) & (mask[i] != 0) ? size : T(0);  // false of NaN too
    }
    raise_marked(count, mask, greatest, [&](int64_t i) { return out[i]; });
    raise_marked(count, mask, least, [&](int64_t i) { return -out[i]; });
  }
  p.most[row] = most(greatest);
  p.least[row] = -most(least);
}

template <class T>
void fall(const FallLoop& p, int64_t begin, int64_t end) {
  const T low = T(p.low), high = T(p.high), least = T(p.least), slope = T(p.slope), end_of_exp = T(kLeastExponent);
  const uint8_t* mask = flags(p.mask);
  T* __restrict factor = static_cast<T*>(p.factor);
  if (p.exponential) {
    for (int64_t i = begin; i < end; ++i) {
      const T x = -slope * factor[i], e = exponential(x < end_of_exp ? end_of_exp : x), f = e < low ? low : e;
      factor[i] = mask[i] != 0 ? f : T(0);
    }
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    const T x = high - slope * (factor[i] - least), f = x < low ? low : x;
    factor[i] = mask[i] != 0 ? f : T(0);
  }
}

template <class T>
void sum(const SumLoop& p, int64_t row) {
  double lanes[kLanes] = {};
  for (int64_t begin = 0; begin < p.length; begin += kBlock) {
    const int64_t count = std::min(kBlock, p.length - begin), at = row * p.length + begin;
    const T* given = of<T>(p.x, at);
    const uint8_t* mask = flags(p.mask) + at;
    if (!any_flag(mask, count)) continue;
    add_marked<T>(count, mask, lanes, [&](int64_t i) { return given[i]; });
  }
  p.sum[row] = total(lanes);
  p.count[row] = count_marked_on_cpu(p.mask + row * p.length, p.length);
}

template <class T>
void affine(const AffineLoop& p, int64_t begin, int64_t end) {
  const T *x = of<T>(p.x), coef = T(p.coef), centre = T(p.centre);
  const uint8_t* mask = flags(p.mask);
  T* __restrict factor = static_cast<T*>(p.factor);
  for (int64_t i = begin; i < end; ++i) {
    const T f = T(1) + coef * (x[i] - centre);
    factor[i] = mask[i] != 0 ? (f < T(0) ? T(0) : f) : T(0);
  }
}

template <class T>
void sign(const SignLoop& p, int64_t begin, int64_t end) {
  const T *logprob = of<T>(p.logprob), *advantage = of<T>(p.advantage);
  const uint8_t* mask = flags(p.mask);
  T* __restrict surprisal = static_cast<T*>(p.surprisal);
  auto* __restrict positive = reinterpret_cast<uint8_t*>(p.positive);
  auto* __restrict negative = reinterpret_cast<uint8_t*>(p.negative);
  for (int64_t i = begin; i < end; ++i) surprisal[i] = -logprob[i];
  for (int64_t i = begin; i < end; ++i) positive[i] = (advantage[i] > T(0)) & (mask[i] != 0) ? 1 : 0;
  for (int64_t i = begin; i < end; ++i) negative[i] = (advantage[i] < T(0)) & (mask[i] != 0) ? 1 : 0;
}

template <class T>
void signed_kept(const SignedKeptLoop& p) {
  using K = OrderedBits<T>;
  const K key[2] = {static_cast<K>(p.key[0]), static_cast<K>(p.key[1])};
  const T weight[2] = {T(p.weight[0]), T(p.weight[1])};
  int64_t left[2] = {p.equal[0], p.equal[1]};
  K own[kBlock];
  uint8_t tie[kBlock];
  for (int64_t begin = 0; begin < p.size(); begin += kBlock) {
    const int64_t count = std::min(kBlock, p.size() - begin);
    const uint8_t *mask = flags(p.mask) + begin, *positive = flags(p.of[0]) + begin, *negative = flags(p.of[1]) + begin;
    T* __restrict factor = static_cast<T*>(p.factor) + begin;
    for (int64_t i = 0; i < count; ++i) own[i] = ordered(factor[i]);
    for (int64_t i = 0; i < count; ++i) {
      const T up = (positive[i] != 0) & (own[i] > key[0]) ? weight[0] : T(1);
      const T f = (negative[i] != 0) & (own[i] > key[1]) ? weight[1] : up;
      factor[i] = mask[i] != 0 ? f : T(0);
    }
    for (int s = 0; s < 2; ++s) {
      if (left[s] == 0) continue;
      const uint8_t* flag = s == 0 ? positive : negative;
      for (int64_t i = 0; i < count; ++i) tie[i] = (own[i] == key[s]) & (flag[i] != 0) ? 1 : 0;
      if (count_flags(tie, count) > 0) take_first(tie, count, weight[s], factor, &left[s]);
    }
  }
}

// Sums over w neighbours: padded [size + w − 1] → sums [size], sums[t] = Σ padded[t … t + w − 1], from sums of 1, 2, 4 … values and
// so without differences, which would lose what is small beside a neighbour. padded is overwritten.
const double* window_sums(double* padded, int64_t size, int64_t w, double* __restrict sums) {
  int64_t left = w, held = size + w - 1;
  for (int64_t power = 1;; power *= 2) {
    if (w & power) {
      left -= power;
      const double* from = padded + left;
      if (power == w) return padded;
      if (left + power == w)
        std::copy_n(from, size, sums);
      else
        for (int64_t t = 0; t < size; ++t) sums[t] += from[t];
      if (left == 0) return sums;
    }
    held -= power;
#pragma GCC ivdep  // what is read lies ahead of what is written
    for (int64_t i = 0; i < held; ++i) padded[i] += padded[i + power];
  }
}

template <class T>
void soft_window(const SoftWindowLoop& p, int64_t row) {
  const int64_t length = p.length, at = row * length;
  const T *entropy = of<T>(p.entropy, at), *advantage = of<T>(p.advantage, at);
  const uint8_t* mask = flags(p.mask) + at;
  T* __restrict factor = static_cast<T*>(p.factor) + at;
  int64_t right = 0;
  for (int64_t t = 0; t < length; ++t) right += (advantage[t] > T(0)) & (mask[t] != 0) ? 1 : 0;
  if (right == 0) {
    for (int64_t t = 0; t < length; ++t) factor[t] = mask[t] != 0 ? T(1) : T(0);
    return;
  }
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  T greatest[kLanes];
  std::fill_n(greatest, kLanes, kNone);
  for (int64_t begin = 0; begin < length; begin += kBlock)
    raise_marked(std::min(kBlock, length - begin), mask + begin, greatest,
                 [&](int64_t i) { return entropy[begin + i]; });
  const T highest = most(greatest), least = T(kLeastExponent);
  // exp(H − max H) of the row, 0 where nothing counts; then windows a chunk at a time.
  const int64_t half = std::min(p.half, length), w = 2 * half + 1, chunk = std::max<int64_t>(1024, w);
  const std::unique_ptr<T[]> e(new T[length]);
  const std::unique_ptr<double[]> padded(new double[chunk + w - 1]), buffer(new double[chunk]);
  for (int64_t t = 0; t < length; ++t) {
    const T x = entropy[t] - highest, value = exponential(x < least ? least : x);
    e[t] = mask[t] != 0 ? value : T(0);
  }
  double lanes[kLanes] = {};
  for (int64_t begin = 0; begin < length; begin += chunk) {
    const int64_t size = std::min(chunk, length - begin);
    const int64_t first = std::max<int64_t>(begin - half, 0), last = std::min(begin + size + half, length);
    double* const to = padded.get() + first - (begin - half);
    std::fill(padded.get(), to, 0.0);
    for (int64_t s = first; s < last; ++s) to[s - first] = static_cast<double>(e[s]);
    std::fill(to + (last - first), padded.get() + size + w - 1, 0.0);
    const double* sums = window_sums(padded.get(), size, w, buffer.get());
    double* share = buffer.get();
    for (int64_t t = 0; t < size; ++t) {
      const double own = static_cast<double>(e[begin + t]), quotient = own / sums[t];
      share[t] = mask[begin + t] != 0 ? quotient : 0.0;
    }
    add(size, lanes, [&](int64_t t) { return share[t]; });
    for (int64_t t = 0; t < size; ++t) factor[begin + t] = static_cast<T>(share[t]);
  }
  const auto scale = static_cast<T>(static_cast<double>(count_marked_on_cpu(p.mask + at, length)) / total(lanes));
  for (int64_t t = 0; t < length; ++t) {
    const T f = advantage[t] > T(0) ? scale * factor[t] : T(1);
    factor[t] = mask[t] != 0 ? f : T(0);
  }
}

}  // namespace

void kept_on_cpu(const KeptLoop& p) { p.wide ? kept<double>(p) : kept<float>(p); }
void signed_kept_on_cpu(const SignedKeptLoop& p) { p.wide ? signed_kept<double>(p) : signed_kept<float>(p); }

ISENTROPE_MARKED(surprisal_band, SurprisalBandLoop)
ISENTROPE_MARKED(ratio_band, RatioBandLoop)
ISENTROPE_ROWS(change, ChangeLoop)
ISENTROPE_MARKED(fall, FallLoop)
ISENTROPE_ROWS(sum, SumLoop)
ISENTROPE_MARKED(affine, AffineLoop)
ISENTROPE_CHUNKS(sign, SignLoop)
ISENTROPE_ROWS(soft_window, SoftWindowLoop)

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::methods
