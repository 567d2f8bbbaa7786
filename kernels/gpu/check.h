// Errors of the CUDA runtime as exceptions that name file, line and expression.
#pragma once
#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace isentrope::gpu {

inline void check(cudaError_t error, const char* expression, const char* file, int line) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears it: the next launch must not report it again
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + expression + ": " +
                           cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

}  // namespace isentrope::gpu

#define GPU_CHECK(expression) ::isentrope::gpu::check((expression), #expression, __FILE__, __LINE__)
#endif
