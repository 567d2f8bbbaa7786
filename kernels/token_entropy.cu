// One block a row (one warp a row where V is small). Forward: every thread keeps the centred sums of the logits it
// meets, then the block joins them. Backward: one pass, a logit in, its gradient out. Kept tokens: a pass for each digit of a
// logit, from the highest, over what shares the digits before it.
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

// ---- kept tokens ----------------------------------------------------------------------------------------------------

// Unsigned integers in the order of the numbers; -0 is 0.
GPU_DEVICE uint32_t ordered(float z) {
  const float x = z + 0.0f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
GPU_DEVICE uint64_t ordered(double z) {
  const double x = z + 0.0;
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits >> 63 ? ~bits : bits | 0x8000000000000000u;
}
GPU_DEVICE double number(uint32_t key) {
  const uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
GPU_DEVICE double number(uint64_t key) {
  const uint64_t bits = key >> 63 ? key & 0x7fffffffffffffffu : ~key;
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

using Mass = unsigned long long;

// What the passes know: the digits found, what is still to be reached, and what lies in the last digit.
struct Search {
  uint64_t found;
  Mass need, within;
};

// The digit at which weights, added up from the highest digit down or from the lowest up, reach what is needed.
GPU_DEVICE void take_digit(Search& s, const Mass* histogram, int shift, bool downward) {
  int digit = downward ? 255 : 0;
  const int step = downward ? -1 : 1, last = 255 - digit;
  while (digit != last && histogram[digit] < s.need) {
    s.need -= histogram[digit];
    digit += step;
  }
  s.found |= static_cast<uint64_t>(digit) << shift;
  s.within = histogram[digit];
}

// Adds weight(i) of the tokens that share the digits found to the histogram of the next digit of key(i), then takes that digit.
// Digits below 0 … shift are not yet found. Begins and ends with a barrier; all threads call it.
template <int kThreads, class Key, class Weight>
GPU_DEVICE void find_digit(Search* search, Mass* histogram, int64_t V, int shift, bool downward, const Key& key,
                           const Weight& weight GPU_AT) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < 256; i += kThreads) histogram[i] = 0;
  GPU_SYNC_THREADS_HERE();
  const uint64_t found = search->found;
  for (int64_t i = thread; i < V; i += kThreads) {
    const Mass w = weight(i);
    if (w == 0) continue;
    const uint64_t k = key(i);
    if ((k ^ found) >> shift >> 8 == 0) atomicAdd(&histogram[k >> shift & 255], w);
  }
  GPU_SYNC_THREADS_HERE();
  if (thread == 0) take_digit(*search, histogram, shift, downward);
  GPU_SYNC_THREADS_HERE();
}

template <class A>
GPU_DEVICE void write_kept(const TokenEntropyKeep& p, int64_t n, const KeptTokens& kept) {
  p.kept[n] = kept;
  static_cast<A*>(p.kept_entropy)[n] = static_cast<A>(kept.entropy);
}

// Grid: N blocks of kThreads. Two blocks on a multiprocessor: for four of them ptxas spills.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, 2) token_entropy_keep_kernel(const TokenEntropyKeep p) {
  using A = gpu::Accumulator<T>;
  GPU_SHARED(Mass, histogram, 256);
  GPU_SHARED(Mass, totals, kThreads / 32);
  GPU_SHARED(Search, search, 1);
  GPU_SHARED(Sums<A>, scratch, kThreads / 32);
  const int64_t n = blockIdx.x, V = p.layout.vocab, target = p.target[n];
  const int thread = static_cast<int>(threadIdx.x);
  const A entropy = static_cast<const A*>(p.entropy)[n], anchor = static_cast<const A*>(p.anchor)[n],
          log_sum = static_cast<const A*>(p.log_sum)[n];
  const double dropped = ::floor(p.share * static_cast<double>(V));
  const bool by_mass = p.keep == Keep::kTopP, all = by_mass ? p.share >= 1 : dropped < 1;
  const bool ignored = target == p.ignore_index, none = anchor == -INFINITY && log_sum == 0;
  if (ignored || none || all || log_sum != log_sum) {  // the whole block leaves
    const double last = ignored ? 0.0 : static_cast<double>(V - 1);
    if (thread == 0)
      write_kept<A>(p, n, {entropy, log_sum, ignored ? 0.0 : log_sum == log_sum ? -INFINITY : NAN, last});
    return;
  }
  const T* row = row_of<T>(p.logits, p.layout, n);
  const A c = static_cast<A>(1.4426950408889634074 / p.temperature);
  auto mass = [&](int64_t i) {
    const A s = gpu::exp2_approx(bounded((gpu::widen(row[i]) - anchor) * c));
    return by_mass ? static_cast<Mass>(s * A(549755813888.0)) : Mass(1);
  };

  Mass total = 0;
  for (int64_t i = thread; i < V; i += kThreads) total += mass(i);
  total = gpu::block_reduce<kThreads>(total, gpu::Sum(), &totals[0]);
  if (thread == 0) {
    const double kept = static_cast<double>(V) - dropped, wanted = ::ceil(p.share * static_cast<double>(total));
    Mass need = static_cast<Mass>(by_mass ? wanted : kept);
    need = need < 1 ? 1 : need;
    search[0] = {0, need > total ? total : need, 0};
  }
  constexpr int kTop = static_cast<int>(sizeof(A)) * 8 - 8;
  for (int shift = kTop; shift >= 0; shift -= 8)
    find_digit<kThreads>(
        &search[0], &histogram[0], V, shift, true, [&](int64_t i) { return ordered(gpu::widen(row[i])); }, mass);

  // All that share all digits have one logit and one mass; so many of them are kept, of the lowest ids.
  using Bits = decltype(ordered(A(0)));
  const Bits edge_key = static_cast<Bits>(search[0].found);
  const Mass need = search[0].need, within = search[0].within;
  const double edge = number(edge_key);
  const Mass each =
      by_mass ? static_cast<Mass>(gpu::exp2_approx(bounded((static_cast<A>(edge) - anchor) * c)) * A(549755813888.0))
              : Mass(1);
  const Mass count = each > 0 ? (need + each - 1) / each : 1;
  int64_t last = V - 1;
  __syncthreads();
  if (count * each < within) {
    if (thread == 0) search[0] = {0, count, 0};
    int shift = 0;
    while (shift < 56 && (V - 1) >> shift >> 8 != 0) shift += 8;
    for (; shift >= 0; shift -= 8)
      find_digit<kThreads>(
          &search[0], &histogram[0], V, shift, false, [](int64_t i) { return static_cast<uint64_t>(i); },
          [&](int64_t i) { return Mass(ordered(gpu::widen(row[i])) == edge_key ? 1 : 0); });
    last = static_cast<int64_t>(search[0].found);
  }

  const KeptTokens kept = {0, 0, edge, static_cast<double>(last)};
  Sums<A> x = {static_cast<A>(-INFINITY), 0, 0, 0, 0};
  for (int64_t i = thread; i < V; i += kThreads) {
    const A z = gpu::widen(row[i]), one[1] = {is_kept(kept, z, i) ? z : static_cast<A>(-INFINITY)};
    add<false>(x, one, c);
  }
  x = gpu::block_reduce<kThreads>(x, Join<A, false>{c}, &scratch[0]);
  if (thread != 0) return;
  const A kept_log_sum = natural_log(x.sum), H = kept_log_sum - A(0.69314718055994530942) * (x.sum_log / x.sum);
  const double moved = (static_cast<double>(x.anchor) - static_cast<double>(anchor)) / p.temperature;
  write_kept<A>(p, n, {H < 0 ? 0.0 : static_cast<double>(H), kept_log_sum + moved, edge, static_cast<double>(last)});
}

// ---- backward --------------------------------------------------------------------------------------------------------

template <class T, class G>
GPU_DEVICE gpu::Pack<T> gradient_of(const gpu::Pack<T>& z, const G& gradient, int64_t first, int64_t target) {
  gpu::Pack<T> dz;
  GPU_UNROLL
  for (int k = 0; k < gpu::Pack<T>::kSize; ++k) {
    auto value = gradient(gpu::widen(z.value[k]), first + k);
    if (first + k == target) value += gradient.target_share;
    dz.value[k] = gpu::narrow<T>(value);
  }
  return dz;
}

// Grid: N blocks of kThreads. dlogits may be the logits: each thread writes only what it has read.
template <class T, int kThreads, bool kKept>
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
  const GradientOf<A, kKept> gradient(p, n, p.temperature, target >= 0 && target < V);

  const int head = gpu::elements_to_boundary(row, V);
  // Packs need logits and gradient to be equally far from a 16-byte boundary.
  const bool packed = gpu::elements_to_boundary(static_cast<const T*>(out), V) == head;
  const int64_t packs = packed ? (V - head) / Pack::kSize : 0;
  for (int64_t i = thread; i < packs; i += kThreads) {
    const int64_t first = head + i * Pack::kSize;
    gpu::store_pack_once(out + first, gradient_of(gpu::load_pack_mutable(row + first), gradient, first, target));
  }
  auto single = [&](int64_t i) {
    A value = gradient(gpu::widen(row[i]), i);
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

void token_entropy_keep_cuda(const TokenEntropyKeep& p, void* stream) {
  using namespace token_entropy;
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf, DType::kDouble>(
      "token_entropy_keep: dtype", p.dtype, [&](auto type) {
        using T = gpu::TypeOf<type()>;
        for_threads(p.layout.vocab, [&](auto threads) {
          gpu::launch(token_entropy_keep_kernel<T, threads()>, dim3(static_cast<unsigned>(p.layout.rows)),
                      dim3(threads()), 0, stream, p);
        });
      });
}

void token_entropy_backward_cuda(const TokenEntropyBackward& p, void* stream) {
  using namespace token_entropy;
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf, DType::kDouble>(
      "token_entropy_backward: dtype", p.dtype, [&](auto type) {
        using T = gpu::TypeOf<type()>;
        gpu::dispatch<false, true>("token_entropy_backward: kept", p.dkept != nullptr, [&](auto kept) {
          for_threads(p.layout.vocab, [&](auto threads) {
            gpu::launch(token_entropy_backward_kernel<T, threads(), kept()>, dim3(static_cast<unsigned>(p.layout.rows)),
                        dim3(threads()), 0, stream, p);
          });
        });
      });
}

}  // namespace isentrope::kernels
