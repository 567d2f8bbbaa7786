// The CPU backend of crrelu: a task a run of elements. Compiled once for every instruction set, in a namespace of its name.
#include "csrc/ops/crrelu_cpu.h"

#include <cstring>

#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/cpu_vector.h"

namespace isentrope::ops {
namespace CPU_CAPABILITY {
namespace {

using kernels::DType;

// −log₂(e) / 2: e^(−x²/2) = 2^(kBell x²).
template <class V>
ISENTROPE_INLINE V bell_of(V inside) {
  constexpr double kBell = -0.72134752044448170;
  return exp2(clamp(inside * inside * V(static_cast<typename V::Scalar>(kBell))));
}

// x within ±40, a NaN as it is.
template <class V>
ISENTROPE_INLINE V within(V x) {
  using S = typename V::Scalar;
  const V low = max(V(S(-40)), x);
  return V(S(0)) - max(V(S(-40)), V(S(0)) - low);
}

template <class V>
ISENTROPE_INLINE V value_of(V x, V epsilon) {
  const V inside = within(x);
  return fma(epsilon, inside * bell_of(inside), max(V(typename V::Scalar(0)), x));
}

// 1 above 0, else 0.
#if defined(__AVX512F__)
ISENTROPE_INLINE Float step_of(Float x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ), _mm512_set1_ps(1.0f));
}
#elif defined(__AVX2__)
ISENTROPE_INLINE Float step_of(Float x) {
  return _mm256_and_ps(_mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ), _mm256_set1_ps(1.0f));
}
#else
ISENTROPE_INLINE Float step_of(Float x) {
  float value[Float::kWidth];
  store(value, x);
  for (float& one : value) one = one > 0 ? 1.0f : 0.0f;
  return load(value);
}
#endif
ISENTROPE_INLINE Double1 step_of(Double1 x) { return Double1(x.v > 0 ? 1.0 : 0.0); }

template <class V>
ISENTROPE_INLINE V slope_of(V x, V epsilon, V dy, V& sum) {
  const V inside = within(x), bell = bell_of(inside), term = inside * bell;
  sum = fma(dy, term, sum);
  return dy * fma(epsilon, bell - inside * term, step_of(x));
}

// body(elements of one step at an index) over a run; what is left of a step goes through a copy that zeros fill.
template <class T, class Step>
ISENTROPE_INLINE void for_steps(int64_t first, int64_t last, const Step& step) {
  int64_t i = first;
  for (; i + kStep<T> <= last; i += kStep<T>) step(i, kStep<T>);
  if (i < last) step(i, last - i);
}

template <class T>
struct Rest {
  T value[kStep<T>];
  Rest() { std::memset(static_cast<void*>(value), 0, sizeof(value)); }
};

template <class T>
ISENTROPE_INLINE Pairs<T> load_some(const T* p, int64_t count) {
  if (count == kStep<T>) return Pairs<T>::load(p);
  Rest<T> rest;
  std::memcpy(static_cast<void*>(rest.value), p, static_cast<size_t>(count) * sizeof(T));
  return Pairs<T>::load(rest.value);
}

template <class T>
ISENTROPE_INLINE void store_some(const Pairs<T>& pairs, T* p, int64_t count) {
  if (count == kStep<T>) return pairs.store(p);
  Rest<T> rest;
  pairs.store(rest.value);
  std::memcpy(static_cast<void*>(p), rest.value, static_cast<size_t>(count) * sizeof(T));
}

template <class T>
void forward(const kernels::CrreluForward& p) {
  using V = VectorOf<T>;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const V epsilon(*static_cast<const ScalarOf<T>*>(p.epsilon));
  for_tasks((p.count + kCrreluRun - 1) / kCrreluRun, [&](int64_t task) {
    const int64_t first = task * kCrreluRun, last = first + kCrreluRun < p.count ? first + kCrreluRun : p.count;
    for_steps<T>(first, last, [&](int64_t i, int64_t count) {
      const Pairs<T> in = load_some(x + i, count);
      store_some(Pairs<T>{value_of(in.first, epsilon), value_of(in.second, epsilon)}, y + i, count);
    });
  });
}

template <class T>
void backward(const kernels::CrreluBackward& p) {
  using V = VectorOf<T>;
  const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy);
  T* dx = static_cast<T*>(p.dx);
  const V epsilon(*static_cast<const ScalarOf<T>*>(p.epsilon));
  for_tasks((p.count + kCrreluRun - 1) / kCrreluRun, [&](int64_t task) {
    const int64_t first = task * kCrreluRun, last = first + kCrreluRun < p.count ? first + kCrreluRun : p.count;
    V sum(ScalarOf<T>(0)), other(ScalarOf<T>(0));
    for_steps<T>(first, last, [&](int64_t i, int64_t count) {
      const Pairs<T> in = load_some(x + i, count), d = load_some(dy + i, count);
      const V a = slope_of(in.first, epsilon, d.first, sum), b = slope_of(in.second, epsilon, d.second, other);
      store_some(Pairs<T>{a, b}, dx + i, count);
    });
    p.parts[task] = static_cast<double>(reduce_add(sum + other));
  });
}

template <class Body>
void of_type(DType type, const Body& body) {
  switch (type) {
    case DType::kFloat:
      return body(float());
    case DType::kBFloat16:
      return body(BFloat16());
    case DType::kHalf:
      return body(Half());
    case DType::kDouble:
      return body(double());
  }
}

}  // namespace

void crrelu_forward_on_cpu(const kernels::CrreluForward& p) {
  of_type(p.dtype, [&](auto one) { forward<decltype(one)>(p); });
}

void crrelu_backward_on_cpu(const kernels::CrreluBackward& p) {
  of_type(p.dtype, [&](auto one) { backward<decltype(one)>(p); });
}

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::ops
