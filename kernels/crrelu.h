// CRReLU, a ReLU with a correction that is learned (EAFO, arXiv 2405.12442), of any number of elements:
//
//   y = max(0, x) + ε t,   t = x e^(−x²/2)
//   dx = dy · (1[x > 0] + ε (1 − x²) e^(−x²/2))        dε = Σ dy · t
//
// |ε t| is at most 0.607 |ε|, at |x| = 1. ε is one number. Beyond |x| = 40 the exponential is 0 in double too, so t is 0 there, at
// infinity too; a NaN stays one. Computed in float, in double for double. dε is summed in the order of the elements' places alone, the
// parts of it in double: the same bits at every run.
#pragma once
#include <cstdint>

#include "kernels/gpu/dtype.h"
#include "kernels/gpu/philox.h"  // ISENTROPE_HOST_DEVICE

namespace isentrope::kernels {

struct CrreluForward {
  DType dtype = DType::kFloat;
  int64_t count = 0;              // N
  const void* x = nullptr;        // [N]
  const void* epsilon = nullptr;  // [1] float, or double for double x
  void* y = nullptr;              // [N]
};

struct CrreluBackward {
  DType dtype = DType::kFloat;
  int64_t count = 0;              // N
  const void* x = nullptr;        // [N]
  const void* epsilon = nullptr;  // [1]
  const void* dy = nullptr;       // [N]
  void* dx = nullptr;             // [N]
  double* parts = nullptr;        // [crrelu_parts(N)] sums of dε
  void* depsilon = nullptr;       // [1] float, or double for double x
};

// Blocks of the backward kernel, and numbers that it leaves for the last sum: enough for every multiprocessor, few enough for one block.
constexpr int64_t kCrreluPart = 4096;
ISENTROPE_HOST_DEVICE constexpr int64_t crrelu_parts(int64_t count) {
  const int64_t parts = (count + kCrreluPart - 1) / kCrreluPart;
  return parts < 1 ? 1 : parts > 2048 ? 2048 : parts;
}

// stream is a cudaStream_t; returns before the work is done. Throws std::invalid_argument for a dtype out of the list.
void crrelu_forward_cuda(const CrreluForward& p, void* stream);
void crrelu_backward_cuda(const CrreluBackward& p, void* stream);

}  // namespace isentrope::kernels
