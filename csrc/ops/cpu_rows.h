// Rows in memory for the CPU backends, compiled for the instruction set of the file that includes it: elements of a dtype to and
// from the Real that is computed in, the soft cap of logits, and scratch memory of a thread.
#pragma once
#include <cmath>
#include <cstdlib>
#include <new>

#include "csrc/ops/cpu_product.h"
#include "csrc/ops/cpu_vector.h"
#include "kernels/gpu/dtype.h"

namespace isentrope::ops::CPU_CAPABILITY {

using kernels::DType;

template <class Real>
using Vector = VectorOf<Real>;
template <class Real>
constexpr int64_t kWidth = Vector<Real>::kWidth;

// Memory of a thread, kept from call to call: fresh pages cost more than the packing that fills them.
struct Scratch {
  void* data = nullptr;
  int64_t bytes = 0;
  template <class Real>
  Real* get(int64_t count) {
    const int64_t wanted = round_up(count * static_cast<int64_t>(sizeof(Real)), 4096);
    if (wanted > bytes) {
      release();
      data = std::aligned_alloc(4096, wanted);
      if (data == nullptr) throw std::bad_alloc();
      bytes = wanted;
    }
    return static_cast<Real*>(data);
  }
  void release() {
    std::free(data);
    data = nullptr;
    bytes = 0;
  }
  ~Scratch() { release(); }
};

// ---- elements -------------------------------------------------------------------------------------------------------

inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}
inline BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(x != x ? 0x7fc0u : rounded)};
}

// to [n] = row [n] at an offset of base.
template <class Real>
void load_row(DType dtype, const void* base, int64_t at, int64_t n, Real* to) {
  if constexpr (sizeof(Real) == 8) {
    std::memcpy(to, static_cast<const double*>(base) + at, n * sizeof(double));
  } else if (dtype == DType::kFloat) {
    std::memcpy(to, static_cast<const float*>(base) + at, n * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    const BFloat16* from = static_cast<const BFloat16*>(base) + at;
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
  } else {
    const Half* from = static_cast<const Half*>(base) + at;
    int64_t i = 0;
    for (; i + Float::kWidth <= n; i += Float::kWidth) store(to + i, load_half(&from[i].bits));
    if (i == n) return;
    uint16_t rest[Float::kWidth] = {};
    float few[Float::kWidth];
    std::memcpy(rest, from + i, (n - i) * sizeof(uint16_t));
    store(few, load_half(rest));
    std::memcpy(to + i, few, (n - i) * sizeof(float));
  }
}

template <class Real>
void store_row(DType dtype, const Real* from, int64_t n, void* base, int64_t at) {
  if constexpr (sizeof(Real) == 8) {
    std::memcpy(static_cast<double*>(base) + at, from, n * sizeof(double));
  } else if (dtype == DType::kFloat) {
    std::memcpy(static_cast<float*>(base) + at, from, n * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    BFloat16* to = static_cast<BFloat16*>(base) + at;
    for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(from[i]);
  } else {
    Half* to = static_cast<Half*>(base) + at;
    int64_t i = 0;
    for (; i + Float::kWidth <= n; i += Float::kWidth) store_half(&to[i].bits, load(from + i));
    if (i == n) return;
    float few[Float::kWidth] = {};
    uint16_t rest[Float::kWidth];
    std::memcpy(few, from + i, (n - i) * sizeof(float));
    store_half(rest, load(few));
    std::memcpy(to + i, rest, (n - i) * sizeof(uint16_t));
  }
}

// ---- soft cap -------------------------------------------------------------------------------------------------------

// tanh on a vector: an odd polynomial (Cephes tanhf, Moshier) below 0.625, where 1 - 2/(e^2x + 1) would lose digits.
inline float tanh_from(float x, float exp_twice) {
  const float z = x * x;
  const float near =
      ((((-5.70498872745e-3f * z + 2.06390887954e-2f) * z - 5.37397155531e-2f) * z + 1.33314422036e-1f) * z -
       3.33332819422e-1f) *
          z * x +
      x;
  const float far = 1.0f - 2.0f / (exp_twice + 1.0f), size = x < 0 ? -x : x;
  return size < 0.625f ? near : x < 0 ? -far : far;
}

// s = cap · tanh(x) in place of x, slope = ds/dx if not null.
template <class Real>
void cap_row(Real* x, Span vectors, Real factor, Real cap, Real* slope) {
  for (int64_t j = vectors.from; j < vectors.to; j += kWidth<Real>) {
    Real t[kWidth<Real>];
    for (int64_t i = 0; i < kWidth<Real>; ++i) x[j + i] *= factor;
    if constexpr (sizeof(Real) == 8) {
      t[0] = ::tanh(x[j]);
    } else {
      const Float y = load(x + j), size = max(y, Float(0.0f) - y);
      // 2 |x| log2 e, at most 120: there tanh is 1.
      store(t, exp2(Float(0.0f) - max(Float(-120.0f), size * Float(static_cast<float>(-2 * 1.4426950408889634074)))));
      for (int64_t i = 0; i < kWidth<Real>; ++i) t[i] = tanh_from(x[j + i], t[i]);
    }
    for (int64_t i = 0; i < kWidth<Real>; ++i) x[j + i] = cap * t[i];
    if (slope != nullptr)
      for (int64_t i = 0; i < kWidth<Real>; ++i) slope[j + i] = cap * (1 - t[i] * t[i]);
  }
}

}  // namespace isentrope::ops::CPU_CAPABILITY
