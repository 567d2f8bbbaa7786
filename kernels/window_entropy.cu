// A block a sequence: head and tail sums by scans of 256 tokens at a time, which carry on where the last ones ended; then each
// window from at most two of them. All of it stays near the cache: 40 bytes a token.
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/window_entropy.h"

namespace isentrope::kernels {
namespace window {

constexpr int kThreads = 256;

GPU_DEVICE WindowSums add(const WindowSums& a, const WindowSums& b) { return {a.sum + b.sum, a.count + b.count}; }

// sums[t] ← the sum of value(s) from the start of t's block of w tokens to t, or with kBackwards from t to the block's end.
// scratch [kThreads + 1] in shared memory. All threads must call; what is written may be read by all after a barrier.
template <bool kBackwards, class Value>
GPU_DEVICE void scan(int64_t length, int64_t w, const Value& value, WindowSums* scratch, WindowSums* sums GPU_AT) {
  const int thread = static_cast<int>(threadIdx.x);
  WindowSums* carry = scratch + kThreads;
  if (thread == 0) *carry = {0, 0};
  for (int64_t begin = 0; begin < length; begin += kThreads) {
    const int64_t i = begin + thread, t = kBackwards ? length - 1 - i : i;
    const int64_t end = (t / w + 1) * w < length ? (t / w + 1) * w : length;
    const int64_t back =
        kBackwards ? end - 1 - t : t % w;  // elements of the block that the scan has met before this one
    WindowSums sum = i < length ? value(t) : WindowSums{0, 0};
    scratch[thread] = sum;
    for (int offset = 1; offset < kThreads; offset *= 2) {
      GPU_SYNC_THREADS_HERE();
      const WindowSums earlier = thread >= offset && back >= offset ? scratch[thread - offset] : WindowSums{0, 0};
      GPU_SYNC_THREADS_HERE();
      sum = add(earlier, sum);
      scratch[thread] = sum;
    }
    if (back > thread) sum = add(*carry, sum);
    if (i < length) sums[t] = sum;
    GPU_SYNC_THREADS_HERE();
    if (thread == kThreads - 1) *carry = sum;
    GPU_SYNC_THREADS_HERE();
  }
}

GPU_DEVICE WindowSums window_of(const WindowReach& reach, const WindowSums* head, const WindowSums* tail) {
  WindowSums sum = {0, 0};
  if (reach.tail) sum = tail[reach.a];
  if (reach.head) sum = add(sum, head[reach.b]);
  return sum;
}

// Grid: rows.
template <class T>
__global__ void __launch_bounds__(kThreads) window_entropy_forward_kernel(WindowEntropyForward p) {
  GPU_SHARED(WindowSums, scratch, kThreads + 1);
  const int64_t row = blockIdx.x, T_ = p.length, w = p.before + p.after + 1;
  const T* x = static_cast<const T*>(p.x) + row * T_;
  const bool* mask = p.mask + row * T_;
  WindowSums *head = p.workspace + row * T_, *tail = p.workspace + (p.rows + row) * T_;
  const auto value = [&](int64_t t) { return mask[t] ? WindowSums{static_cast<double>(x[t]), 1} : WindowSums{0, 0}; };
  scan<false>(T_, w, value, &scratch[0], head);
  scan<true>(T_, w, value, &scratch[0], tail);
  for (int64_t t = threadIdx.x; t < T_; t += kThreads) {
    WindowSums sum = {0, 0};
    if (mask[t] && (p.at == nullptr || p.at[row * T_ + t]))
      sum = window_of(window_reach(t, p.before, p.after, T_), head, tail);
    if (!p.shrink && sum.count < w) sum.count = 0;
    static_cast<T*>(p.mean)[row * T_ + t] =
        sum.count == 0 ? T(0) : static_cast<T>(sum.sum / static_cast<double>(sum.count));
    p.count[row * T_ + t] = static_cast<int32_t>(sum.count);
  }
}

// Grid: rows.
template <class T>
__global__ void __launch_bounds__(kThreads) window_entropy_backward_kernel(WindowEntropyBackward p) {
  GPU_SHARED(WindowSums, scratch, kThreads + 1);
  const int64_t row = blockIdx.x, T_ = p.length, w = p.before + p.after + 1;
  const T* dmean = static_cast<const T*>(p.dmean) + row * T_;
  const int32_t* count = p.count + row * T_;
  WindowSums *head = p.workspace + row * T_, *tail = p.workspace + (p.rows + row) * T_;
  const auto value = [&](int64_t t) {
    return WindowSums{count[t] > 0 ? static_cast<double>(dmean[t]) / static_cast<double>(count[t]) : 0.0, 0};
  };
  scan<false>(T_, w, value, &scratch[0], head);
  scan<true>(T_, w, value, &scratch[0], tail);
  for (int64_t s = threadIdx.x; s < T_; s += kThreads)  // of the windows that hold s: the mirror image
    static_cast<T*>(p.dx)[row * T_ + s] =
        p.mask[row * T_ + s] ? static_cast<T>(window_of(window_reach(s, p.after, p.before, T_), head, tail).sum) : T(0);
}

}  // namespace window

void window_entropy_forward_cuda(const WindowEntropyForward& p, void* stream) {
  gpu::dispatch<DType::kFloat, DType::kDouble>("window_entropy_forward: dtype", p.dtype, [&](auto type) {
    gpu::launch(window::window_entropy_forward_kernel<gpu::TypeOf<type()>>, dim3(static_cast<unsigned>(p.rows)),
                window::kThreads, 0, stream, p);
  });
}

void window_entropy_backward_cuda(const WindowEntropyBackward& p, void* stream) {
  gpu::dispatch<DType::kFloat, DType::kDouble>("window_entropy_backward: dtype", p.dtype, [&](auto type) {
    gpu::launch(window::window_entropy_backward_kernel<gpu::TypeOf<type()>>, dim3(static_cast<unsigned>(p.rows)),
                window::kThreads, 0, stream, p);
  });
}

}  // namespace isentrope::kernels
