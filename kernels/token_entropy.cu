// One block a row (one warp a row where V is small). Forward: every thread keeps the centred sums of the logits it
// meets, then the block joins them. Backward: one pass, a logit in, its gradient out.
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/reduce.h"
#include "kernels/gpu/vector.h"
#include "kernels/token_entropy.cuh"
#include "kernels/token_entropy.h"

namespace isentrope::kernels {
namespace token_entropy {

constexpr int kWide = 512;  // threads of a row of many logits
// 16-byte loads a thread has under way: 32 KB for a block of 512, and two such blocks on a multiprocessor are above
// memory latency times its share of the bandwidth. Doubles have no registers to spare.
template <class T>
constexpr int kUnroll = sizeof(T) == 8 ? 1 : 4;

template <class T>
GPU_DEVICE const T* row_of(const void* base, const LogitRows& rows, int64_t n) {
  return static_cast<const T*>(base) + n / rows.group_rows * rows.group_stride + n % rows.group_rows * rows.row_stride;
}

// ---- forward ---------------------------------------------------------------------------------------------------------

// Grid: N blocks of kThreads.
template <class T, int kThreads, bool kMoments>
__global__ void __launch_bounds__(kThreads) token_entropy_forward_kernel(const TokenEntropyForward p) {
  using A = gpu::Accumulator<T>;
  using Pack = gpu::Pack<T>;
  GPU_SHARED(Sums<A>, scratch, kThreads / 32);
  const int64_t n = blockIdx.x, V = p.layout.vocab, target = p.target[n];
  const int thread = static_cast<int>(threadIdx.x);
  if (target == p.ignore_index || target < 0 || target >= V) {  // the whole block leaves
    const A value = target == p.ignore_index ? A(0) : static_cast<A>(NAN);
    if (thread == 0) write_row<A>(p, n, value, value, value, value, value, value, value);
    return;
  }
  const T* row = row_of<T>(p.logits, p.layout, n);
  const A c = static_cast<A>(1.4426950408889634074 / p.temperature);
  Sums<A> x = {static_cast<A>(-INFINITY), 0, 0, 0, 0};

  const int head = gpu::elements_to_boundary(row, V);
  const T* body = row + head;
  const int64_t packs = (V - head) / Pack::kSize;
  int64_t i = thread;
  for (; i + (kUnroll<T> - 1) * kThreads < packs; i += kUnroll<T> * kThreads) {
    Pack pack[kUnroll<T>];
    GPU_UNROLL
    for (int u = 0; u < kUnroll<T>; ++u) pack[u] = gpu::load_pack_once(body + (i + u * kThreads) * Pack::kSize);
    GPU_UNROLL
    for (int u = 0; u < kUnroll<T>; ++u) add<kMoments>(x, pack[u].value, c);
  }
  for (; i < packs; i += kThreads) add<kMoments>(x, gpu::load_pack_once(body + i * Pack::kSize).value, c);
  // The ends, fewer than a pack each.
  for (int64_t e = thread; e < head; e += kThreads) {
    const T one[1] = {row[e]};
    add<kMoments>(x, one, c);
  }
  for (int64_t e = head + packs * Pack::kSize + thread; e < V; e += kThreads) {
    const T one[1] = {row[e]};
    add<kMoments>(x, one, c);
  }

  x = gpu::block_reduce<kThreads>(x, Join<A, kMoments>{c}, &scratch[0]);
  if (thread == 0) finish_row<A>(p, n, x, gpu::widen(row[target]), p.temperature);
}

// ---- backward --------------------------------------------------------------------------------------------------------

template <class T>
GPU_DEVICE gpu::Pack<T> gradient_of(const gpu::Pack<T>& z, const Gradient<gpu::Accumulator<T>>& gradient, int64_t first,
                                    int64_t target) {
  gpu::Pack<T> dz;
  GPU_UNROLL
  for (int k = 0; k < gpu::Pack<T>::kSize; ++k) {
    auto value = gradient(gpu::widen(z.value[k]));
    if (first + k == target) value += gradient.target_share;
    dz.value[k] = gpu::narrow<T>(value);
  }
  return dz;
}

// Grid: N blocks of kThreads. dlogits may be the logits: each thread writes only what it has read.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads) token_entropy_backward_kernel(const TokenEntropyBackward p) {
  using A = gpu::Accumulator<T>;
  using Pack = gpu::Pack<T>;
  const int64_t n = blockIdx.x, V = p.layout.vocab, target = p.target[n];
  const int thread = static_cast<int>(threadIdx.x);
  const T* row = row_of<T>(p.logits, p.layout, n);
  T* out = const_cast<T*>(row_of<T>(p.dlogits, p.dlogits_layout, n));

  if (target == p.ignore_index || nothing_flows<A>(p, n)) {
    for (int64_t i = thread; i < V; i += kThreads) out[i] = gpu::narrow<T>(A(0));
    return;
  }
  const Gradient<A> gradient(p, n, p.temperature, target >= 0 && target < V);

  const int head = gpu::elements_to_boundary(row, V);
  // Packs need logits and gradient to be equally far from a 16-byte boundary.
  const bool packed = gpu::elements_to_boundary(static_cast<const T*>(out), V) == head;
  const int64_t packs = packed ? (V - head) / Pack::kSize : 0;
  for (int64_t i = thread; i < packs; i += kThreads) {
    const int64_t first = head + i * Pack::kSize;
    gpu::store_pack_once(out + first, gradient_of(gpu::load_pack_mutable(row + first), gradient, first, target));
  }
  auto single = [&](int64_t i) {
    A value = gradient(gpu::widen(row[i]));
    if (i == target) value += gradient.target_share;
    out[i] = gpu::narrow<T>(value);
  };
  for (int64_t i = thread; i < (packed ? head : V); i += kThreads) single(i);
  if (packed)
    for (int64_t i = head + packs * Pack::kSize + thread; i < V; i += kThreads) single(i);
}

// A warp for a row where a block would idle.
template <class Function>
void for_threads(int64_t vocab, Function&& function) {
  gpu::dispatch<32, kWide>("token_entropy: threads of a row", vocab <= 1024 ? 32 : kWide, function);
}

}  // namespace token_entropy

void token_entropy_forward_cuda(const TokenEntropyForward& p, void* stream) {
  using namespace token_entropy;
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf, DType::kDouble>(
      "token_entropy_forward: dtype", p.dtype, [&](auto type) {
        using T = gpu::TypeOf<type()>;
        gpu::dispatch<false, true>("token_entropy_forward: moments", p.sum_p2 != nullptr, [&](auto moments) {
          for_threads(p.layout.vocab, [&](auto threads) {
            gpu::launch(token_entropy_forward_kernel<T, threads(), moments()>,
                        dim3(static_cast<unsigned>(p.layout.rows)), dim3(threads()), 0, stream, p);
          });
        });
      });
}

void token_entropy_backward_cuda(const TokenEntropyBackward& p, void* stream) {
  using namespace token_entropy;
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf, DType::kDouble>(
      "token_entropy_backward: dtype", p.dtype, [&](auto type) {
        using T = gpu::TypeOf<type()>;
        for_threads(p.layout.vocab, [&](auto threads) {
          gpu::launch(token_entropy_backward_kernel<T, threads()>, dim3(static_cast<unsigned>(p.layout.rows)),
                      dim3(threads()), 0, stream, p);
        });
      });
}

}  // namespace isentrope::kernels
