// One block a row (one warp a row where V is small). Forward: every thread keeps the centred sums of the logits it
// meets, then the block joins them. Backward: one pass, a logit in, its gradient out.
#include "kernels/token_entropy.h"

#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/reduce.h"
#include "kernels/gpu/vector.h"

namespace isentrope::kernels {
namespace token_entropy {

constexpr int kWide = 512;  // threads of a row of many logits
// 16-byte loads a thread has under way: 32 KB for a block of 512, and two such blocks on a multiprocessor are above
// memory latency times its share of the bandwidth. Doubles have no registers to spare.
template <class T>
constexpr int kUnroll = sizeof(T) == 8 ? 1 : 4;

GPU_DEVICE float natural_log(float x) { return ::logf(x); }
GPU_DEVICE double natural_log(double x) { return ::log(x); }

// log2 of a probability, bounded so that p·log p is 0 at -inf. exp2 of the bound is 0. A NaN stays.
template <class A>
GPU_DEVICE A bounded(A y) {
  return y < A(-1100) ? A(-1100) : y;
}

template <class T>
GPU_DEVICE const T* row_of(const void* base, const LogitRows& rows, int64_t n) {
  return static_cast<const T*>(base) + n / rows.group_rows * rows.group_stride + n % rows.group_rows * rows.row_stride;
}

// ---- forward ---------------------------------------------------------------------------------------------------------

// Of the logits met: anchor = their maximum, and with s = 2^((z - anchor)·c): sums of s, s·log2 s, s², s²·log2 s.
template <class A>
struct Sums {
  A anchor, sum, sum_log, square, square_log;
};

template <class A, bool kMoments>
GPU_DEVICE void move_anchor(Sums<A>& x, A anchor, A c) {
  if (x.anchor != -INFINITY) {  // before the first finite logit the sums are 0, or NaN for good
    const A shift = (x.anchor - anchor) * c, scale = gpu::exp2_approx(shift);
    x.sum_log = scale * (x.sum_log + bounded(shift) * x.sum);
    x.sum = scale * x.sum;
    if constexpr (kMoments) {
      x.square_log = scale * scale * (x.square_log + bounded(shift) * x.square);
      x.square = scale * scale * x.square;
    }
  }
  x.anchor = anchor;
}

// count logits at once: one look at the anchor for all of them.
template <bool kMoments, int kCount, class T, class A>
GPU_DEVICE void add(Sums<A>& x, const T (&z)[kCount], A c) {
  A largest = gpu::widen(z[0]);
  GPU_UNROLL
  for (int i = 1; i < kCount; ++i) largest = gpu::maximum(largest, gpu::widen(z[i]));
  if (largest > x.anchor) move_anchor<A, kMoments>(x, largest, c);
  const A anchor = x.anchor == -INFINITY ? A(0) : x.anchor;
  GPU_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const A y = bounded((gpu::widen(z[i]) - anchor) * c), s = gpu::exp2_approx(y);
    x.sum += s;
    x.sum_log += s * y;
    if constexpr (kMoments) {
      x.square += s * s;
      x.square_log += s * s * y;
    }
  }
}

template <class A, bool kMoments>
struct Join {
  A c;
  GPU_DEVICE Sums<A> operator()(Sums<A> a, Sums<A> b) const {
    const A anchor = a.anchor < b.anchor ? b.anchor : a.anchor;
    move_anchor<A, kMoments>(a, anchor, c);
    move_anchor<A, kMoments>(b, anchor, c);
    return {anchor, a.sum + b.sum, a.sum_log + b.sum_log, a.square + b.square, a.square_log + b.square_log};
  }
};

template <class A>
GPU_DEVICE void write_row(const TokenEntropyForward& p, int64_t n, A logprob, A entropy, A lse, A anchor, A log_sum, A sum_p2,
                          A sum_p2_logp) {
  static_cast<A*>(p.logprob)[n] = logprob;
  static_cast<A*>(p.entropy)[n] = entropy;
  static_cast<A*>(p.lse)[n] = lse;
  static_cast<A*>(p.anchor)[n] = anchor;
  static_cast<A*>(p.log_sum)[n] = log_sum;
  if (p.sum_p2) {
    static_cast<A*>(p.sum_p2)[n] = sum_p2;
    static_cast<A*>(p.sum_p2_logp)[n] = sum_p2_logp;
  }
}

template <class A>
GPU_DEVICE void finish_row(const TokenEntropyForward& p, int64_t n, const Sums<A>& x, A target_logit) {
  const A zero = 0;
  if (x.anchor == -INFINITY && x.sum == 0) {
    write_row<A>(p, n, -INFINITY, zero, -INFINITY, -INFINITY, zero, zero, zero);
    return;
  }
  const A log_sum = natural_log(x.sum), entropy = log_sum - A(0.69314718055994530942) * (x.sum_log / x.sum);
  const A square_sum = x.sum * x.sum;
  // In double, once a row: at large logits a second rounding would be the largest error there is.
  const double wide_anchor = x.anchor, wide_log_sum = log_sum;
  write_row<A>(p, n, static_cast<A>((target_logit - wide_anchor) / p.temperature - wide_log_sum),
               entropy < 0 ? zero : entropy,  // rounding alone takes it below
               static_cast<A>(wide_anchor / p.temperature + wide_log_sum), x.anchor, log_sum, x.square / square_sum,
               (A(0.69314718055994530942) * x.square_log - log_sum * x.square) / square_sum);
}

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
  if (thread == 0) finish_row<A>(p, n, x, gpu::widen(row[target]));
}

// ---- backward --------------------------------------------------------------------------------------------------------

// What a row's gradient is made of: dz = p·(constant + slope·log2 p), and target_share more at the target;
// p = 2^((z - anchor)·c - log2_sum).
template <class A>
struct Gradient {
  A anchor, c, log2_sum, constant, slope, target_share;
  GPU_DEVICE A operator()(A z) const {
    const A y = bounded((z - anchor) * c - log2_sum);
    return gpu::exp2_approx(y) * (constant + slope * y);
  }
};

template <class A>
GPU_DEVICE A value_or_zero(const void* x, int64_t n) {
  return x ? static_cast<const A*>(x)[n] : A(0);
}

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

  const A dlogprob = value_or_zero<A>(p.dlogprob, n), dentropy = value_or_zero<A>(p.dentropy, n),
          dlse = value_or_zero<A>(p.dlse, n), anchor = value_or_zero<A>(p.anchor, n),
          log_sum = value_or_zero<A>(p.log_sum, n);
  const bool none = dlogprob == 0 && dentropy == 0 && dlse == 0;
  const bool empty = anchor == -INFINITY && log_sum == 0;  // log_sum is NaN where all is NaN
  if (target == p.ignore_index || none || empty) {
    for (int64_t i = thread; i < V; i += kThreads) out[i] = gpu::narrow<T>(A(0));
    return;
  }
  const A inverse_temperature = static_cast<A>(1 / p.temperature);
  Gradient<A> gradient;
  gradient.anchor = anchor;
  gradient.c = static_cast<A>(1.4426950408889634074 / p.temperature);
  gradient.log2_sum = log_sum * A(1.4426950408889634074);
  gradient.constant = (dlse - dlogprob - dentropy * value_or_zero<A>(p.entropy, n)) * inverse_temperature;
  gradient.slope = -dentropy * A(0.69314718055994530942) * inverse_temperature;
  gradient.target_share = dlogprob * inverse_temperature;
  if (target < 0 || target >= V) gradient.constant = static_cast<A>(NAN);

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
            gpu::launch(token_entropy_forward_kernel<T, threads(), moments()>, dim3(static_cast<unsigned>(p.layout.rows)),
                        dim3(threads()), 0, stream, p);
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
