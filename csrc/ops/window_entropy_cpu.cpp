// The CPU backend of window_entropy: a task a sequence, two sweeps for the sums of its blocks and one over its windows.
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
using kernels::WindowSums;

WindowSums operator+(const WindowSums& a, const WindowSums& b) { return {a.sum + b.sum, a.count + b.count}; }

// head and tail [length] of value(t), in blocks of w.
template <class Value>
void block_sums(int64_t length, int64_t w, const Value& value, WindowSums* head, WindowSums* tail) {
  for (int64_t begin = 0; begin < length; begin += w) {
    const int64_t end = std::min(begin + w, length);
    WindowSums sum = {0, 0};
    for (int64_t t = begin; t < end; ++t) head[t] = sum = sum + value(t);
    sum = {0, 0};
    for (int64_t t = end - 1; t >= begin; --t) tail[t] = sum = value(t) + sum;
  }
}

WindowSums window_of(const WindowReach& reach, const WindowSums* head, const WindowSums* tail) {
  WindowSums sum = {0, 0};
  if (reach.tail) sum = tail[reach.a];
  if (reach.head) sum = sum + head[reach.b];
  return sum;
}

template <class T>
void forward(const kernels::WindowEntropyForward& p, int64_t row, WindowSums* head, WindowSums* tail) {
  const int64_t length = p.length, w = p.before + p.after + 1;
  const T* x = static_cast<const T*>(p.x) + row * length;
  const bool* mask = p.mask + row * length;
  T* mean = static_cast<T*>(p.mean) + row * length;
  int32_t* count = p.count + row * length;
  block_sums(length, w, [&](int64_t t) { return mask[t] ? WindowSums{static_cast<double>(x[t]), 1} : WindowSums{0, 0}; }, head, tail);
  for (int64_t t = 0; t < length; ++t) {
    WindowSums sum = {0, 0};
    if (mask[t] && (p.at == nullptr || p.at[row * length + t])) sum = window_of(kernels::window_reach(t, p.before, p.after, length), head, tail);
    if (!p.shrink && sum.count < w) sum.count = 0;
    mean[t] = sum.count == 0 ? T(0) : static_cast<T>(sum.sum / static_cast<double>(sum.count));
    count[t] = static_cast<int32_t>(sum.count);
  }
}

template <class T>
void backward(const kernels::WindowEntropyBackward& p, int64_t row, WindowSums* head, WindowSums* tail) {
  const int64_t length = p.length;
  const T* dmean = static_cast<const T*>(p.dmean) + row * length;
  const int32_t* count = p.count + row * length;
  const bool* mask = p.mask + row * length;
  T* dx = static_cast<T*>(p.dx) + row * length;
  block_sums(length, p.before + p.after + 1,
             [&](int64_t t) { return WindowSums{count[t] > 0 ? static_cast<double>(dmean[t]) / count[t] : 0.0, 0}; }, head, tail);
  for (int64_t s = 0; s < length; ++s)  // of the windows that hold s: the mirror image
    dx[s] = mask[s] ? static_cast<T>(window_of(kernels::window_reach(s, p.after, p.before, length), head, tail).sum) : T(0);
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

// work(row, head, tail) for every row, with room for the sums.
template <class Work>
void for_rows(int64_t rows, int64_t length, const Work& work) {
  for_tasks(rows, [&](int64_t row) {
    std::vector<WindowSums> sums(2 * length);
    work(row, sums.data(), sums.data() + length);
  });
}

}  // namespace

void window_entropy_forward_on_cpu(const kernels::WindowEntropyForward& p) {
  for_rows(p.rows, p.length, [&](int64_t row, WindowSums* head, WindowSums* tail) {
    p.dtype == DType::kDouble ? forward<double>(p, row, head, tail) : forward<float>(p, row, head, tail);
  });
}
void window_entropy_backward_on_cpu(const kernels::WindowEntropyBackward& p) {
  for_rows(p.rows, p.length, [&](int64_t row, WindowSums* head, WindowSums* tail) {
    p.dtype == DType::kDouble ? backward<double>(p, row, head, tail) : backward<float>(p, row, head, tail);
  });
}
void window_select_on_cpu(const WindowSelect& p) {
  for_tasks(p.groups, [&](int64_t group) { p.dtype == DType::kDouble ? select<double>(p, group) : select<float>(p, group); });
}

}  // namespace isentrope::ops
