// What goes on between the products of a block: a thread block a row. Its logits have just been written and lie in the second-level
// cache, where loads of single elements, side by side, are as good as wide ones.
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/reduce.h"
#include "kernels/linear_token_entropy.h"
#include "kernels/token_entropy.cuh"

namespace isentrope::kernels {
namespace linear_token_entropy {

using namespace token_entropy;

constexpr int kThreads = 128;

GPU_DEVICE float hyperbolic_tangent(float x) { return ::tanhf(x); }
GPU_DEVICE double hyperbolic_tangent(double x) { return ::tanh(x); }

// Logit i of the block's row n, with bias and soft cap.
template <class T, class A = gpu::Accumulator<T>>
GPU_DEVICE A logit(const LogitBlock& p, int64_t n, int64_t i) {
  A z = static_cast<const A*>(p.logits)[n * p.columns + i];
  if (p.bias) z += gpu::widen(static_cast<const T*>(p.bias)[p.first + i]);
  if (p.softcap > 0) z = static_cast<A>(p.softcap) * hyperbolic_tangent(z * static_cast<A>(1 / p.softcap));
  return z;
}

// Grid: N blocks.
template <class T, bool kMoments>
__global__ void __launch_bounds__(kThreads) linear_token_entropy_forward_kernel(const LinearTokenEntropyForward p) {
  using A = gpu::Accumulator<T>;
  GPU_SHARED(Sums<A>, scratch, kThreads / 32);
  const int64_t n = blockIdx.x, target = p.target[n];
  const int thread = static_cast<int>(threadIdx.x);
  const bool last = p.first + p.columns == p.vocab;
  if (target == p.ignore_index || target < 0 || target >= p.vocab) {  // the whole block leaves
    const A value = target == p.ignore_index ? A(0) : static_cast<A>(NAN);
    if (last && thread == 0) write_row<A>(p, n, value, value, value, value, value, value, value);
    return;
  }
  const A c = static_cast<A>(1.4426950408889634074 / p.temperature);
  Sums<A> x = {static_cast<A>(-INFINITY), 0, 0, 0, 0};
  for (int64_t i = thread; i < p.columns; i += kThreads) {
    const A one[1] = {logit<T>(p, n, i)};
    if (p.capped) static_cast<A*>(p.capped)[n * p.vocab + p.first + i] = one[0];
    add<kMoments>(x, one, c);
  }
  const Join<A, kMoments> join{c};
  x = gpu::block_reduce<kThreads>(x, join, &scratch[0]);
  if (thread != 0) return;
  A* kept = static_cast<A*>(p.sums) + n * kLogitBlockSums;
  A target_logit = p.first > 0 ? kept[5] : A(0);
  if (target >= p.first && target < p.first + p.columns) target_logit = logit<T>(p, n, target - p.first);
  if (p.first > 0) x = join(Sums<A>{kept[0], kept[1], kept[2], kept[3], kept[4]}, x);
  if (last) return finish_row<A>(p, n, x, target_logit, p.temperature);
  kept[0] = x.anchor;
  kept[1] = x.sum;
  kept[2] = x.sum_log;
  kept[3] = x.square;
  kept[4] = x.square_log;
  kept[5] = target_logit;
}

// Grid: N blocks. dlogits may be the logits: each thread writes only what it has read.
template <class T, bool kKept>
__global__ void __launch_bounds__(kThreads) linear_token_entropy_backward_kernel(const LinearTokenEntropyBackward p) {
  using A = gpu::Accumulator<T>;
  const int64_t n = blockIdx.x, target = p.target[n];
  const int thread = static_cast<int>(threadIdx.x);
  T* out = static_cast<T*>(p.dlogits) + n * p.columns;
  if (target == p.ignore_index || nothing_flows<A>(p, n)) {
    for (int64_t i = thread; i < p.columns; i += kThreads) out[i] = gpu::narrow<T>(A(0));
    return;
  }
  const GradientOf<A, kKept> gradient(p, n, p.temperature, target >= 0 && target < p.vocab);
  const A inverse_cap = p.softcap > 0 ? static_cast<A>(1 / p.softcap) : A(0);
  for (int64_t i = thread; i < p.columns; i += kThreads) {
    const A z = logit<T>(p, n, i), share = z * inverse_cap;
    A dz = gradient(z, p.first + i);
    if (p.first + i == target) dz += gradient.target_share;
    if (p.softcap > 0) dz *= 1 - share * share;
    out[i] = gpu::narrow<T>(dz);
  }
}

template <class Function>
void for_dtype(const char* what, DType dtype, Function&& function) {
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf, DType::kDouble>(what, dtype, function);
}

}  // namespace linear_token_entropy

void linear_token_entropy_forward_cuda(const LinearTokenEntropyForward& p, void* stream) {
  using namespace linear_token_entropy;
  for_dtype("linear_token_entropy_forward: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    gpu::dispatch<false, true>("linear_token_entropy_forward: moments", p.sum_p2 != nullptr, [&](auto moments) {
      gpu::launch(linear_token_entropy_forward_kernel<T, moments()>, dim3(static_cast<unsigned>(p.rows)),
                  dim3(kThreads), 0, stream, p);
    });
  });
}

void linear_token_entropy_backward_cuda(const LinearTokenEntropyBackward& p, void* stream) {
  using namespace linear_token_entropy;
  for_dtype("linear_token_entropy_backward: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    gpu::dispatch<false, true>("linear_token_entropy_backward: kept", p.dkept != nullptr, [&](auto kept) {
      gpu::launch(linear_token_entropy_backward_kernel<T, kept()>, dim3(static_cast<unsigned>(p.rows)), dim3(kThreads),
                  0, stream, p);
    });
  });
}

}  // namespace isentrope::kernels
