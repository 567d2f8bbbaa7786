// The CPU backend of sigma_linear and power_step. Memory is the limit: a power step reads W once, its rows in fours, each
// four for W u and, while in cache, for Wᵀ(W u). Layers of a power step are tasks of their own.
#include "csrc/ops/sigma_linear_cpu.h"

#include <cmath>
#include <cstdlib>
#include <new>
#include <type_traits>

#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/cpu_vector.h"

namespace isentrope::ops::CPU_CAPABILITY {
namespace {

using kernels::DType;
using kernels::SigmaMatrix;

// Multiply-adds in one chain; sums over more are sums of chains, since the error of a chain grows with its length.
constexpr int64_t kChain = 64;
constexpr int64_t kGroup = 4;  // rows at a time: 8 sums, 2 elements of u and 2 of W fill AVX2's 16 registers
// Elements of W that make a task: some microseconds, well above what handing it out costs.
constexpr int64_t kTaskElements = 32768;

int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// function(a null pointer to the dtype's element)
template <class Function>
void for_type(DType type, const Function& function) {
  switch (type) {
    case DType::kFloat:
      return function(static_cast<float*>(nullptr));
    case DType::kBFloat16:
      return function(static_cast<BFloat16*>(nullptr));
    case DType::kHalf:
      return function(static_cast<Half*>(nullptr));
    case DType::kDouble:
      return function(static_cast<double*>(nullptr));
  }
}

template <class S>
S& at(void* x, int64_t i = 0) {
  return static_cast<S*>(x)[i];
}
template <class S>
S at(const void* x, int64_t i = 0) {
  return static_cast<const S*>(x)[i];
}

// count zeros.
template <class S>
struct Buffer {
  S* data;
  explicit Buffer(int64_t count) : data(static_cast<S*>(std::calloc(count, sizeof(S)))) {
    if (data == nullptr) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
};

// A vector that meets rows of T lies in the order of pairs, filled up with zeros to whole steps: the lanes of a pair of
// bfloat16 are the low and the high halves of 32-bit words, all others are in order.
template <class T>
int64_t place(int64_t i) {
  if constexpr (!std::is_same<T, BFloat16>::value) return i;
  const int64_t within = i % kStep<T>;
  return i - within + within / 2 + within % 2 * (kStep<T> / 2);
}
template <class T>
int64_t placed_size(int64_t n) {
  return parts(n, kStep<T>) * kStep<T>;
}
template <class T>
void put(ScalarOf<T>* placed, const ScalarOf<T>* plain, int64_t n) {
  for (int64_t i = 0; i < n; ++i) placed[place<T>(i)] = plain[i];
}

// The pair at x, or what is left of it before the end, then zeros.
template <class T>
ISENTROPE_INLINE Pairs<T> load_up_to(const T* x, int64_t left) {
  if (left >= kStep<T>) return Pairs<T>::load(x);
  alignas(64) T few[kStep<T>] = {};
  std::memcpy(few, x, left * sizeof(T));
  return Pairs<T>::load(few);
}

// ‖x‖²
template <class S>
double square_of(const S* x, int64_t n) {
  double square = 0;
  for (int64_t begin = 0; begin < n; begin += kChain) {
    double chain = 0;
    for (int64_t i = begin; i < smaller(begin + kChain, n); ++i) chain += static_cast<double>(x[i]) * x[i];
    square += chain;
  }
  return square;
}

// kRows rows of W times u, which is placed.
template <class T, int kRows>
ISENTROPE_INLINE void products(const T* row, int64_t stride, int64_t columns, const ScalarOf<T>* u,
                               ScalarOf<T>* product) {
  using V = VectorOf<T>;
  for (int r = 0; r < kRows; ++r) product[r] = 0;
  for (int64_t begin = 0; begin < columns; begin += kChain * kStep<T>) {
    const int64_t end = smaller(begin + kChain * kStep<T>, columns);
    V first[kRows], second[kRows];
    for (int r = 0; r < kRows; ++r) first[r] = second[r] = V(ScalarOf<T>(0));
    for (int64_t i = begin; i < end; i += kStep<T>) {
      const V u1 = load(u + i), u2 = load(u + i + V::kWidth);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Pairs<T> w = load_up_to(row + r * stride + i, columns - i);
        first[r] = fma(w.first, u1, first[r]);
        second[r] = fma(w.second, u2, second[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) product[r] += reduce_add(first[r] + second[r]);
  }
}

// sum += Σ_r product_r · row r, in placed order.
template <class T, int kRows>
ISENTROPE_INLINE void add_rows(const T* row, int64_t stride, int64_t columns, const ScalarOf<T>* product,
                               ScalarOf<T>* sum) {
  using V = VectorOf<T>;
  V factor[kRows];
  for (int r = 0; r < kRows; ++r) factor[r] = V(product[r]);
  for (int64_t i = 0; i < columns; i += kStep<T>) {
    V s1 = load(sum + i), s2 = load(sum + i + V::kWidth);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Pairs<T> w = load_up_to(row + r * stride + i, columns - i);
      s1 = fma(w.first, factor[r], s1);
      s2 = fma(w.second, factor[r], s2);
    }
    store(sum + i, s1);
    store(sum + i + V::kWidth, s2);
  }
}

// function(row, std::integral_constant of how many) for the rows of [begin, end), in fours, then one by one.
template <class Function>
ISENTROPE_INLINE void in_groups(int64_t begin, int64_t end, const Function& function) {
  int64_t r = begin;
  for (; r + kGroup <= end; r += kGroup) function(r, std::integral_constant<int, kGroup>());
  for (; r < end; ++r) function(r, std::integral_constant<int, 1>());
}

template <class T>
void norm(const kernels::SigmaNorm& p) {
  using S = ScalarOf<T>;
  const SigmaMatrix& w = p.weight;
  const T* weight = static_cast<const T*>(w.data);
  S* v = static_cast<S*>(p.v);
  Buffer<S> u(placed_size<T>(w.columns));
  put<T>(u.data, static_cast<const S*>(p.u), w.columns);
  const int64_t rows = parts(kTaskElements, w.columns * kGroup) * kGroup;  // of a task: whole groups
  for_tasks(parts(w.rows, rows), [&](int64_t task) {
    in_groups(task * rows, smaller((task + 1) * rows, w.rows), [&](int64_t r, auto count) {
      products<T, count()>(weight + r * w.stride, w.stride, w.columns, u.data, v + r);
    });
  });
  const S sigma = static_cast<S>(
      std::sqrt(square_of(v, w.rows)));  // rounded before it is used: γ = σ then gives a scale of exactly 1
  for (int64_t r = 0; r < w.rows; ++r) v[r] = sigma == 0 ? S(0) : v[r] / sigma;
  const S scale = static_cast<S>(kernels::sigma_scale(at<S>(p.gamma), sigma));
  at<S>(p.sigma) = sigma;
  at<S>(p.factors, kernels::kScale) = scale;
  at<S>(p.factors, kernels::kScaleOrOne) = scale == 0 ? S(1) : scale;
  at<S>(p.factors, kernels::kZero) = 0;
  at<S>(p.factors, kernels::kOne) = 1;
}

template <class T>
void dot(const kernels::SigmaDot& p) {
  using V = VectorOf<T>;
  using S = ScalarOf<T>;
  T* a = static_cast<T*>(p.a);
  const T* b = static_cast<const T*>(p.b);
  const S scale = at<S>(p.factors, kernels::kScale);
  const bool clear = p.clear && scale == 0;
  const int64_t all = kernels::sigma_dot_parts(p.count);
  for_tasks(all, [&](int64_t part) {
    const int64_t begin = part * kernels::kSigmaDotPart, end = smaller(begin + kernels::kSigmaDotPart, p.count);
    double sum = 0;
    for (int64_t from = begin; from < end; from += kChain * kStep<T>) {
      const int64_t to = smaller(from + kChain * kStep<T>, end);
      V first(S(0)), second(S(0));
      for (int64_t i = from; i < to; i += kStep<T>) {
        const Pairs<T> x = load_up_to(a + i, end - i), y = load_up_to(b + i, end - i);
        first = fma(x.first, y.first, first);
        second = fma(x.second, y.second, second);
      }
      sum += reduce_add(first + second);
    }
    p.partial[part] = sum;
    if (clear) std::memset(static_cast<void*>(a + begin), 0, (end - begin) * sizeof(T));
  });
  double s = 0;
  for (int64_t part = 0; part < all; ++part) s += p.partial[part];
  const kernels::SigmaGradient gradient = kernels::sigma_gradient(
      s / at<S>(p.divisor), scale, at<S>(p.sigma), p.dsigma ? static_cast<double>(at<S>(p.dsigma)) : 0.0, p.through);
  at<S>(p.dgamma) = static_cast<S>(gradient.dgamma);
  at<S>(p.rank_one) = static_cast<S>(gradient.rank_one);
}

template <class T>
void rank_one(const kernels::SigmaRankOne& p) {
  using V = VectorOf<T>;
  using S = ScalarOf<T>;
  Buffer<S> u(placed_size<T>(p.columns));
  put<T>(u.data, static_cast<const S*>(p.u), p.columns);
  const bool keep = p.scale != nullptr;
  const V scale(keep ? at<S>(p.scale) : S(0));
  const int64_t rows = parts(kTaskElements, p.columns);
  for_tasks(parts(p.rows, rows), [&](int64_t task) {
    for (int64_t r = task * rows; r < smaller((task + 1) * rows, p.rows); ++r) {
      T* dweight = static_cast<T*>(p.dweight) + r * p.columns;
      const V factor(at<S>(p.rank_one) * at<S>(p.v, r));
      for (int64_t i = 0; i < p.columns; i += kStep<T>) {
        Pairs<T> out{factor * load(u.data + i), factor * load(u.data + i + V::kWidth)};
        if (keep) {
          const Pairs<T> old = load_up_to(dweight + i, p.columns - i);
          out = {fma(scale, old.first, out.first), fma(scale, old.second, out.second)};
        }
        if (p.columns - i >= kStep<T>) {
          out.store(dweight + i);
        } else {
          alignas(64) T few[kStep<T>];
          out.store(few);
          std::memcpy(static_cast<void*>(dweight + i), few, (p.columns - i) * sizeof(T));
        }
      }
    }
  });
}

template <class T>
void power_steps(const kernels::PowerStep& p, int64_t index) {
  using S = ScalarOf<T>;
  const SigmaMatrix& w = p.layers[index].weight;
  const T* weight = static_cast<const T*>(w.data);
  S* u = static_cast<S*>(p.layers[index].u);
  const int64_t size = placed_size<T>(w.columns);
  Buffer<S> placed(size), slab(size), sum(size);
  put<T>(placed.data, u, w.columns);
  p.steps[index] = 0;
  bool done = false;
  while (!done && p.steps[index] < p.steps_max) {
    double square = 0;
    std::memset(sum.data, 0, size * sizeof(S));
    for (int64_t begin = 0; begin < w.rows; begin += kernels::kPowerRows) {
      std::memset(slab.data, 0, size * sizeof(S));  // sums over short runs of rows, then over these: fewer roundings
      in_groups(begin, smaller(begin + kernels::kPowerRows, w.rows), [&](int64_t r, auto count) {
        S product[count()];
        products<T, count()>(weight + r * w.stride, w.stride, w.columns, placed.data, product);
        square += square_of(product, count());
        add_rows<T, count()>(weight + r * w.stride, w.stride, w.columns, product, slab.data);
      });
      for (int64_t i = 0; i < size; ++i) sum.data[i] += slab.data[i];
    }
    const double norm = std::sqrt(square_of(sum.data, size));
    const kernels::PowerOutcome outcome = kernels::power_outcome(std::sqrt(square), norm, p.tolerance);
    at<S>(p.sigma, index) = static_cast<S>(outcome.sigma);
    done = outcome.done;
    if (outcome.moves) {
      for (int64_t i = 0; i < size; ++i) placed.data[i] = static_cast<S>(sum.data[i] / norm);
      ++p.steps[index];
    }
  }
  if (p.steps[index] > 0)
    for (int64_t i = 0; i < w.columns; ++i) u[i] = placed.data[place<T>(i)];
}

}  // namespace

void sigma_norm(const kernels::SigmaNorm& p) {
  for_type(p.dtype, [&](auto* type) { norm<std::remove_pointer_t<decltype(type)>>(p); });
}
void sigma_dot(const kernels::SigmaDot& p) {
  for_type(p.dtype, [&](auto* type) { dot<std::remove_pointer_t<decltype(type)>>(p); });
}
void sigma_rank_one(const kernels::SigmaRankOne& p) {
  for_type(p.dtype, [&](auto* type) { rank_one<std::remove_pointer_t<decltype(type)>>(p); });
}
void power_step(const kernels::PowerStep& p) {
  for_type(p.dtype, [&](auto* type) {
    for_tasks(p.count, [&](int64_t i) { power_steps<std::remove_pointer_t<decltype(type)>>(p, i); });
  });
}

}  // namespace isentrope::ops::CPU_CAPABILITY
