// The one switch between nvcc and the host. Every kernel includes it, directly or through its neighbours; under nvcc
// it is the CUDA toolkit, otherwise kernels/simt/simt.h gives the same names to a host compiler, without CUDA headers.
//
//   GPU_DEVICE                       a device function           GPU_HOST_DEVICE   one for both sides
//   GPU_SHARED(Type, name, count)    a static shared array       GPU_DYNAMIC_SHARED(Type, name)   the dynamic one
//   GPU_UNROLL, GPU_UNROLL_BY(n)     before a loop to unroll, in full or by n
//   GPU_AT, GPU_HERE                 at the end of the parameters of a device function that synchronises, and of the
//                                    arguments it hands on: the caller's file and line, for the SIMT machine's reports;
//                                    inside such a function the barrier is GPU_SYNC_THREADS_HERE()
//
// Kernels keep to C++17, to these names and to CUDA's own threadIdx, blockIdx, blockDim, gridDim, __syncthreads,
// __syncwarp, __shfl_*_sync, __ballot_sync, __any_sync, __all_sync and atomics.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define GPU_DEVICE __device__ __forceinline__
#define GPU_HOST_DEVICE __host__ __device__ __forceinline__
#define GPU_UNROLL _Pragma("unroll")
#define GPU_PRAGMA(text) _Pragma(#text)
#define GPU_UNROLL_BY(n) GPU_PRAGMA(unroll n)
#define GPU_AT
#define GPU_HERE
#define GPU_SYNC_THREADS_HERE() __syncthreads()
#define GPU_SHARED(Type, name, count) __shared__ __align__(16) Type name[count]
#define GPU_DYNAMIC_SHARED(Type, name)                                  \
  extern __shared__ __align__(128) unsigned char gpu_dynamic_shared_[]; \
  Type* name = reinterpret_cast<Type*>(gpu_dynamic_shared_)

namespace isentrope::gpu {
using bfloat16 = __nv_bfloat16;
using half = __half;
GPU_HOST_DEVICE float to_float(bfloat16 x) { return __bfloat162float(x); }
GPU_HOST_DEVICE float to_float(half x) { return __half2float(x); }
GPU_HOST_DEVICE bfloat16 to_bfloat16(float x) { return __float2bfloat16_rn(x); }
GPU_HOST_DEVICE half to_half(float x) { return __float2half_rn(x); }
}  // namespace isentrope::gpu
#else
#include "kernels/simt/simt.h"

#define GPU_DEVICE inline __attribute__((always_inline))
#define GPU_HOST_DEVICE inline __attribute__((always_inline))
#define GPU_UNROLL
#define GPU_UNROLL_BY(n)
#define GPU_AT , const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define GPU_HERE , file_, line_
#define GPU_SYNC_THREADS_HERE() __syncthreads(file_, line_)
#define GPU_SHARED(Type, name, count)                                    \
  static const char name##_key_ = 0;                                     \
  auto& name = *static_cast<::isentrope::simt::ArrayOf<Type, (count)>*>( \
      ::isentrope::simt::static_shared(&name##_key_, sizeof(Type) * (count), alignof(Type), #name))
#define GPU_DYNAMIC_SHARED(Type, name) Type* name = static_cast<Type*>(::isentrope::simt::dynamic_shared())

namespace isentrope::gpu {
using simt::bfloat16;
using simt::half;
using simt::to_bfloat16;
using simt::to_float;
using simt::to_half;
}  // namespace isentrope::gpu
#endif

namespace isentrope::gpu {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// The type sums are kept in: double for double, else float.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// widen(x): a stored element as its accumulator type. narrow<T>(a): back, rounded to nearest even.
GPU_HOST_DEVICE float widen(float x) { return x; }
GPU_HOST_DEVICE double widen(double x) { return x; }
GPU_HOST_DEVICE float widen(bfloat16 x) { return to_float(x); }
GPU_HOST_DEVICE float widen(half x) { return to_float(x); }

template <class T>
GPU_HOST_DEVICE T narrow(Accumulator<T> a) {
  if constexpr (sizeof(T) >= 4) {
    return a;
  } else if constexpr (std::is_same<T, bfloat16>::value) {
    return to_bfloat16(a);
  } else {
    return to_half(a);
  }
}

// 2^x and log2(x). float: one instruction of the special function unit, about 2 ulp; denormal results are 0.
GPU_DEVICE float exp2_approx(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = ::exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
#endif
}
GPU_DEVICE float log2_approx(float x) {
#if defined(__CUDACC__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::log2f(x);
#endif
}
// The double forms are exact, so that one template serves both.
GPU_DEVICE double exp2_approx(double x) { return ::exp2(x); }
GPU_DEVICE double log2_approx(double x) { return ::log2(x); }

GPU_HOST_DEVICE float maximum(float a, float b) { return ::fmaxf(a, b); }
GPU_HOST_DEVICE double maximum(double a, double b) { return ::fmax(a, b); }
GPU_HOST_DEVICE float minimum(float a, float b) { return ::fminf(a, b); }
GPU_HOST_DEVICE double minimum(double a, double b) { return ::fmin(a, b); }

// a·b, rounded: never one half of a fused multiply-add, so that equal factors give equal products wherever they are used.
GPU_DEVICE float multiply_rounded(float a, float b) {
#if defined(__CUDACC__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

template <class Integer>
GPU_HOST_DEVICE constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

}  // namespace isentrope::gpu
