// Reductions over a warp and over a block, of numbers or of small structs. The order of the merges depends on the
// shape alone: the same bits at every run.
#pragma once
#include <type_traits>

#include "kernels/gpu/platform.h"

namespace isentrope::gpu {

// value of lane (own lane xor offset), for any trivially copyable T of whole 32-bit words. All 32 lanes must call.
template <class T>
GPU_DEVICE T shuffle_xor(T value, int offset GPU_AT) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) % 4 == 0, "shuffled by 32-bit words");
  uint32_t word[sizeof(T) / 4];
  memcpy(word, &value, sizeof(T));
  GPU_UNROLL
  for (int i = 0; i < static_cast<int>(sizeof(T) / 4); ++i)
    word[i] = __shfl_xor_sync(kAllLanes, word[i], offset, 32 GPU_HERE);
  memcpy(&value, word, sizeof(T));
  return value;
}

struct Sum {
  template <class T>
  GPU_HOST_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Maximum {
  template <class T>
  GPU_HOST_DEVICE T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// merge over the kLanes lanes of each aligned group (a power of two up to 32); every lane gets the result.
// merge(a, b) must equal merge(b, a) bit for bit, or lanes would differ. All 32 lanes must call.
template <int kLanes = 32, class T, class Merge>
GPU_DEVICE T warp_reduce(T value, Merge merge GPU_AT) {
  GPU_UNROLL
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value = merge(value, shuffle_xor(value, offset GPU_HERE));
  return value;
}

// merge over the block of kThreads threads (32 times a power of two); every thread gets the result.
// scratch [kThreads / 32] in shared memory; free for other use on return. All threads must call.
template <int kThreads, class T, class Merge>
GPU_DEVICE T block_reduce(T value, Merge merge, T* scratch GPU_AT) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && (kWarps & (kWarps - 1)) == 0 && kWarps <= 32, "32 times a power of two");
  value = warp_reduce(value, merge GPU_HERE);
  if constexpr (kWarps == 1) return value;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (lane == 0) scratch[warp] = value;
  GPU_SYNC_THREADS_HERE();
  value = scratch[lane % kWarps];
  GPU_SYNC_THREADS_HERE();
  return warp_reduce<kWarps>(value, merge GPU_HERE);
}

}  // namespace isentrope::gpu
