// Bound by memory: sixteen bytes a thread at a time, the grid striding over the elements. ε's gradient is a sum a block, then of blocks.
#include "kernels/crrelu.h"
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/reduce.h"
#include "kernels/gpu/vector.h"

namespace isentrope::kernels {
namespace crrelu {

// Blocks a multiprocessor has to hold. Said, since otherwise ptxas spills a register of the doubles to hold more.
constexpr int kThreads = 256, kBlocks = 4;

GPU_DEVICE float exponential(float x) { return expf(x); }
GPU_DEVICE double exponential(double x) { return exp(x); }

template <class A>
struct Terms {
  A bell, term;  // e^(−x²/2), x e^(−x²/2)
};
template <class A>
GPU_DEVICE Terms<A> terms_of(A x) {
  const A inside = x > A(40) ? A(40) : x < A(-40) ? A(-40) : x;
  const A bell = exponential(A(-0.5) * inside * inside);
  return {bell, inside * bell};
}

template <class A>
GPU_DEVICE A value_of(A x, A epsilon) {
  return (x < A(0) ? A(0) : x) + epsilon * terms_of(x).term;  // a NaN is not below 0
}

// body(element) of this thread, by whole packs where all of pointers lie on sixteen bytes. Grid: blocks of kThreads, any number.
template <class T, class Packs, class One>
GPU_DEVICE void for_elements(int64_t count, bool aligned, const Packs& packs, const One& one) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t whole = aligned ? count / gpu::Pack<T>::kSize : 0;
  for (int64_t i = thread; i < whole; i += threads) packs(i * gpu::Pack<T>::kSize);
  for (int64_t i = whole * gpu::Pack<T>::kSize + thread; i < count; i += threads) one(i);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) crrelu_forward_kernel(CrreluForward p, bool aligned) {
  using A = gpu::Accumulator<T>;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const A epsilon = *static_cast<const A*>(p.epsilon);
  for_elements<T>(
      p.count, aligned,
      [&](int64_t i) {
        gpu::Pack<T> pack = gpu::load_pack(x + i);
        GPU_UNROLL
        for (int k = 0; k < gpu::Pack<T>::kSize; ++k)
          pack.value[k] = gpu::narrow<T>(value_of(gpu::widen(pack.value[k]), epsilon));
        gpu::store_pack(y + i, pack);
      },
      [&](int64_t i) { y[i] = gpu::narrow<T>(value_of(gpu::widen(x[i]), epsilon)); });
}

// Grid: crrelu_parts(count).
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) crrelu_backward_kernel(CrreluBackward p, bool aligned) {
  using A = gpu::Accumulator<T>;
  GPU_SHARED(double, scratch, kThreads / 32);
  const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy);
  T* dx = static_cast<T*>(p.dx);
  const A epsilon = *static_cast<const A*>(p.epsilon);
  A sum = 0;
  const auto gradient = [&](A value, A d) {
    const Terms<A> t = terms_of(value);
    sum += d * t.term;
    const A step = value > A(0) ? A(1) : value == value ? A(0) : value;
    return d * (step + epsilon * (t.bell - value * t.term));
  };
  for_elements<T>(
      p.count, aligned,
      [&](int64_t i) {
        gpu::Pack<T> pack = gpu::load_pack(x + i);
        const gpu::Pack<T> d = gpu::load_pack(dy + i);
        GPU_UNROLL
        for (int k = 0; k < gpu::Pack<T>::kSize; ++k)
          pack.value[k] = gpu::narrow<T>(gradient(gpu::widen(pack.value[k]), gpu::widen(d.value[k])));
        gpu::store_pack(dx + i, pack);
      },
      [&](int64_t i) { dx[i] = gpu::narrow<T>(gradient(gpu::widen(x[i]), gpu::widen(dy[i]))); });
  const double total = gpu::block_reduce<kThreads>(static_cast<double>(sum), gpu::Sum(), &scratch[0]);
  if (threadIdx.x == 0) p.parts[blockIdx.x] = total;
}

// Grid: 1.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocks) crrelu_epsilon_kernel(CrreluBackward p) {
  GPU_SHARED(double, scratch, kThreads / 32);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < crrelu_parts(p.count); i += kThreads) sum += p.parts[i];
  const double total = gpu::block_reduce<kThreads>(sum, gpu::Sum(), &scratch[0]);
  if (threadIdx.x == 0) *static_cast<A*>(p.depsilon) = static_cast<A>(total);
}

inline bool on_packs(const void* a, const void* b, const void* c) {
  return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c)) & 15) == 0;
}

}  // namespace crrelu

void crrelu_forward_cuda(const CrreluForward& p, void* stream) {
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf, DType::kDouble>(
      "crrelu_forward: dtype", p.dtype, [&](auto type) {
        gpu::launch(crrelu::crrelu_forward_kernel<gpu::TypeOf<type()>>,
                    dim3(static_cast<unsigned>(p.count == 0 ? 0 : crrelu_parts(p.count))), crrelu::kThreads, 0, stream,
                    p, crrelu::on_packs(p.x, p.y, p.y));
      });
}

void crrelu_backward_cuda(const CrreluBackward& p, void* stream) {
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf, DType::kDouble>(
      "crrelu_backward: dtype", p.dtype, [&](auto type) {
        using T = gpu::TypeOf<type()>;
        gpu::launch(crrelu::crrelu_backward_kernel<T>, dim3(static_cast<unsigned>(crrelu_parts(p.count))),
                    crrelu::kThreads, 0, stream, p, crrelu::on_packs(p.x, p.dy, p.dx));
        gpu::launch(crrelu::crrelu_epsilon_kernel<gpu::Accumulator<T>>, dim3(1), crrelu::kThreads, 0, stream, p);
      });
}

}  // namespace isentrope::kernels
