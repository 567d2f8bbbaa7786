// Sixteen bytes at a time: the widest load and store of a thread, and what a memory-bound kernel moves.
#pragma once
#include "kernels/gpu/platform.h"

namespace isentrope::gpu {

// kSize elements of T in 16 bytes.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T value[kSize];
};

// Elements from p to the next 16-byte boundary, at most count. p is aligned to its own type.
template <class T>
GPU_HOST_DEVICE int elements_to_boundary(const T* p, int64_t count) {
  const int elements =
      static_cast<int>((16 - (reinterpret_cast<uintptr_t>(p) & 15)) & 15) / static_cast<int>(sizeof(T));
  return elements < count ? elements : static_cast<int>(count);
}

// p [kSize], 16-byte aligned, not written while the kernel runs.
template <class T>
GPU_DEVICE Pack<T> load_pack(const T* p GPU_AT) {
  Pack<T> pack;
#if defined(__CUDACC__)
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(p));
  memcpy(&pack, &bits, 16);
#else
  simt::vector_access(p, false GPU_HERE);
  memcpy(&pack, p, 16);
#endif
  return pack;
}

// The same for data that is read once: it leaves the cache first.
template <class T>
GPU_DEVICE Pack<T> load_pack_once(const T* p GPU_AT) {
#if defined(__CUDACC__)
  Pack<T> pack;
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(p));
  memcpy(&pack, &bits, 16);
  return pack;
#else
  return load_pack(p GPU_HERE);
#endif
}

// The same for data this kernel also writes (in place): an ordinary load.
template <class T>
GPU_DEVICE Pack<T> load_pack_mutable(const T* p GPU_AT) {
#if defined(__CUDACC__)
  Pack<T> pack;
  const uint4 bits = *reinterpret_cast<const uint4*>(p);
  memcpy(&pack, &bits, 16);
  return pack;
#else
  return load_pack(p GPU_HERE);
#endif
}

// p [kSize], 16-byte aligned.
template <class T>
GPU_DEVICE void store_pack(T* p, const Pack<T>& pack GPU_AT) {
#if defined(__CUDACC__)
  uint4 bits;
  memcpy(&bits, &pack, 16);
  *reinterpret_cast<uint4*>(p) = bits;
#else
  simt::vector_access(p, true GPU_HERE);
  memcpy(static_cast<void*>(p), &pack, 16);
#endif
}

// The same for data that no kernel reads again soon.
template <class T>
GPU_DEVICE void store_pack_once(T* p, const Pack<T>& pack GPU_AT) {
#if defined(__CUDACC__)
  uint4 bits;
  memcpy(&bits, &pack, 16);
  __stcs(reinterpret_cast<uint4*>(p), bits);
#else
  store_pack(p, pack GPU_HERE);
#endif
}

}  // namespace isentrope::gpu
