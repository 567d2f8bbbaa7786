// One launch for both compilers: launch(kernel, grid, block, shared_bytes, stream, arguments...).
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>

#include "kernels/gpu/check.h"
#include "kernels/gpu/platform.h"

namespace isentrope::gpu {

constexpr size_t kMaxThreads = 1024;               // of a block, on every architecture
constexpr size_t kMaxShared = 227 * 1024;          // bytes a block may have on sm_90 and later
constexpr size_t kSharedWithoutOptIn = 48 * 1024;  // above this a kernel must ask first

// Throws std::invalid_argument where no device could run it.
inline void check_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > kMaxThreads || block.z > 64)
    throw std::invalid_argument("launch: block of " + std::to_string(block.x) + " x " + std::to_string(block.y) +
                                " x " + std::to_string(block.z) + " threads; wanted 1 to 1024 in all, and z up to 64");
  if (grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u)
    throw std::invalid_argument("launch: grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                                std::to_string(grid.z) + " blocks; wanted x below 2^31, y and z up to 65535");
  if (shared_bytes > kMaxShared)
    throw std::invalid_argument("launch: " + std::to_string(shared_bytes) +
                                " bytes of dynamic shared memory; wanted at most " + std::to_string(kMaxShared) +
                                ": use smaller tiles");
}

// Runs kernel(arguments...) on grid blocks of block threads with shared_bytes of dynamic shared memory, on stream (a
// cudaStream_t, nullptr for the default one). An empty grid runs nothing. On a GPU it returns at once; on the SIMT
// machine it returns when all is done, and throws simt::Failure with what the machine found wrong.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            Arguments... arguments) {
  check_launch(grid, block, shared_bytes);
  if (size_t{grid.x} * grid.y * grid.z == 0) return;
#if defined(__CUDACC__)
  if (shared_bytes > kSharedWithoutOptIn)
    GPU_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)));
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<Parameters>(arguments)...);
  GPU_CHECK(cudaGetLastError());
#else
  (void)stream;
  auto body = [=] { kernel(static_cast<Parameters>(arguments)...); };
  using Body = decltype(body);
  simt::launch(
      grid, block, shared_bytes, [](const void* b) { (*static_cast<const Body*>(b))(); }, &body, sizeof body,
      simt::kInstrumented);
#endif
}

}  // namespace isentrope::gpu
