// cp.async: copies from global to shared memory that run beside the arithmetic, in groups. sm_80 and later.
#pragma once
#include "kernels/gpu/platform.h"

#if defined(__CUDACC__)
#include "kernels/gpu/mma.h"
#endif

namespace isentrope::gpu {

// Starts the copy of 16 bytes; both addresses 16-byte aligned. Where not valid, 16 zero bytes are written and global
// is not read.
GPU_DEVICE void copy_async_16(void* shared, const void* global, bool valid GPU_AT) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  simt::copy_async(shared, global, 16, valid ? 16 : 0 GPU_HERE);
#endif
}

// Ends this thread's group of copies.
GPU_DEVICE void copy_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::copy_async_commit();
#endif
}

// Waits until at most kPending of this thread's latest groups are unfinished. Other threads' copies are visible only
// after a barrier that follows their wait.
template <int kPending>
GPU_DEVICE void copy_async_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  simt::copy_async_wait(kPending);
#endif
}

// Barrier id (1 to 15) among threads threads of the block, a multiple of 32.
GPU_DEVICE void named_barrier(int id, int threads GPU_AT) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  simt::barrier(id, threads GPU_HERE);
#endif
}

}  // namespace isentrope::gpu
