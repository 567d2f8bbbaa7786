// The CPU backend of window_entropy: a task a sequence, in plain loops that the compiler makes vectors of.
// Compiled once for every instruction set, in a namespace of its name.
#include "csrc/ops/window_entropy_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

#include "csrc/ops/cpu_parallel.h"

namespace isentrope::ops {
namespace CPU_CAPABILITY {
namespace {

using kernels::DType;

// Memory of a task, not initialised. No std::vector: one compiled for wide vectors could be linked in place of another's.
template <class X>
using Scratch = std::unique_ptr<X[]>;
template <class X>
Scratch<X> scratch(int64_t size) {
  return Scratch<X>(new X[size]);
}

// The windows of a row, and its values with zeros around them. Beyond `length` tokens on either side nothing exists.
struct Span {
  int64_t length, before, width;
  Span(int64_t length, int64_t before, int64_t after)
      : length(length),
        before(std::clamp(before, -length, length)),
        width(this->before + std::clamp(after, -length, length) + 1) {}
  int64_t padded() const { return length + width - 1; }
};

// padded[i] ← value(s) at s = i - before, 0 where there is no such token.
template <class X, class Value>
void pad(const Span& span, X* padded, const Value& value) {
  const int64_t left = std::max<int64_t>(span.before, 0),
                first = left - span.before;  // the first token that any window holds
  const int64_t last = std::min(span.length, first + span.padded() - left);
  std::fill_n(padded, left, X(0));
  X* to = padded + span.before;
  for (int64_t s = first; s < last; ++s) to[s] = value(s);
  std::fill(to + std::max(first, last), padded + span.padded(), X(0));
}

// Where the sums over the window of t = 0 … length - 1 stand. Sums of 1, 2, 4 … values from those of half as many, and the window
// put together from such powers, its end first: O(log w) additions a token, in vectors, none of differences. Overwrites
// padded; sums [length].
template <class X>
const X* doubled_sums(const Span& span, X* padded, X* sums) {
  int64_t left = span.width, size = span.padded();
  for (int64_t power = 1;; power *= 2) {
    if (span.width & power) {
      left -= power;
      const X* from = padded + left;
      if (power == span.width) return padded;
      if (left + power == span.width) {
        std::copy_n(from, span.length, sums);
      } else {
        for (int64_t t = 0; t < span.length; ++t) sums[t] = static_cast<X>(sums[t] + from[t]);
      }
      if (left == 0) return sums;
    }
    size -= power;
#pragma GCC ivdep  // what is read lies ahead of what is written
    for (int64_t i = 0; i < size; ++i) padded[i] = static_cast<X>(padded[i] + padded[i + power]);
  }
}

// Σ of value(s) over the windows of t = 0 … length - 1.
template <class X>
struct WindowSumsOf {
  Scratch<X> first, second;
  const X* sums;  // [length], in one of them

  template <class Value>
  WindowSumsOf(int64_t length, int64_t before, int64_t after, const Value& value) {
    const int64_t w = before + after + 1;
    constexpr int64_t kDoubled = 255;  // above it running sums, as kernels/window_entropy.h has them, take as long
    if (w <= kDoubled) {
      const Span span(length, before, after);
      first = scratch<X>(span.padded()), second = scratch<X>(length);
      pad(span, first.get(), value);
      sums = doubled_sums(span, first.get(), second.get());
      return;
    }
    first = scratch<X>(2 * length), second = scratch<X>(length);
    X *head = first.get(), *tail = head + length;
    for (int64_t begin = 0; begin < length; begin += w) {
      const int64_t end = std::min(begin + w, length);
      X sum = 0;
      for (int64_t t = begin; t < end; ++t) head[t] = sum += value(t);
      sum = 0;
      for (int64_t t = end - 1; t >= begin; --t) tail[t] = sum += value(t);
    }
    for (int64_t t = 0; t < length; ++t) {
      const kernels::WindowReach reach = kernels::window_reach(t, before, after, length);
      second[t] = (reach.tail ? tail[reach.a] : X(0)) + (reach.head ? head[reach.b] : X(0));
    }
    sums = second.get();
  }
};

// Count: a type that holds the size of a window.
template <class T, class Count>
void forward(const kernels::WindowEntropyForward& p, int64_t row) {
  const int64_t length = p.length, w = p.before + p.after + 1;
  const T* x = static_cast<const T*>(p.x) + row * length;
  const auto* mask = reinterpret_cast<const uint8_t*>(p.mask) + row * length;
  const auto* at = p.at ? reinterpret_cast<const uint8_t*>(p.at) + row * length : mask;
  T* mean = static_cast<T*>(p.mean) + row * length;
  int32_t* count = p.count + row * length;
  const WindowSumsOf<double> total(length, p.before, p.after,
                                   [&](int64_t s) { return mask[s] ? static_cast<double>(x[s]) : 0.0; });
  const WindowSumsOf<Count> number(length, p.before, p.after, [&](int64_t s) { return static_cast<Count>(mask[s]); });
  const double* sums = total.sums;
  const auto least = static_cast<int32_t>(p.shrink ? 1 : w);
  for (int64_t t = 0; t < length; ++t) {
    const auto n = static_cast<int32_t>(number.sums[t]);
    count[t] = (mask[t] & at[t]) != 0 && n >= least ? n : 0;
  }
  if (!p.shrink) {  // all counts are w or 0: no division, which would take longer than the sums
    const double share = 1.0 / static_cast<double>(w);
    for (int64_t t = 0; t < length; ++t) mean[t] = count[t] == 0 ? T(0) : static_cast<T>(sums[t] * share);
  } else {
    for (int64_t t = 0; t < length; ++t) mean[t] = count[t] == 0 ? T(0) : static_cast<T>(sums[t] / count[t]);
  }
}

template <class T>
void backward(const kernels::WindowEntropyBackward& p, int64_t row) {
  const int64_t length = p.length;
  const T* dmean = static_cast<const T*>(p.dmean) + row * length;
  const int32_t* count = p.count + row * length;
  const bool* mask = p.mask + row * length;
  T* dx = static_cast<T*>(p.dx) + row * length;
  // Over the windows that hold a token: the mirror image.
  const WindowSumsOf<double> total(length, p.after, p.before, [&](int64_t t) {
    return count[t] > 0 ? static_cast<double>(dmean[t]) / count[t] : 0.0;
  });
  for (int64_t s = 0; s < length; ++s) dx[s] = mask[s] ? static_cast<T>(total.sums[s]) : T(0);
}

// ---- selection ------------------------------------------------------------------------------------------------------

template <class T>
using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// In the order of the values: both zeros are one, every NaN is the largest.
template <class T>
Key<T> key_of(T value) {
  constexpr Key<T> kSign = Key<T>(1) << (8 * sizeof(T) - 1);
  const T canonical = value + T(0);  // -0 + 0 = 0
  Key<T> bits;
  std::memcpy(&bits, &canonical, sizeof(T));
  const Key<T> ordered = bits & kSign ? ~bits : bits | kSign;
  return value != value ? ~Key<T>(0) : ordered;
}
template <class T>
T value_of(Key<T> key) {
  constexpr Key<T> kSign = Key<T>(1) << (8 * sizeof(T) - 1);
  const Key<T> bits = key & kSign ? key & ~kSign : ~key;
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class K>
struct Neighbours {
  K at, next;  // the keys of a rank and of the one after it; the same where it is the last
};

// Of keys [n] in ascending order, by two keys of a sample that should lie below and above: what lies between is few. Where the
// rank does not lie between them, which a bad sample may do, all keys are gone over. band [n] is overwritten.
template <class K>
Neighbours<K> keys_at(const K* keys, int64_t n, int64_t rank, K* band) {
  const auto less = [](K a, K b) { return a < b; };
  const auto within_band = [&](int64_t size, int64_t place) {
    std::nth_element(band, band + place, band + size, less);
    K next = place + 1 < size ? ~K(0) : band[place];
    for (int64_t i = place + 1; i < size; ++i) next = band[i] < next ? band[i] : next;
    return Neighbours<K>{band[place], next};
  };
  constexpr int64_t kMostSamples = 1024, kKeysPerSample = 32;
  const int64_t samples = std::min(kMostSamples, n / kKeysPerSample);
  if (samples >= 16) {
    K sample[kMostSamples];
    for (int64_t i = 0; i < samples; ++i) sample[i] = keys[i * n / samples];
    std::sort(sample, sample + samples, less);
    // The place of the rank in a random sample errs by √(samples q (1 - q)): three times that, and one.
    const double q = static_cast<double>(rank) / static_cast<double>(n), place = q * static_cast<double>(samples);
    const double margin = 3 * std::sqrt(place * (1 - q)) + 1;
    const auto low_place = static_cast<int64_t>(place - margin), high_place = static_cast<int64_t>(place + margin) + 1;
    const K low = place >= margin ? sample[low_place] : K(0), high = high_place < samples ? sample[high_place] : ~K(0);
    int64_t below = 0, size = 0;
    for (int64_t i = 0; i < n; ++i) below += keys[i] < low;
    for (int64_t i = 0; i < n; ++i) {
      band[size] = keys[i];
      size += keys[i] - low <= high - low;
    }
    if (rank >= below && (rank + 1 < below + size || below + size == n)) return within_band(size, rank - below);
  }
  std::copy_n(keys, n, band);
  return within_band(n, rank);
}

template <class T>
void select(const WindowSelect& p, int64_t group) {
  using K = Key<T>;
  const T* mean = static_cast<const T*>(p.mean) + group * p.size;
  const int32_t* count = p.count + group * p.size;
  const auto keys = scratch<K>(p.size), band = scratch<K>(p.size);
  // What is no window has key 0, below that of every number.
  for (int64_t i = 0; i < p.size; ++i) keys[i] = count[i] > 0 ? key_of(mean[i]) : K(0);
  int64_t none = 0;
  for (int64_t i = 0; i < p.size; ++i) none += count[i] <= 0;
  const int64_t n = p.size - none;
  T& threshold = static_cast<T*>(p.threshold)[group];
  bool* high = p.top ? p.high + group * p.size : nullptr;
  if (n == 0) {
    threshold = std::numeric_limits<T>::infinity();
    if (p.top) std::fill_n(high, p.size, false);
    return;
  }
  if (!p.top) {  // linear interpolation between the values of ranks ⌊q(n-1)⌋ and the next
    const double place = p.fraction * static_cast<double>(n - 1);
    const auto rank = static_cast<int64_t>(place);
    const Neighbours<K> found = keys_at(keys.get(), p.size, none + rank, band.get());
    const double low = value_of<T>(found.at), above = value_of<T>(found.next),
                 share = place - static_cast<double>(rank);
    threshold = static_cast<T>(share == 0 ? low : low + share * (above - low));
    return;
  }
  const int64_t taken = std::clamp<int64_t>(static_cast<int64_t>(std::ceil(p.fraction * static_cast<double>(n))), 1, n);
  const K least = keys_at(keys.get(), p.size, p.size - taken, band.get()).at;
  threshold = value_of<T>(least);
  int64_t ties = taken;  // of those at the threshold, the first are taken
  for (int64_t i = 0; i < p.size; ++i) ties -= keys[i] > least;
  for (int64_t i = 0; i < p.size; ++i) high[i] = keys[i] > least;
  for (int64_t i = 0; ties > 0; ++i) {
    if (keys[i] != least) continue;
    high[i] = true;
    --ties;
  }
}

template <class T>
void mark(const WindowMark& p, int64_t row) {
  const T* mean = static_cast<const T*>(p.mean) + row * p.length;
  const int32_t* count = p.count + row * p.length;
  auto* high = reinterpret_cast<uint8_t*>(p.high) + row * p.length;
  const T threshold = static_cast<const T*>(p.threshold)[p.one_threshold ? 0 : row];
  for (int64_t t = 0; t < p.length; ++t) high[t] = (count[t] > 0) & (mean[t] >= threshold);
}

}  // namespace

void window_entropy_forward_on_cpu(const kernels::WindowEntropyForward& p) {
  const bool wide = p.before + p.after + 1 > std::numeric_limits<uint8_t>::max();
  for_tasks(p.rows, [&](int64_t row) {
    if (p.dtype == DType::kDouble) {
      wide ? forward<double, int32_t>(p, row) : forward<double, uint8_t>(p, row);
    } else {
      wide ? forward<float, int32_t>(p, row) : forward<float, uint8_t>(p, row);
    }
  });
}
void window_entropy_backward_on_cpu(const kernels::WindowEntropyBackward& p) {
  for_tasks(p.rows,
            [&](int64_t row) { p.dtype == DType::kDouble ? backward<double>(p, row) : backward<float>(p, row); });
}
void window_select_on_cpu(const WindowSelect& p) {
  for_tasks(p.groups,
            [&](int64_t group) { p.dtype == DType::kDouble ? select<double>(p, group) : select<float>(p, group); });
}
void window_mark_on_cpu(const WindowMark& p) {
  for_tasks(p.rows, [&](int64_t row) { p.dtype == DType::kDouble ? mark<double>(p, row) : mark<float>(p, row); });
}

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::ops
