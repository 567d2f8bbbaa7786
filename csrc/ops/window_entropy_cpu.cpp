// The CPU backend of window_entropy: a task a sequence.
#include "csrc/ops/window_entropy_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/ops/cpu_parallel.h"

namespace isentrope::ops {
namespace {

using kernels::DType;
using kernels::WindowReach;

// Windows of up to so many tokens are summed directly, a token of all windows at a time, which the compiler turns into vectors;
// above it running sums cost less.
constexpr int64_t kDirect = 32;

// sums[t] ← Σ of values[s] over the window of t, tokens that do not exist counting 0. X: double, or int32_t for numbers of tokens.
template <class X>
void window_sums(int64_t length, int64_t before, int64_t after, const X* values, X* sums) {
  const int64_t w = before + after + 1;
  if (w <= kDirect) {
    const int64_t left = std::max<int64_t>(before, 0), right = std::max<int64_t>(after, 0);
    std::vector<X> padded(left + length + right);
    std::copy_n(values, length, padded.begin() + left);
    std::fill_n(sums, length, X(0));
    for (int64_t k = 0; k < w; ++k) {
      const X* from = padded.data() + left - before + k;
      for (int64_t t = 0; t < length; ++t) sums[t] += from[t];
    }
    return;
  }
  std::vector<X> head(length), tail(length);
  for (int64_t begin = 0; begin < length; begin += w) {
    const int64_t end = std::min(begin + w, length);
    X sum = 0;
    for (int64_t t = begin; t < end; ++t) head[t] = sum += values[t];
    sum = 0;
    for (int64_t t = end - 1; t >= begin; --t) tail[t] = sum += values[t];
  }
  for (int64_t t = 0; t < length; ++t) {
    const WindowReach reach = kernels::window_reach(t, before, after, length);
    sums[t] = (reach.tail ? tail[reach.a] : X(0)) + (reach.head ? head[reach.b] : X(0));
  }
}

template <class T>
void forward(const kernels::WindowEntropyForward& p, int64_t row) {
  const int64_t length = p.length, w = p.before + p.after + 1;
  const T* x = static_cast<const T*>(p.x) + row * length;
  const bool *mask = p.mask + row * length, *at = p.at ? p.at + row * length : mask;
  T* mean = static_cast<T*>(p.mean) + row * length;
  int32_t* count = p.count + row * length;
  std::vector<double> values(length), sums(length);
  std::vector<int32_t> ones(length);
  for (int64_t t = 0; t < length; ++t) values[t] = mask[t] ? static_cast<double>(x[t]) : 0.0, ones[t] = mask[t];
  window_sums(length, p.before, p.after, values.data(), sums.data());
  window_sums(length, p.before, p.after, ones.data(), count);
  const int64_t least = p.shrink ? 1 : w;
  for (int64_t t = 0; t < length; ++t) count[t] = mask[t] && at[t] && count[t] >= least ? count[t] : 0;
  if (!p.shrink) {  // all counts are w or 0: no division, which would take longer than the sums
    const double share = 1.0 / static_cast<double>(w);
    for (int64_t t = 0; t < length; ++t) mean[t] = static_cast<T>(count[t] == 0 ? 0.0 : sums[t] * share);
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
  std::vector<double> values(length), sums(length);
  for (int64_t t = 0; t < length; ++t) values[t] = count[t] > 0 ? static_cast<double>(dmean[t]) / count[t] : 0.0;
  window_sums(length, p.after, p.before, values.data(), sums.data());  // over the windows that hold a token: the mirror image
  for (int64_t s = 0; s < length; ++s) dx[s] = mask[s] ? static_cast<T>(sums[s]) : T(0);
}

// The quantile by linear interpolation between the values of ranks ⌊q(n-1)⌋ and the next; NaN counts as the largest.
template <class T>
T quantile(std::vector<T>& values, double q) {
  const double place = q * static_cast<double>(values.size() - 1);
  const auto rank = static_cast<size_t>(place);
  const auto less = [](T a, T b) { return a < b || (b != b && a == a); };
  std::nth_element(values.begin(), values.begin() + rank, values.end(), less);
  const double low = values[rank], share = place - static_cast<double>(rank);
  if (share == 0) return static_cast<T>(low);
  const double high = *std::min_element(values.begin() + rank + 1, values.end(), less);
  return static_cast<T>(low + share * (high - low));
}

template <class T>
void select(const WindowSelect& p, int64_t group) {
  const T* mean = static_cast<const T*>(p.mean) + group * p.size;
  const int32_t* count = p.count + group * p.size;
  std::vector<T> values;
  values.reserve(p.size);
  for (int64_t i = 0; i < p.size; ++i)
    if (count[i] > 0) values.push_back(mean[i]);
  T& threshold = static_cast<T*>(p.threshold)[group];
  threshold = std::numeric_limits<T>::infinity();
  if (p.top) std::fill_n(p.high + group * p.size, p.size, false);
  if (values.empty()) return;
  if (!p.top) {
    threshold = quantile(values, p.fraction);
    return;
  }
  const auto n = static_cast<int64_t>(values.size());
  const int64_t taken = std::clamp<int64_t>(static_cast<int64_t>(std::ceil(p.fraction * static_cast<double>(n))), 1, n);
  const auto more = [](T a, T b) { return a > b || (a != a && b == b); };
  std::nth_element(values.begin(), values.begin() + (taken - 1), values.end(), more);
  threshold = values[taken - 1];
  int64_t ties = taken;  // of those at the threshold, the first are taken
  for (int64_t i = 0; i < n; ++i) ties -= more(values[i], threshold);
  for (int64_t i = 0; i < p.size; ++i) {
    if (count[i] == 0) continue;
    const bool tie = !more(mean[i], threshold) && !more(threshold, mean[i]);
    p.high[group * p.size + i] = more(mean[i], threshold) || (tie && ties-- > 0);
  }
}

}  // namespace

void window_entropy_forward_on_cpu(const kernels::WindowEntropyForward& p) {
  for_tasks(p.rows, [&](int64_t row) { p.dtype == DType::kDouble ? forward<double>(p, row) : forward<float>(p, row); });
}
void window_entropy_backward_on_cpu(const kernels::WindowEntropyBackward& p) {
  for_tasks(p.rows, [&](int64_t row) { p.dtype == DType::kDouble ? backward<double>(p, row) : backward<float>(p, row); });
}
void window_select_on_cpu(const WindowSelect& p) {
  for_tasks(p.groups, [&](int64_t group) { p.dtype == DType::kDouble ? select<double>(p, group) : select<float>(p, group); });
}

}  // namespace isentrope::ops
